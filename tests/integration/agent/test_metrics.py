"""Metrics of VMs: which values are computed from Proxmox's list of VMs, and for which VMs.

The agent reads the list once in each round. The list has shares (CPU, memory, disk) and counters (network, disk
accesses). A rate is computed from the values of a counter in two rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine
from support.metrics_world import RATES, Cluster, Row, map_vm, values, vm

from executor.agent.metrics import (
    VmMetrics,
)
from executor.fulcrum.types import METRIC_TYPES


def test_in_its_first_round_a_vm_has_shares_and_no_rates(pve: Cluster, post_metrics: Callable[[], list[Row]]) -> None:
    pve.rows = [vm()]
    assert values(post_metrics()) == {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}


def test_a_sample_has_the_agent_instance_id_and_the_resource_of_its_metric_type(
    pve: Cluster, metrics: VmMetrics, post_metrics: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm(disk=5000)]
    post_metrics()
    entries = post_metrics()
    assert {entry["agentInstanceId"] for entry in entries} == {f"{metrics.state.agent_id}/101"}
    assert {entry["typeName"]: entry["resourceId"] for entry in entries} == {
        "vm.cpu.usage": "cpu",
        "vm.memory.usage": "memory",
        "vm.disk.usage": "disk",
        "vm.network.in": "network",
        "vm.network.out": "network",
        "vm.disk.read": "disk",
        "vm.disk.write": "disk",
    }
    assert {entry["typeName"] for entry in entries} == set(METRIC_TYPES)


def test_rates_are_computed_from_the_second_round_on(
    pve: Cluster, metrics: VmMetrics, post_metrics: Callable[[], list[Row]]
) -> None:
    """A rate is per second between two rounds. The test sets the time of the first round back instead of waiting."""
    pve.rows = [vm()]
    post_metrics()
    read_at, row = metrics._previous_rows[101]
    metrics._previous_rows[101] = (read_at - 10_000.0, row)
    pve.rows = [vm(netin=1000 + 10_000, netout=1000, diskread=1000 + 20_000, diskwrite=1000 + 5000, uptime=10_100)]
    rates = {name: value for name, value in values(post_metrics()).items() if name in RATES}
    expected = {"vm.network.in": 1.0, "vm.network.out": 0.0, "vm.disk.read": 2.0, "vm.disk.write": 0.5}
    assert rates == pytest.approx(expected, rel=0.01)


def test_a_restarted_vm_has_no_rates_until_the_next_round(pve: Cluster, post_metrics: Callable[[], list[Row]]) -> None:
    """Its counters began again at zero. So their difference from the last round is no rate, even if it is positive."""
    pve.rows = [vm(uptime=5000)]
    post_metrics()
    pve.rows = [vm(uptime=3, netin=9_999_999)]
    assert not RATES & set(values(post_metrics()))
    pve.rows = [vm(uptime=60, netin=10_000_999)]
    assert set(values(post_metrics())) >= RATES


def test_a_counter_that_decreased_gives_no_rate(pve: Cluster, post_metrics: Callable[[], list[Row]]) -> None:
    """For example, a NIC was replaced, or the VM was migrated to another node. The other counters still give rates."""
    pve.rows = [vm()]
    post_metrics()
    pve.rows = [vm(netin=10, uptime=160)]
    assert RATES & set(values(post_metrics())) == RATES - {"vm.network.in"}


def test_a_vm_that_was_missing_in_one_round_has_no_rates_in_the_next_one(
    pve: Cluster, post_metrics: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    post_metrics()
    pve.rows = []
    assert post_metrics() == []
    pve.rows = [vm(netin=9_999_999, uptime=200)]
    assert not RATES & set(values(post_metrics()))


def test_only_running_mapped_vms_are_reported_and_no_templates(
    pve: Cluster, sqlite_engine: Engine, post_metrics: Callable[[], list[Row]]
) -> None:
    map_vm(sqlite_engine, 102)
    map_vm(sqlite_engine, 103)
    map_vm(sqlite_engine, 105)
    stopped, unknown = vm(103, status="stopped", cpu=0, mem=0, uptime=0), vm(105, status="unknown")
    pve.rows = [vm(), vm(102, template=1), stopped, vm(104), unknown]
    assert {entry["agentInstanceId"].split("/")[1] for entry in post_metrics()} == {"101"}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"maxmem": ...}, {"vm.cpu.usage": 0.25}),
        ({"maxmem": 0}, {"vm.cpu.usage": 0.25}),
        ({"cpu": ..., "mem": "1024", "maxmem": "2048"}, {"vm.cpu.usage": 0.0, "vm.memory.usage": 0.5}),
        ({"cpu": 1.2, "mem": 4096, "maxmem": 2048}, {"vm.cpu.usage": 1.0, "vm.memory.usage": 1.0}),
        ({"disk": 9, "maxdisk": 8}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25, "vm.disk.usage": 1.0}),
        ({"cpu": None}, {"vm.cpu.usage": 0.0, "vm.memory.usage": 0.25}),
        ({"netin": "lots"}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}),
        ({"disk": 2500}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25, "vm.disk.usage": 0.25}),
        ({"disk": 2500, "maxdisk": 0}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}),
    ],
    ids=str,
)
def test_a_missing_or_invalid_value_gives_no_sample_or_the_value_0_and_a_share_is_at_most_1(
    pve: Cluster, post_metrics: Callable[[], list[Row]], members: Row, expected: dict[str, float]
) -> None:
    pve.rows = [vm(**members)]
    assert values(post_metrics()) == expected
