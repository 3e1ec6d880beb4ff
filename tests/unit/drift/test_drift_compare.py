"""The comparison of FulcrumCore, database and Proxmox: each difference has its kind and its repair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drift_facts import ACTIVE, RESERVED, VM_LOST, A, mapping

from executor.drift.compare import compare
from executor.drift.facts import (
    AUTOMATIC_REPAIRS,
    DriftKind,
    Facts,
    GuestFacts,
    MappingFacts,
    Repair,
    ServiceFacts,
    VolumesLeft,
)
from executor.model import MappingState

#: The id of another service than A.
B = "bbbbbbbb-0000-4000-8000-000000000002"
AGENT = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
PENDING_DELETION = MappingState.PENDING_DELETION


def guest(**changes: Any) -> GuestFacts:
    values: dict[str, Any] = {"vmid": 100, "node": "pve1", "name": "web", "markers": frozenset({A})}
    return GuestFacts(**(values | changes))


def volumes_left_of_deleted_vm(*volumes: str) -> VolumesLeft:
    return VolumesLeft(mapping=mapping(state="deleted"), volumes=volumes)


def service(**changes: Any) -> ServiceFacts:
    return ServiceFacts(**({"id": A, "status": "Started", "instance_id": f"{AGENT}/100"} | changes))


def facts(**changes: Any) -> Facts:
    """Return one service with its VM and its mapping, without any difference unless `changes` makes one."""
    defaults = {"mappings": (mapping(),), "guests": (guest(),), "services": (service(),), "agent_id": AGENT}
    return Facts(**(defaults | changes))


def summary(compared: Facts) -> list[tuple[DriftKind, int | None, Repair | None]]:
    return [(finding.kind, finding.vmid, finding.repair) for finding in compare(compared)]


UNMARKED, OTHER, BOTH = frozenset[str](), frozenset({B}), frozenset({A, B})
WITHOUT_GUEST: dict[str, Any] = {"guests": (), "vmids_without_guest": frozenset({100})}
NOTHING_EXCEPT_VOLUMES: dict[str, Any] = {"mappings": (), "guests": (), "services": ()}
DELETED = (service(status="Deleted", instance_id=""),)
NEW = (service(status="New", instance_id=""),)
OTHER_AGENT = "cccccccc-0000-4000-8000-000000000003"
FOREIGN: dict[str, Any] = {"mappings": (), "guests": (guest(agent_id=OTHER_AGENT),)}

DRIFT: list[tuple[str, dict[str, Any], list[tuple[DriftKind, int | None, Repair | None]]]] = [
    ("no difference", {}, []),
    ("VM gone", WITHOUT_GUEST, [(DriftKind.VM_GONE, 100, Repair.MARK_VM_LOST)]),
    ("VM gone, service deleted", WITHOUT_GUEST | {"services": DELETED}, [(DriftKind.VM_GONE, 100, Repair.FORGET)]),
    ("VM gone, service unknown", WITHOUT_GUEST | {"services": ()}, [(DriftKind.VM_GONE, 100, Repair.FORGET)]),
    ("VM not in the list, VMID not proven empty", {"guests": ()}, []),
    ("moved", {"guests": (guest(node="pve2"),)}, [(DriftKind.VM_MOVED, 100, Repair.CORRECT_NODE)]),
    ("node not stored yet", {"mappings": (mapping(node=""),)}, [(DriftKind.VM_MOVED, 100, Repair.CORRECT_NODE)]),
    ("renamed", {"guests": (guest(name="db"),)}, [(DriftKind.VM_RENAMED, 100, None)]),
    (
        "moved and renamed",
        {"guests": (guest(node="pve2", name="db"),)},
        [(DriftKind.VM_MOVED, 100, Repair.CORRECT_NODE), (DriftKind.VM_RENAMED, 100, None)],
    ),
    ("marker removed", {"guests": (guest(markers=UNMARKED),)}, [(DriftKind.VM_RECYCLED, 100, None)]),
    ("two markers", {"guests": (guest(markers=BOTH),)}, [(DriftKind.VM_RECYCLED, 100, None)]),
    ("a container", {"guests": (guest(kind="lxc", markers=UNMARKED),)}, [(DriftKind.VM_RECYCLED, 100, None)]),
    ("a container on the VM's VMID", {"guests": (guest(kind="lxc"),)}, [(DriftKind.VM_RECYCLED, 100, None)]),
    ("a container without difference", {"mappings": (mapping(kind="lxc"),), "guests": (guest(kind="lxc"),)}, []),
    (
        "a container unmapped",
        {"mappings": (), "guests": (guest(kind="lxc"),)},
        [(DriftKind.UNMAPPED_VM, 100, Repair.ADOPT)],
    ),
    ("pending deletion", {"mappings": (mapping(state=PENDING_DELETION),), "services": DELETED}, []),
    ("pending deletion, service unknown", {"mappings": (mapping(state=PENDING_DELETION),), "services": ()}, []),
    (
        "pending deletion, service not deleted",
        {"mappings": (mapping(state=PENDING_DELETION),)},
        [(DriftKind.MAPPING_UNREPORTED, 100, None)],
    ),
    (
        "pending deletion, moved",
        {"mappings": (mapping(state=PENDING_DELETION),), "services": DELETED, "guests": (guest(node="pve2"),)},
        [(DriftKind.VM_MOVED, 100, Repair.CORRECT_NODE)],
    ),
    (
        "pending deletion, renamed",
        {"mappings": (mapping(state=PENDING_DELETION),), "services": DELETED, "guests": (guest(name="db"),)},
        [(DriftKind.VM_RENAMED, 100, None)],
    ),
    (
        "pending deletion, unmarked guest on its VMID",
        {"mappings": (mapping(state=PENDING_DELETION),), "services": DELETED, "guests": (guest(markers=UNMARKED),)},
        [(DriftKind.VM_RECYCLED, 100, None)],
    ),
    (
        "pending deletion, gone",
        WITHOUT_GUEST | {"mappings": (mapping(state=PENDING_DELETION),), "services": DELETED},
        [(DriftKind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    (
        "pending deletion, gone, service not deleted",
        WITHOUT_GUEST | {"mappings": (mapping(state=PENDING_DELETION),)},
        [(DriftKind.VM_GONE, 100, Repair.MARK_VM_LOST)],
    ),
    (
        "volumes of a deleted VM",
        NOTHING_EXCEPT_VOLUMES | {"volumes_left": (volumes_left_of_deleted_vm("ceph:x"),)},
        [(DriftKind.VOLUMES_LEFT, 100, None)],
    ),
    (
        "volumes of a deleted VM, removed since then",
        NOTHING_EXCEPT_VOLUMES | {"volumes_left": (volumes_left_of_deleted_vm(),)},
        [(DriftKind.VOLUMES_LEFT, 100, Repair.CLEAR_VOLUMES_NOTE)],
    ),
    (
        "the deletion of the VM was interrupted",
        {"guests": (guest(name="", markers=UNMARKED, lock="destroyed"),)},
        [(DriftKind.VM_HALF_DESTROYED, 100, None)],
    ),
    ("turned into a template", {"guests": (guest(is_template=True),)}, [(DriftKind.VM_RECYCLED, 100, None)]),
    (
        "another service's VM on the VMID",
        {"guests": (guest(markers=OTHER),), "services": (service(), service(id=B, status="New", instance_id=""))},
        [(DriftKind.UNMAPPED_VM, 100, None), (DriftKind.VM_RECYCLED, 100, None)],
    ),
    ("VM unmapped", {"mappings": ()}, [(DriftKind.UNMAPPED_VM, 100, Repair.ADOPT)]),
    ("VM unmapped, never reported", {"mappings": (), "services": NEW}, [(DriftKind.UNMAPPED_VM, 100, Repair.ADOPT)]),
    (
        "VM unmapped, service deleted",
        {"mappings": (), "services": DELETED},
        [(DriftKind.VM_WITHOUT_SERVICE, 100, None)],
    ),
    ("VM unmapped, service unknown", {"mappings": (), "services": ()}, [(DriftKind.VM_WITHOUT_SERVICE, 100, None)]),
    (
        "VM of a service on another cluster",
        {"mappings": (), "services": (), "services_on_other_clusters": frozenset({A})},
        [],
    ),
    ("unmapped template with our marker", {"mappings": (), "services": (), "guests": (guest(is_template=True),)}, []),
    ("a copy of a VM, with its marker", {"guests": (guest(), guest(vmid=200))}, [(DriftKind.UNMAPPED_VM, 200, None)]),
    (
        "two unmapped VMs of one service",
        {"mappings": (), "guests": (guest(), guest(vmid=200))},
        [(DriftKind.UNMAPPED_VM, 100, None), (DriftKind.UNMAPPED_VM, 200, None)],
    ),
    ("lost VM exists again", {"mappings": (mapping(state=VM_LOST),)}, [(DriftKind.UNMAPPED_VM, 100, Repair.ADOPT)]),
    (
        "lost VM exists again on another VMID",
        {"mappings": (mapping(state=VM_LOST),), "guests": (guest(vmid=200),), "vmids_without_guest": frozenset({100})},
        [(DriftKind.UNMAPPED_VM, 200, Repair.ADOPT)],
    ),
    (
        "the VMID of an unmapped VM has a mapping of another service",
        {"mappings": (mapping(service_id=B, state=VM_LOST),)},
        [(DriftKind.UNMAPPED_VM, 100, None)],
    ),
    ("service without VM", WITHOUT_GUEST | {"mappings": ()}, [(DriftKind.SERVICE_WITHOUT_VM, 100, None)]),
    (
        "stopped without VM",
        WITHOUT_GUEST | {"mappings": (), "services": (service(status="Stopped"),)},
        [(DriftKind.SERVICE_WITHOUT_VM, 100, None)],
    ),
    ("VM lost", WITHOUT_GUEST | {"mappings": (mapping(state=VM_LOST),)}, [(DriftKind.SERVICE_WITHOUT_VM, 100, None)]),
    (
        "VM lost, service already has the status Lost",
        WITHOUT_GUEST | {"mappings": (mapping(state=VM_LOST),), "services": (service(status="Lost"),)},
        [],
    ),
    ("service without VM, VMID not proven empty", {"mappings": (), "guests": ()}, []),
    (
        "unmarked guest on the service's VMID",
        {"mappings": (), "guests": (guest(markers=UNMARKED),)},
        [(DriftKind.SERVICE_WITHOUT_VM, 100, None)],
    ),
    (
        "an instance id of another form",
        WITHOUT_GUEST | {"mappings": (), "services": (service(instance_id="vm-100"),)},
        [],
    ),
    ("mapped on another cluster", WITHOUT_GUEST | {"mappings": (), "services_on_other_clusters": frozenset({A})}, []),
    ("VM without service", {"services": DELETED}, [(DriftKind.VM_WITHOUT_SERVICE, 100, None)]),
    ("VM with an unknown service", {"services": ()}, [(DriftKind.VM_WITHOUT_SERVICE, 100, None)]),
    (
        "neither VM nor service, VM lost",
        WITHOUT_GUEST | {"mappings": (mapping(state=VM_LOST),), "services": DELETED},
        [(DriftKind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    (
        "neither VM nor service, reserved",
        WITHOUT_GUEST | {"mappings": (mapping(state=RESERVED),), "services": DELETED},
        [(DriftKind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    ("reserved, no clone yet", WITHOUT_GUEST | {"mappings": (mapping(state=RESERVED),), "services": NEW}, []),
    (
        "reserved, partial clone",
        {"mappings": (mapping(state=RESERVED),), "services": NEW, "guests": (guest(markers=UNMARKED),)},
        [],
    ),
    ("mapping never reported", {"services": NEW}, [(DriftKind.MAPPING_UNREPORTED, 100, None)]),
    (
        "FulcrumCore has another instance id",
        {"services": (service(instance_id=f"{AGENT}/7777"),)},
        [(DriftKind.MAPPING_UNREPORTED, 100, None)],
    ),
    (
        "service stopped, VM running",
        {"services": (service(status="Stopped", is_running=False),), "guests": (guest(is_running=True),)},
        [(DriftKind.POWER_DIFFERS, 100, None)],
    ),
    (
        "service started, VM stopped",
        {"services": (service(is_running=True),), "guests": (guest(is_running=False),)},
        [(DriftKind.POWER_DIFFERS, 100, None)],
    ),
    ("service started, VM running", {"services": (service(is_running=True),), "guests": (guest(is_running=True),)}, []),
    (
        "service stopped, VM running, a job ended a moment ago",
        {
            "services": (service(status="Stopped", is_running=False),),
            "guests": (guest(is_running=True),),
            "services_with_recently_ended_job": frozenset({A}),
        },
        [],
    ),
    ("the type names no running states", {"guests": (guest(is_running=False),)}, []),
    ("Proxmox's list lacks the power state of the VM", {"services": (service(is_running=True),)}, []),
    ("VM of another FulcrumCore", FOREIGN | {"services": ()}, []),
    ("service of this agent, marker with an earlier agent id", FOREIGN, [(DriftKind.UNMAPPED_VM, 100, Repair.ADOPT)]),
    (
        "VM marked by this agent, service unknown",
        {"mappings": (), "guests": (guest(agent_id=AGENT),), "services": ()},
        [(DriftKind.VM_WITHOUT_SERVICE, 100, None)],
    ),
    ("VM of another agent", {"mappings": (), "services": (), "other_agent_id_by_service": {A: OTHER_AGENT}}, []),
    (
        "the service of a mapping belongs to another agent",
        {"services": (), "other_agent_id_by_service": {A: OTHER_AGENT}},
        [(DriftKind.SERVICE_OF_OTHER_AGENT, 100, None)],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in DRIFT], ids=[row[0] for row in DRIFT])
def test_each_difference_has_its_kind_and_its_repair(
    changes: dict[str, Any], expected: list[tuple[DriftKind, int | None, Repair | None]]
) -> None:
    assert summary(facts(**changes)) == expected


@pytest.mark.parametrize("changes", [row[1] for row in DRIFT], ids=[row[0] for row in DRIFT])
def test_a_busy_service_has_no_findings(changes: dict[str, Any]) -> None:
    assert summary(facts(**changes, busy_services=frozenset({A, B}))) == []


def test_guests_with_markers_of_other_owners_are_counted() -> None:
    assert facts().other_owner_guest_count == 0
    assert facts(**FOREIGN | {"services": ()}).other_owner_guest_count == 1
    assert facts(mappings=(), services=(), other_agent_id_by_service={A: OTHER_AGENT}).other_owner_guest_count == 1
    assert (
        facts(mappings=(), services=(), guests=(guest(markers=UNMARKED, agent_id=OTHER_AGENT),)).other_owner_guest_count
        == 0
    )


def test_the_advice_to_delete_a_vm_of_an_unknown_service_has_a_condition_if_the_marker_names_no_agent() -> None:
    (by_an_earlier_version,) = compare(facts(mappings=(), services=()))
    (by_this_agent,) = compare(facts(mappings=(), services=(), guests=(guest(agent_id=AGENT),)))
    assert "belongs to no other FulcrumCore" in by_an_earlier_version.text
    assert "other FulcrumCore" not in by_this_agent.text


def test_every_kind_of_difference_is_in_the_table() -> None:
    assert {kind for _name, _facts, found in DRIFT for kind, _vmid, _repair in found} == set(DriftKind)


def test_every_finding_except_a_moved_vm_and_removed_volumes_needs_attention() -> None:
    found = [finding for row in DRIFT for finding in compare(facts(**row[1]))]
    harmless = [finding for finding in found if not finding.needs_operator]
    assert {finding.kind for finding in harmless} == {DriftKind.VM_MOVED, DriftKind.VOLUMES_LEFT}
    assert {finding.repair for finding in harmless if finding.kind is DriftKind.VOLUMES_LEFT} == {
        Repair.CLEAR_VOLUMES_NOTE
    }


def test_automatic_repairs_neither_create_nor_end_a_mapping() -> None:
    assert {Repair.CORRECT_NODE, Repair.MARK_VM_LOST, Repair.CLEAR_VOLUMES_NOTE} == AUTOMATIC_REPAIRS


any_service_id = st.sampled_from([A, B])
any_guest = st.builds(
    GuestFacts,
    vmid=st.integers(100, 103),
    node=st.sampled_from(["pve1", "pve2"]),
    name=st.sampled_from(["web", "db"]),
    markers=st.frozensets(any_service_id, max_size=2),
    is_template=st.booleans(),
    kind=st.sampled_from(["qemu", "lxc"]),
)
any_mapping = st.builds(
    mapping,
    id=st.integers(1, 9),
    service_id=any_service_id,
    vmid=st.integers(100, 103),
    state=st.sampled_from([ACTIVE, RESERVED, VM_LOST]),
)
any_service = st.builds(
    service,
    id=any_service_id,
    status=st.sampled_from(["New", "Started", "Lost", "Deleted"]),
    instance_id=st.sampled_from(["", f"{AGENT}/100", f"{AGENT}/101", "odd", "/", "a/²"]),
)


@given(
    mappings=st.lists(any_mapping, max_size=2, unique_by=(lambda each: each.service_id, lambda each: each.vmid)),
    guests=st.lists(any_guest, max_size=4, unique_by=lambda each: each.vmid),
    services=st.lists(any_service, max_size=2, unique_by=lambda each: each.id),
    empty=st.frozensets(st.integers(100, 103)),
)
def test_no_repair_is_proposed_without_proof(
    mappings: list[MappingFacts], guests: list[GuestFacts], services: list[ServiceFacts], empty: frozenset[int]
) -> None:
    """No existing VM is reported as gone, and only a VM with the service's marker is adopted."""
    vmids_without_guest = empty - {each.vmid for each in guests}
    findings = compare(
        Facts(mappings=mappings, guests=guests, services=services, vmids_without_guest=vmids_without_guest)
    )
    assert len({finding.key for finding in findings}) == len(findings)
    for finding in findings:
        if finding.kind is DriftKind.VM_GONE or finding.repair in (Repair.MARK_VM_LOST, Repair.FORGET):
            assert finding.vmid in vmids_without_guest
        if finding.repair is Repair.ADOPT:
            (found,) = [each for each in guests if each.has_only_marker_of(finding.service_id)]
            assert found.vmid == finding.vmid
            assert not any(each.may_have_vm for each in mappings if each.service_id == finding.service_id)
            assert not any(each.vmid == found.vmid for each in mappings if each.service_id != finding.service_id)
        if finding.repair is Repair.CORRECT_NODE:
            assert any(each.has_only_marker_of(finding.service_id) and each.node == finding.node for each in guests)
