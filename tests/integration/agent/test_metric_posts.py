"""Metrics of VMs: the requests to Proxmox, and the posts to FulcrumCore.

In a round, the agent reads all VMs once and posts their samples. A sample is one metric of one VM.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects
from smith_lab.simulator.control import SimulatorThread
from sqlalchemy import Engine
from support.metrics_world import RATES, Cluster, Row, map_vm, values, vm

from executor.agent.heartbeat import Heartbeat
from executor.agent.metrics import (
    CPU_TIME_WINDOW_ENTRIES,
    MAX_ENTRIES_PER_S,
    SENDER_THREADS,
    SENDING_SHARE_OF_A_CORE,
    VmMetrics,
    _Pace,
)
from executor.database import mappings
from executor.database.engine import transaction
from executor.errors import FulcrumError, FulcrumUnavailable, JobError
from executor.shared.error_codes import ErrorCode


def log_text(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(str(record.msg) for record in caplog.records)


def reported_vmids(entries: list[Row]) -> set[int]:
    return {int(entry["agentInstanceId"].rpartition("/")[2]) for entry in entries}


def test_a_round_sends_one_request_to_proxmox_for_all_vms(
    pve: Cluster, sqlite_engine: Engine, post_metrics: Callable[[], list[Row]]
) -> None:
    for vmid in range(200, 220):
        map_vm(sqlite_engine, vmid)
    pve.rows = [vm(vmid) for vmid in range(200, 220)]
    assert len(post_metrics()) == 40
    assert len(pve.calls) == 1


def test_no_request_is_sent_without_mappings_or_agent_id(
    pve: Cluster, metrics: VmMetrics, sqlite_engine: Engine, post_metrics: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    metrics.state.agent_id = ""
    assert post_metrics() == []
    metrics.state.agent_id = str(uuid.uuid4())
    with transaction(sqlite_engine) as session:
        mappings.mark_mapping_deleted(session, mappings.active_mappings(session)[0].id, "gone")
    assert (post_metrics(), pve.calls) == ([], [])


def test_a_vm_that_is_mapped_in_another_cluster_has_no_metrics(
    pve: Cluster, sqlite_engine: Engine, post_metrics: Callable[[], list[Row]]
) -> None:
    """The database may be shared by agents of several clusters, which may use the same VMIDs."""
    map_vm(sqlite_engine, 102, cluster="another cluster")
    pve.rows = [vm(101), vm(102)]
    assert {body["agentInstanceId"].rpartition("/")[2] for body in post_metrics()} == {"101"}


def test_a_metric_type_missing_in_fulcrumcore_is_not_sent_and_logged_once(
    pve: Cluster,
    post_metrics: Callable[[], list[Row]],
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    caplog: pytest.LogCaptureFixture,
) -> None:
    admin = core[1]
    (cpu_type,) = (kind for kind in admin.list_all("metric-types") if kind["name"] == "vm.cpu.usage")
    admin.call("PATCH", f"/metric-types/{cpu_type['id']}", {"name": "renamed"})
    try:
        pve.rows = [vm()]
        assert ["vm.cpu.usage" in values(post_metrics()) for _ in range(2)] == [False, False]
    finally:
        admin.call("PATCH", f"/metric-types/{cpu_type['id']}", {"name": "vm.cpu.usage"})
    assert log_text(caplog).count("metric_types_missing") == 1
    assert "vm.cpu.usage" in values(post_metrics())


def test_a_404_for_a_service_that_fulcrumcore_does_not_know_is_no_failure(
    pve: Cluster,
    post_metrics: Callable[[], list[Row]],
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    sqlite_engine: Engine,
) -> None:
    map_vm(sqlite_engine, 404)
    pve.rows = [vm(404)]
    assert len(post_metrics()) == 2
    assert {call["status"] for call in core[0].history(method="POST", path_end="/metric-entries")} == {404}


def test_a_vm_that_fulcrumcore_does_not_know_is_left_out_of_the_next_rounds(
    pve: Cluster, metrics: VmMetrics, post_metrics: Callable[[], list[Row]], sqlite_engine: Engine
) -> None:
    map_vm(sqlite_engine, 404)
    pve.rows = [vm(), vm(404)]
    assert reported_vmids(post_metrics()) == {101, 404}
    assert reported_vmids(post_metrics()) == {101}
    metrics._skipped_until[404] = 0.0
    assert reported_vmids(post_metrics()) == {101, 404}


def test_a_vm_with_one_accepted_sample_is_not_left_out_because_of_a_404(
    pve: Cluster, post_metrics: Callable[[], list[Row]], core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    """FulcrumCore also answers 404 for a sample whose metric type was deleted a moment ago."""
    pve.rows = [vm()]
    core[0].add_fault("status", status=404, path="/metric-entries", method="POST", times=1)
    assert reported_vmids(post_metrics()) == {101}
    assert reported_vmids(post_metrics()) == {101}


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 403}, {"kind": "status", "status": 503}])
def test_the_first_post_that_fails_ends_the_round(
    pve: Cluster,
    metrics: VmMetrics,
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    """Each sender thread may have begun one post when the first answer arrives."""
    for vmid in range(500, 530):
        map_vm(metrics.engine, vmid)
    pve.rows = [vm(vmid) for vmid in range(500, 530)]
    core[0].add_fault(path="/metric-entries", method="POST", **fault)
    with pytest.raises(FulcrumUnavailable):
        metrics.report()
    posts = core[0].history(method="POST", path_end="/metric-entries")
    assert 1 <= len(posts) <= SENDER_THREADS
    assert "metrics_need_several_rounds" not in log_text(caplog)
    core[0].clear_faults()
    metrics.report()
    assert len(core[0].history(method="POST", path_end="/metric-entries")) >= 60


def test_an_unavailable_fulcrumcore_raises_an_error(
    pve: Cluster, metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    pve.rows = [vm()]
    core[0].add_fault("status", status=503, path="/metric-entries", method="POST")
    with pytest.raises(FulcrumUnavailable):
        metrics.report()


def test_a_proxmox_error_raises_a_job_error_and_does_not_discard_the_counters_of_the_last_round(
    pve: Cluster, metrics: VmMetrics, post_metrics: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    post_metrics()
    pve.status = 500
    with pytest.raises(JobError) as caught:
        metrics.report()
    assert caught.value.code is ErrorCode.PVE_API_ERROR
    pve.status = 200
    pve.rows = [vm(uptime=160)]
    assert set(values(post_metrics())) >= RATES


def test_vms_whose_samples_did_not_fit_into_a_round_come_first_in_the_next_round(
    pve: Cluster,
    metrics: VmMetrics,
    post_metrics: Callable[[], list[Row]],
    sqlite_engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Samples that do not fit are dropped, not sent later: FulcrumCore sets the timestamp when it receives a sample.

    The next round starts with the VMs of these samples, so no VM is left out for ever. The agent logs once that it
    needs several rounds.
    """
    vmids = set(range(500, 540))
    for vmid in vmids:
        map_vm(sqlite_engine, vmid)
    pve.rows = [vm(vmid) for vmid in sorted(vmids)]
    metrics.interval_s = 0.8  # enough for about twenty of eighty posts
    rounds: list[set[int]] = []  #: for each round, the VMIDs whose samples were sent
    for _ in range(60):
        rounds.append(reported_vmids(post_metrics()))
        if set().union(*rounds) >= vmids:
            break
    rounds = [sent for sent in rounds if sent]  # a busy machine may send nothing in a short round
    assert set().union(*rounds) >= vmids, "a VM was left out in every round"
    assert len(rounds) > 1, "all samples fitted into one round: nothing was tested"
    assert min(rounds[1]) >= max(rounds[0])
    assert log_text(caplog).count("metrics_need_several_rounds") == 1


