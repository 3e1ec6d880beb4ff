"""The comparison of FulcrumCore, database and Proxmox: no conclusion is drawn from unreliable answers."""

from __future__ import annotations

from typing import Any

import pytest
from support.drift_facts import RESERVED, VM_LOST, mapping

from executor.drift.facts import (
    ClusterState,
    MappingFacts,
)
from executor.drift.inconclusive import why_fulcrum_is_inconclusive, why_proxmox_is_inconclusive


def mappings_of(count: int, **changes: Any) -> tuple[MappingFacts, ...]:
    """Return this number of mappings, with consecutive VMIDs from 100."""
    return tuple(mapping(id=n, service_id=f"{n:08x}", vmid=100 + n, **changes) for n in range(count))


def cluster(count: int = 0, **changes: Any) -> ClusterState:
    """Return a cluster whose list of guests has `count` VMs, with consecutive VMIDs, and a template."""
    listed = {100 + n: "pve1" for n in range(count)} | {9000: "pve1"}
    return ClusterState(**({"is_quorate": True, "may_see_all_vms": True, "node_by_vmid": listed} | changes))


ANSWERS: list[tuple[str, ClusterState, tuple[MappingFacts, ...], str]] = [
    ("every mapped VM is listed", cluster(10), mappings_of(10), ""),
    ("nothing is mapped", cluster(0, node_by_vmid={}), (), ""),
    ("no quorum", cluster(10, is_quorate=False), mappings_of(10), "no quorum"),
    ("no quorum, nothing mapped", cluster(0, is_quorate=False), (), "no quorum"),
    ("no privilege", cluster(10, may_see_all_vms=False), mappings_of(10), "lacks VM.Audit"),
    ("node of mappings offline", cluster(10, offline_nodes=frozenset({"pve1"})), mappings_of(10), "pve1 is offline"),
    ("another node offline", cluster(10, offline_nodes=frozenset({"pve9"})), mappings_of(10), ""),
    (
        "moved to a node that is offline now",
        cluster(0, node_by_vmid={100: "pve2", 101: "pve1"}, offline_nodes=frozenset({"pve2"})),
        mappings_of(2),
        "pve2 is offline",
    ),
    (
        "offline node with mappings of lost VMs only",
        cluster(2, offline_nodes=frozenset({"pve1"})),
        mappings_of(2, state=VM_LOST),
        "",
    ),
    ("an empty list of guests", cluster(0, node_by_vmid={}), mappings_of(1), "lists no guest at all"),
    ("the only mapped VM gone, a template listed", cluster(0), mappings_of(1), ""),
    ("three of three gone", cluster(0), mappings_of(3), ""),
    ("four of four gone", cluster(0), mappings_of(4), "4 of 4 mapped VMs"),
    ("three of ten gone", cluster(7), mappings_of(10), ""),
    ("four of ten gone", cluster(6), mappings_of(10), "4 of 10 mapped VMs"),
    ("30 % of 100", cluster(70), mappings_of(100), ""),
    ("31 % of 100", cluster(69), mappings_of(100), "31 of 100 mapped VMs"),
    ("reserved VMs may be missing", cluster(0), mappings_of(10, state=RESERVED), ""),
]


@pytest.mark.parametrize(("answer", "mappings", "text"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_no_conclusion_is_drawn_from_unreliable_answers(
    answer: ClusterState, mappings: tuple[MappingFacts, ...], text: str
) -> None:
    reason = why_proxmox_is_inconclusive(answer, mappings)
    assert text in reason
    assert bool(reason) == bool(text)


@pytest.mark.parametrize(("listed", "count", "is_inconclusive"), [(6, 10, False), (0, 10, False), (0, 0, False)])
def test_the_operator_can_confirm_that_a_list_with_few_guests_is_complete(
    listed: int, count: int, is_inconclusive: bool
) -> None:
    assert (
        bool(why_proxmox_is_inconclusive(cluster(listed), mappings_of(count), may_many_vms_be_missing=True))
        is is_inconclusive
    )


@pytest.mark.parametrize(
    "changes_of_cluster", [{"is_quorate": False}, {"may_see_all_vms": False}, {"offline_nodes": {"pve1"}}]
)
def test_the_operator_cannot_override_a_lost_quorum_a_missing_privilege_or_an_offline_node(
    changes_of_cluster: dict[str, Any],
) -> None:
    assert why_proxmox_is_inconclusive(cluster(10, **changes_of_cluster), mappings_of(10), may_many_vms_be_missing=True)


@pytest.mark.parametrize(
    ("count", "listed", "text"),
    [(0, 0, ""), (3, 0, ""), (4, 0, "4 of 4 mapped services"), (10, 7, ""), (10, 6, "4 of 10 mapped services")],
)
def test_no_conclusion_is_drawn_if_fulcrumcore_lists_too_few_services(count: int, listed: int, text: str) -> None:
    mappings = mappings_of(count)
    reason = why_fulcrum_is_inconclusive(mappings, {each.service_id for each in mappings[:listed]})
    assert text in reason
    assert bool(reason) == bool(text)
