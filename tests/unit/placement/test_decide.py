"""The choice of a node, as tables of cases, and the facts of a node computed from Proxmox's lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import JobError
from executor.placement.decide import (
    LOAD_UNKNOWN_TEXT,
    MIB,
    NodeFacts,
    Placement,
    PlacementConstraints,
    PlacementRules,
    choose_migration_node,
    choose_node,
)
from executor.placement.snapshot import ClusterSnapshot, node_facts
from executor.proxmox.rows import NodeRow, StorageRow, VmRow

GIB = 1024 * MIB


def node(name: str, **changes: Any) -> NodeFacts:
    """Return an idle node with 64 GiB, 16 cores, and the storage and bridge of `constraints()`."""
    defaults = {
        "cores": 16,
        "total_memory_bytes": 64 * GIB,
        "storages": frozenset({"ssd"}),
        "bridges": frozenset({"vmbr0"}),
    }
    return NodeFacts(name=name, **(defaults | changes))


def constraints(*usable: str, **changes: Any) -> PlacementConstraints:
    """Return what a VM with 4 GiB and 2 cores needs; its template is on the first of the usable nodes."""
    defaults: dict[str, Any] = {"memory_mib": 4096, "cores": 2, "storage": "ssd", "bridge": "vmbr0"}
    templates = dict.fromkeys(usable or ("pve1", "pve2", "pve3"), 9000)
    return PlacementConstraints(
        template_vmid_by_candidate_node=templates, **({"preferred_node": next(iter(templates))} | defaults | changes)
    )


PVE1, PVE2, PVE3 = node("pve1"), node("pve2"), node("pve3")


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [
        ([PVE1, PVE2], "pve1"),
        ([PVE2, PVE1], "pve1"),  # the order of the list does not matter
        ([replace(PVE1, allocated_memory_bytes=8 * GIB), PVE2], "pve2"),
        ([replace(PVE1, memory_bytes_used_by_host=8 * GIB), PVE2], "pve2"),
        ([replace(PVE1, allocated_cores=8), PVE2], "pve2"),
        ([replace(PVE1, cpu_usage=0.9), PVE2], "pve2"),
        ([replace(PVE1, in_progress_job_count=1), PVE2], "pve2"),
        ([replace(PVE1, in_progress_job_count=1), replace(PVE2, in_progress_job_count=2)], "pve1"),
        ([replace(PVE1, total_memory_bytes=32 * GIB, allocated_memory_bytes=16 * GIB), PVE2], "pve2"),
        ([replace(PVE1, is_online=False), PVE2], "pve2"),
        ([replace(PVE1, is_in_maintenance=True), PVE2], "pve2"),
        ([replace(PVE1, storages=frozenset({"hdd"})), PVE2], "pve2"),
        ([replace(PVE1, bridges=frozenset({"vmbr1"})), PVE2], "pve2"),
        # A storage or bridge that no node shows may be hidden from the token.
        ([replace(PVE1, storages=frozenset(), bridges=frozenset())], "pve1"),
        ([replace(PVE1, allocated_memory_bytes=61 * GIB), PVE2], "pve2"),
        ([replace(PVE1, allocated_memory_bytes=60 * GIB)], "pve1"),  # exactly 4 GiB are free
        ([replace(PVE1, cores=1), PVE2], "pve2"),
        ([replace(PVE1, cores=0)], "pve1"),  # unknown
        ([replace(PVE1, allocated_cores=62)], "pve1"),  # 16 cores with an overcommit of 4
    ],
)
def test_the_fitting_node_with_the_highest_score_is_chosen(nodes: list[NodeFacts], chosen: str) -> None:
    assert choose_node(constraints(), nodes, PlacementRules()).node == chosen


@pytest.mark.parametrize(
    ("nodes", "constraints_of_vm", "rules", "code", "text"),
    [
        (
            [replace(PVE1, allocated_memory_bytes=61 * GIB)],
            constraints(),
            PlacementRules(),
            "CAPACITY",
            "pve1 has 3072 MiB of memory free, 4096 requested",
        ),
        (
            [replace(PVE1, allocated_cores=63)],
            constraints(),
            PlacementRules(),
            "CAPACITY",
            "pve1 has 1 cores free, 2 requested",
        ),
        (
            [PVE1],
            replace(constraints(), cores=17),
            PlacementRules(),
            "CAPACITY",
            "pve1 has only 16 CPUs, and the guest needs 17 cores",
        ),
        ([PVE1], constraints(), PlacementRules(cpu_overcommit=0.1), "CAPACITY", "cores free"),
        ([PVE1], constraints(), PlacementRules(memory_overcommit=0.05), "CAPACITY", "memory free"),
        ([replace(PVE1, is_online=False)], constraints(), PlacementRules(), "NODE_DOWN", "pve1 is offline"),
        (
            [replace(PVE1, is_in_maintenance=True)],
            constraints(),
            PlacementRules(),
            "NODE_DOWN",
            "pve1 is in maintenance",
        ),
        ([PVE2], constraints("pve1"), PlacementRules(), "NOT_FOUND", "pve2 has no access to the template"),
        # The template's node may come back, so the missing access of the other node is not final.
        ([replace(PVE1, is_online=False), PVE2], constraints("pve1"), PlacementRules(), "NODE_DOWN", "pve1 is offline"),
        ([replace(PVE2, is_online=False)], constraints("pve1"), PlacementRules(), "NOT_FOUND", "pve2 is offline"),
        ([PVE1, PVE2], constraints(), PlacementRules(nodes=("pve9",)), "NOT_FOUND", "PROXMOX_NODES"),
        ([], constraints(), PlacementRules(), "NOT_FOUND", "PROXMOX_NODES"),
    ],
)
def test_when_no_node_fits_the_error_code_is_the_one_that_a_retry_most_likely_resolves(
    nodes: list[NodeFacts], constraints_of_vm: PlacementConstraints, rules: PlacementRules, code: str, text: str
) -> None:
    with pytest.raises(JobError) as caught:
        choose_node(constraints_of_vm, nodes, rules)
    assert caught.value.code == code
    assert text in caught.value.operator_detail
    assert "pve" not in caught.value.detail, "tenants read no names of nodes"
    assert "free" not in caught.value.detail


def test_overcommit_raises_the_capacity() -> None:
    full = replace(PVE1, allocated_memory_bytes=64 * GIB)
    assert choose_node(constraints(), [full], PlacementRules(memory_overcommit=1.5)).node == "pve1"


def test_only_the_nodes_of_the_rules_are_considered() -> None:
    assert choose_node(constraints(), [PVE1, PVE2, PVE3], PlacementRules(nodes=("pve2", "pve3"))).node == "pve2"


def test_the_template_of_the_chosen_node_is_returned() -> None:
    constraints_of_vm = replace(constraints(), template_vmid_by_candidate_node={"pve1": 9000, "pve2": 9002})
    assert (
        choose_node(constraints_of_vm, [replace(PVE1, in_progress_job_count=3), PVE2], PlacementRules()).template_vmid
        == 9002
    )


def test_the_reason_names_the_load_of_the_node_and_why_others_were_rejected() -> None:
    nodes = [
        replace(PVE1, is_in_maintenance=True),
        replace(PVE2, in_progress_job_count=1, cpu_usage=0.25),
        replace(PVE3, is_online=False),
    ]
    reason = choose_node(constraints(), nodes, PlacementRules()).reason
    assert reason.startswith("pve2: 94% of memory and 97% of cores stay free, 25% of CPU in use, 1 other jobs")
    assert reason.endswith("not pve1: is in maintenance; not pve3: is offline")


def test_if_the_capacity_of_no_node_is_visible_the_templates_node_is_chosen_and_the_reason_says_so() -> None:
    hidden = [replace(each, total_memory_bytes=0, cores=0) for each in (PVE1, PVE2, PVE3)]
    placed = choose_node(constraints("pve2", "pve1"), hidden, PlacementRules())
    assert placed.node == "pve2"
    assert LOAD_UNKNOWN_TEXT in placed.reason
    placed = choose_node(
        constraints("pve2", "pve1"), [hidden[0], replace(hidden[1], is_online=False)], PlacementRules()
    )
    assert placed.node == "pve1"


def test_without_visible_capacity_the_reason_names_no_template_if_the_chosen_node_is_not_the_preferred_one() -> None:
    hidden = [replace(each, total_memory_bytes=0, cores=0) for each in (PVE1, PVE2)]
    without_template = choose_node(constraints("pve1", "pve2", preferred_node=""), hidden, PlacementRules())
    other_node = choose_node(constraints("pve1", preferred_node="pve2"), hidden, PlacementRules())
    for placed in (without_template, other_node):
        assert placed.reason.startswith(f"pve1: the VM fits; {LOAD_UNKNOWN_TEXT}")


def test_of_equal_nodes_the_first_in_alphabetical_order_is_chosen() -> None:
    nodes = [replace(PVE1, name="pve10"), PVE1]
    assert choose_node(constraints("pve1", "pve10", preferred_node=""), nodes, PlacementRules()).node == "pve1"


def test_many_creates_in_a_row_are_spread_over_the_nodes() -> None:
    nodes = {each.name: each for each in (PVE1, PVE2, PVE3)}
    for _ in range(12):
        chosen = nodes[choose_node(constraints(), list(nodes.values()), PlacementRules()).node]
        nodes[chosen.name] = replace(
            chosen,
            in_progress_job_count=chosen.in_progress_job_count + 1,
            allocated_memory_bytes=chosen.allocated_memory_bytes + 4 * GIB,
            allocated_cores=chosen.allocated_cores + 2,
        )
    assert sorted(each.in_progress_job_count for each in nodes.values()) == [4, 4, 4]


MIGRATION_CASES = [
    ("too small a gain", [replace(PVE1, allocated_memory_bytes=8 * GIB), PVE2], ("pve1", "pve2"), {}, "pve1"),
    (
        "much more memory free elsewhere",
        [replace(PVE1, allocated_memory_bytes=40 * GIB), PVE2],
        ("pve1", "pve2"),
        {},
        "pve2",
    ),
    ("no other node has its disks", [replace(PVE1, allocated_memory_bytes=40 * GIB), PVE2], ("pve1",), {}, "pve1"),
    ("its node is in maintenance", [replace(PVE1, is_in_maintenance=True), PVE2], ("pve1", "pve2"), {}, "pve2"),
    ("its node is not in the rules", [PVE1, PVE2], ("pve1", "pve2"), {"nodes": ("pve2",)}, "pve2"),
    (
        "no visible capacity",
        [replace(PVE1, total_memory_bytes=0, cores=0), replace(PVE2, total_memory_bytes=0, cores=0)],
        ("pve1", "pve2"),
        {},
        "pve1",
    ),
]


@pytest.mark.parametrize(
    ("case", "nodes", "usable", "rules", "node"), MIGRATION_CASES, ids=[move[0] for move in MIGRATION_CASES]
)
def test_a_vm_is_moved_only_to_a_much_better_node(
    case: str, nodes: list[NodeFacts], usable: tuple[str, ...], rules: dict[str, Any], node: str
) -> None:
    constraints_of_vm = replace(
        constraints(*usable),
        template_vmid_by_candidate_node=dict.fromkeys(usable, 0),
        preferred_node="pve1",
        source_text="its disks",
    )
    assert choose_migration_node("pve1", constraints_of_vm, nodes, PlacementRules(**rules)).node == node


def test_the_error_for_a_vm_that_fits_nowhere_says_why() -> None:
    constraints_of_vm = replace(constraints("pve1"), preferred_node="pve1", source_text="its disks")
    with pytest.raises(JobError, match=r"NODE_DOWN: .*pve1 is in maintenance; pve2 has no access to its disks"):
        choose_migration_node(
            "pve1", constraints_of_vm, [replace(PVE1, is_in_maintenance=True), PVE2], PlacementRules()
        )


node_strategy = st.builds(
    node,
    st.sampled_from(["pve1", "pve2", "pve3", "pve4"]),
    is_online=st.booleans(),
    is_in_maintenance=st.booleans(),
    cores=st.integers(0, 64),
    total_memory_bytes=st.integers(0, 128 * GIB),
    memory_bytes_used_by_host=st.integers(0, 16 * GIB),
    allocated_memory_bytes=st.integers(0, 128 * GIB),
    allocated_cores=st.integers(0, 300),
    cpu_usage=st.floats(0, 1),
    in_progress_job_count=st.integers(0, 9),
    storages=st.sets(st.sampled_from(["ssd", "hdd"])).map(frozenset),
    bridges=st.sets(st.sampled_from(["vmbr0", "vmbr1"])).map(frozenset),
)


@given(
    st.lists(node_strategy, max_size=4, unique_by=lambda each: each.name), st.sets(st.sampled_from(["pve1", "pve3"]))
)
def test_no_vm_is_placed_where_it_does_not_fit(nodes: list[NodeFacts], usable: set[str]) -> None:
    constraints_of_vm = replace(
        constraints(), template_vmid_by_candidate_node=dict.fromkeys(sorted(usable), 9000), preferred_node="pve1"
    )
    try:
        placed = choose_node(constraints_of_vm, nodes, PlacementRules())
    except JobError as error:
        assert error.code in ("NODE_DOWN", "CAPACITY", "NOT_FOUND")  # noqa: PT017 (both outcomes are right)
        return
    chosen = next(each for each in nodes if each.name == placed.node)
    assert chosen.is_online
    assert not chosen.is_in_maintenance
    assert placed.node in usable
    if chosen.total_memory_bytes:
        total = chosen.memory_bytes_used_by_host + chosen.allocated_memory_bytes + constraints_of_vm.memory_mib * MIB
        assert total <= chosen.total_memory_bytes
    if chosen.cores:
        assert chosen.allocated_cores + constraints_of_vm.cores <= 4 * chosen.cores


def test_the_facts_of_a_node_count_its_running_guests_and_our_stopped_ones() -> None:
    vms = [
        VmRow(vmid=100, node="pve1", status="running", cores=2, max_memory_bytes=4 * GIB, memory_bytes=1 * GIB),
        VmRow(vmid=101, node="pve1", status="stopped", cores=4, max_memory_bytes=8 * GIB, tags=("smith",)),
        VmRow(vmid=102, node="pve1", status="stopped", cores=8, max_memory_bytes=16 * GIB),  # stopped, without our tag
        VmRow(vmid=9000, node="pve1", is_template=True, status="stopped", cores=1, max_memory_bytes=GIB),
        VmRow(vmid=103, node="pve2", status="running", cores=2, max_memory_bytes=4 * GIB, memory_bytes=GIB),
        VmRow(vmid=104, node="pve1", status="running", cores=1, max_memory_bytes=GIB),  # excluded by its VMID
    ]
    storages = [
        StorageRow(name="ssd", node="pve1", is_available=True),
        StorageRow(name="nfs", node="pve1", is_available=False),
        StorageRow(name="hdd", node="pve2", is_available=True),
    ]
    row = NodeRow(name="pve1", is_online=True, cpu_usage=0.5, cores=16, memory_bytes=5 * GIB, max_memory_bytes=64 * GIB)
    snapshot = ClusterSnapshot(
        read_at=0, nodes=[row], vms=vms, storages=storages, nodes_in_maintenance=frozenset({"pve1"})
    )
    facts = node_facts(row, snapshot, {104})
    assert (facts.allocated_memory_bytes, facts.allocated_cores) == (12 * GIB, 6)
    assert facts.memory_bytes_used_by_host == 4 * GIB  # 5 GiB in use, 1 GiB of them by a guest
    assert facts.storages == {"ssd"}
    assert facts.is_in_maintenance
    assert (facts.cores, facts.total_memory_bytes, facts.cpu_usage) == (16, 64 * GIB, 0.5)


def test_the_placement_is_added_to_the_result_unless_the_result_is_empty() -> None:
    placed = Placement(node="pve1", template_vmid=9000, reason="a reason")
    assert placed.add_placement_to_result({}) == {}
    assert placed.add_placement_to_result({"vmid": 100})["placement"] == {
        "node": "pve1",
        "template_vmid": 9000,
        "reason": "a reason",
    }