def test_posts_are_spread_within_the_rate_limits() -> None:
    now = time.monotonic()
    pace_of_many_posts = _Pace(100_000, now + 60)
    waits_s = [pace_of_many_posts.plan_next_entry() for _ in range(100)]
    assert waits_s == sorted(waits_s)
    assert 98 / MAX_ENTRIES_PER_S < waits_s[-1] < 101 / MAX_ENTRIES_PER_S
    pace_of_few_posts = _Pace(3, now + 60)
    assert [round(pace_of_few_posts.plan_next_entry(), 2) for _ in range(3)] == [0.0, 0.05, 0.1]
    late_pace = _Pace(10, now - 1)
    assert late_pace.plan_next_entry() == 0.0
    assert late_pace.is_deadline_passed()


def test_posts_that_need_more_cpu_time_get_larger_gaps() -> None:
    pace = _Pace(100_000, time.monotonic() + 600)
    for _ in range(10 * CPU_TIME_WINDOW_ENTRIES):
        pace.adapt_to_cpu_time(0.01)
    waits_s = [pace.plan_next_entry() for _ in range(101)]
    assert (waits_s[-1] - waits_s[0]) / 100 == pytest.approx(0.01 / SENDING_SHARE_OF_A_CORE, rel=0.05)
    pace_of_cheap_posts = _Pace(3, time.monotonic() + 60)
    pace_of_cheap_posts.adapt_to_cpu_time(0.0001)
    assert [round(pace_of_cheap_posts.plan_next_entry(), 2) for _ in range(3)] == [0.0, 0.05, 0.1]


def test_stalled_metric_posts_do_not_delay_heartbeats_polls_and_job_requests(
    pve: Cluster, metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    simulator = core[0]
    simulator.add_fault("delay", path="/metric-entries", method="POST", delay_s=120)
    pve.rows = [vm()]
    reporting = threading.Thread(target=metrics.report)
    reporting.start()
    try:
        limit = time.monotonic() + 30
        while not any(thread.name.startswith("metric") for thread in threading.enumerate()):
            assert time.monotonic() < limit, "no post was started"
            time.sleep(0.01)
        Heartbeat(fulcrum=metrics.fulcrum, state=metrics.state).send()
        assert metrics.fulcrum.pending_jobs().jobs == []
        with pytest.raises(FulcrumError):  # there is no such job: FulcrumCore has answered the report
            metrics.fulcrum.complete_job(str(uuid.uuid4()))
        assert metrics.state.heartbeat_at > 0
        assert reporting.is_alive(), "the posts were not stalled"
    finally:
        simulator.clear_faults()
        reporting.join()


def test_a_stopping_agent_sends_nothing(
    pve: Cluster, metrics: VmMetrics, post_metrics: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    metrics.state.stopping.set()
    assert post_metrics() == []
