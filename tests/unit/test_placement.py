"""Where a new VM goes: the decision as tables of cases, and what counts of a cluster's lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import JobError
from executor.placement.placer import (
    MIB,
    UNWEIGHED,
    Cluster,
    NodeFacts,
    Placement,
    Rules,
    Wish,
    decide,
    decide_move,
    node_facts,
)
from executor.proxmox.client import NodeRow, StorageRow, VmRow

GIB = 1024 * MIB


def node(name: str, **more: Any) -> NodeFacts:
    """A node with 64 GiB and 16 cores, idle, with all that anybody asks for."""
    usual = {"cores": 16, "memory_bytes": 64 * GIB, "storages": frozenset({"ssd"}), "bridges": frozenset({"vmbr0"})}
    return NodeFacts(name=name, **(usual | more))


def wish(*reachable: str, **more: Any) -> Wish:
    usual: dict[str, Any] = {"memory_mib": 4096, "cores": 2, "storage": "ssd", "bridge": "vmbr0"}
    templates = dict.fromkeys(reachable or ("pve1", "pve2", "pve3"), 9000)
    return Wish(templates=templates, home=next(iter(templates)), **(usual | more))


PVE1, PVE2, PVE3 = node("pve1"), node("pve2"), node("pve3")


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [
        ([PVE1, PVE2], "pve1"),
        ([PVE2, PVE1], "pve1"),  # the order of the list decides nothing
        ([replace(PVE1, promised_memory_bytes=8 * GIB), PVE2], "pve2"),
        ([replace(PVE1, own_memory_bytes=8 * GIB), PVE2], "pve2"),
        ([replace(PVE1, promised_cores=8), PVE2], "pve2"),
        ([replace(PVE1, cpu_share=0.9), PVE2], "pve2"),
        ([replace(PVE1, creates=1), PVE2], "pve2"),
        ([replace(PVE1, creates=1), replace(PVE2, creates=2)], "pve1"),
        ([replace(PVE1, memory_bytes=32 * GIB, promised_memory_bytes=16 * GIB), PVE2], "pve2"),
        ([replace(PVE1, is_online=False), PVE2], "pve2"),
        ([replace(PVE1, in_maintenance=True), PVE2], "pve2"),
        ([replace(PVE1, storages=frozenset({"hdd"})), PVE2], "pve2"),
        ([replace(PVE1, bridges=frozenset({"vmbr1"})), PVE2], "pve2"),
        # What no node is known to have may only not be shown to us.
        ([replace(PVE1, storages=frozenset(), bridges=frozenset())], "pve1"),
        ([replace(PVE1, promised_memory_bytes=61 * GIB), PVE2], "pve2"),
        ([replace(PVE1, promised_memory_bytes=60 * GIB)], "pve1"),  # the last 4 GiB
        ([replace(PVE1, promised_cores=62)], "pve1"),  # 16 cores, promised four times over
    ],
)
def test_the_node_with_most_room_among_those_that_fit_is_chosen(nodes: list[NodeFacts], chosen: str) -> None:
    assert decide(wish(), nodes, Rules()).node == chosen


@pytest.mark.parametrize(
    ("nodes", "asked", "rules", "code", "told"),
    [
        ([replace(PVE1, promised_memory_bytes=61 * GIB)], wish(), Rules(), "CAPACITY", "pve1 has 3072 MiB of memory"),
        ([replace(PVE1, promised_cores=63)], wish(), Rules(), "CAPACITY", "pve1 has 1 cores left, 2 are asked for"),
        ([PVE1], wish(), Rules(cpu_overcommit=0.1), "CAPACITY", "cores left"),
        ([PVE1], wish(), Rules(memory_overcommit=0.05), "CAPACITY", "memory left"),
        ([replace(PVE1, is_online=False)], wish(), Rules(), "NODE_DOWN", "pve1 is offline"),
        ([replace(PVE1, in_maintenance=True)], wish(), Rules(), "NODE_DOWN", "pve1 is in maintenance"),
        ([PVE2], wish("pve1"), Rules(), "NOT_FOUND", "pve2 the template cannot be had there"),
        # The template's node may come back; that the other one cannot have it says nothing final.
        ([replace(PVE1, is_online=False), PVE2], wish("pve1"), Rules(), "NODE_DOWN", "pve1 is offline"),
        ([replace(PVE2, is_online=False)], wish("pve1"), Rules(), "NOT_FOUND", "pve2 is offline"),
        ([PVE1, PVE2], wish(), Rules(nodes=("pve9",)), "NOT_FOUND", "PROXMOX_NODES"),
        ([], wish(), Rules(), "NOT_FOUND", "PROXMOX_NODES"),
    ],
)
def test_when_nothing_fits_the_code_asks_for_the_mildest_reaction(
    nodes: list[NodeFacts], asked: Wish, rules: Rules, code: str, told: str
) -> None:
    with pytest.raises(JobError) as caught:
        decide(asked, nodes, rules)
    assert caught.value.code == code
    assert told in caught.value.detail


def test_overcommit_makes_room() -> None:
    full = replace(PVE1, promised_memory_bytes=64 * GIB)
    assert decide(wish(), [full], Rules(memory_overcommit=1.5)).node == "pve1"


def test_only_the_operators_nodes_are_considered() -> None:
    assert decide(wish(), [PVE1, PVE2, PVE3], Rules(nodes=("pve2", "pve3"))).node == "pve2"


def test_the_template_is_the_one_that_serves_the_node() -> None:
    asked = replace(wish(), templates={"pve1": 9000, "pve2": 9002})
    assert decide(asked, [replace(PVE1, creates=3), PVE2], Rules()).template_vmid == 9002


def test_the_reason_says_why_there_and_why_not_elsewhere() -> None:
    nodes = [
        replace(PVE1, in_maintenance=True),
        replace(PVE2, creates=1, cpu_share=0.25),
        replace(PVE3, is_online=False),
    ]
    reason = decide(wish(), nodes, Rules()).reason
    assert reason.startswith("pve2: 94% of memory and 97% of cores stay free, 25% of CPU in use, 1 more creates")
    assert reason.endswith("not pve1: is in maintenance; not pve3: is offline")


def test_nodes_whose_memory_is_not_shown_leave_the_vm_on_the_templates_node_and_say_so() -> None:
    blind = [replace(each, memory_bytes=0, cores=0) for each in (PVE1, PVE2, PVE3)]
    placed = decide(wish("pve2", "pve1"), blind, Rules())
    assert placed.node == "pve2"
    assert UNWEIGHED in placed.reason
    placed = decide(wish("pve2", "pve1"), [blind[0], replace(blind[1], is_online=False)], Rules())
    assert placed.node == "pve1"


def test_a_burst_of_creates_does_not_land_on_one_node() -> None:
    nodes = {each.name: each for each in (PVE1, PVE2, PVE3)}
    for _ in range(12):
        chosen = nodes[decide(wish(), list(nodes.values()), Rules()).node]
        nodes[chosen.name] = replace(
            chosen,
            creates=chosen.creates + 1,
            promised_memory_bytes=chosen.promised_memory_bytes + 4 * GIB,
            promised_cores=chosen.promised_cores + 2,
        )
    assert sorted(each.creates for each in nodes.values()) == [4, 4, 4]


MOVES = [
    ("less than enough to gain", [replace(PVE1, promised_memory_bytes=8 * GIB), PVE2], ("pve1", "pve2"), {}, "pve1"),
    ("much more room elsewhere", [replace(PVE1, promised_memory_bytes=40 * GIB), PVE2], ("pve1", "pve2"), {}, "pve2"),
    ("nothing shared", [replace(PVE1, promised_memory_bytes=40 * GIB), PVE2], ("pve1",), {}, "pve1"),
    ("its node is to be emptied", [replace(PVE1, in_maintenance=True), PVE2], ("pve1", "pve2"), {}, "pve2"),
    ("its node is not ours any more", [PVE1, PVE2], ("pve1", "pve2"), {"nodes": ("pve2",)}, "pve2"),
    (
        "nothing can be weighed",
        [replace(PVE1, memory_bytes=0, cores=0), replace(PVE2, memory_bytes=0, cores=0)],
        ("pve1", "pve2"),
        {},
        "pve1",
    ),
]


@pytest.mark.parametrize(("why", "nodes", "reachable", "rules", "node"), MOVES, ids=[move[0] for move in MOVES])
def test_a_vm_is_moved_where_it_gains_and_stays_otherwise(
    why: str, nodes: list[NodeFacts], reachable: tuple[str, ...], rules: dict[str, Any], node: str
) -> None:
    asked = replace(wish(*reachable), templates=dict.fromkeys(reachable, 0), home="pve1", source="its disks")
    assert decide_move("pve1", asked, nodes, Rules(**rules)).node == node


def test_a_vm_that_may_be_nowhere_is_told_why() -> None:
    asked = replace(wish("pve1"), home="pve1", source="its disks")
    with pytest.raises(JobError, match=r"NODE_DOWN: .*pve1 is in maintenance; pve2 its disks cannot be had there"):
        decide_move("pve1", asked, [replace(PVE1, in_maintenance=True), PVE2], Rules())


any_node = st.builds(
    node,
    st.sampled_from(["pve1", "pve2", "pve3", "pve4"]),
    is_online=st.booleans(),
    in_maintenance=st.booleans(),
    cores=st.integers(0, 64),
    memory_bytes=st.integers(0, 128 * GIB),
    own_memory_bytes=st.integers(0, 16 * GIB),
    promised_memory_bytes=st.integers(0, 128 * GIB),
    promised_cores=st.integers(0, 300),
    cpu_share=st.floats(0, 1),
    creates=st.integers(0, 9),
    storages=st.sets(st.sampled_from(["ssd", "hdd"])).map(frozenset),
    bridges=st.sets(st.sampled_from(["vmbr0", "vmbr1"])).map(frozenset),
)


@given(st.lists(any_node, max_size=4, unique_by=lambda each: each.name), st.sets(st.sampled_from(["pve1", "pve3"])))
def test_no_vm_is_placed_where_it_does_not_fit(nodes: list[NodeFacts], reachable: set[str]) -> None:
    asked = replace(wish(), templates=dict.fromkeys(sorted(reachable), 9000), home="pve1")
    try:
        placed = decide(asked, nodes, Rules())
    except JobError as refusal:
        assert refusal.code in ("NODE_DOWN", "CAPACITY", "NOT_FOUND")  # noqa: PT017 (either outcome is a good one)
        return
    there = next(each for each in nodes if each.name == placed.node)
    assert there.is_online
    assert not there.in_maintenance
    assert placed.node in reachable
    if there.memory_bytes:
        promised = there.own_memory_bytes + there.promised_memory_bytes + asked.memory_mib * MIB
        assert promised <= there.memory_bytes
    if there.cores:
        assert there.promised_cores + asked.cores <= 4 * there.cores


def test_what_counts_of_the_lists() -> None:
    vms = [
        VmRow(vmid=100, node="pve1", status="running", cores=2, max_memory_bytes=4 * GIB, memory_bytes=1 * GIB),
        VmRow(vmid=101, node="pve1", status="stopped", cores=4, max_memory_bytes=8 * GIB, tags=("smith",)),
        VmRow(vmid=102, node="pve1", status="stopped", cores=8, max_memory_bytes=16 * GIB),  # parked by somebody
        VmRow(vmid=9000, node="pve1", is_template=True, status="stopped", cores=1, max_memory_bytes=GIB),
        VmRow(vmid=103, node="pve2", status="running", cores=2, max_memory_bytes=4 * GIB, memory_bytes=GIB),
        VmRow(vmid=104, node="pve1", status="running", cores=1, max_memory_bytes=GIB),  # counted by the caller
    ]
    storages = [
        StorageRow(name="ssd", node="pve1", is_available=True),
        StorageRow(name="nfs", node="pve1", is_available=False),
        StorageRow(name="hdd", node="pve2", is_available=True),
    ]
    row = NodeRow(name="pve1", is_online=True, cpu_share=0.5, cores=16, memory_bytes=5 * GIB, max_memory_bytes=64 * GIB)
    cluster = Cluster(asked_at=0, nodes=[row], vms=vms, storages=storages, in_maintenance=frozenset({"pve1"}))
    facts = node_facts(row, cluster, {104})
    assert (facts.promised_memory_bytes, facts.promised_cores) == (12 * GIB, 6)
    assert facts.own_memory_bytes == 4 * GIB  # 5 in use, one of them by a guest
    assert facts.storages == {"ssd"}
    assert facts.in_maintenance
    assert (facts.cores, facts.memory_bytes, facts.cpu_share) == (16, 64 * GIB, 0.5)


def test_the_decision_stands_in_the_result_unless_there_is_none() -> None:
    placed = Placement(node="pve1", template_vmid=9000, reason="because")
    assert placed.noted_in({}) == {}
    assert placed.noted_in({"vmid": 100})["placement"] == {
        "node": "pve1",
        "template_vmid": 9000,
        "reason": "because",
    }
