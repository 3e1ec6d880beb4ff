"""The comparison of mappings, Proxmox and FulcrumCore: every kind of drift, every freeze, and what is no drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update
from support.databases import LONG_AGO, submit

from executor.database import audit, job_queue, mappings
from executor.database.engine import reading, transaction
from executor.database.tables import Job, Mapping
from executor.drift import compare as drift
from executor.drift import inspector as reconcile
from executor.drift.compare import BY_ITSELF, Facts, Finding, Kind, KnownService, Mapped, Repair, SeenVm, World
from executor.model import MappingState, ReportState

A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000002"
AGENT = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
ACTIVE, RESERVED, ORPHANED = MappingState.ACTIVE, MappingState.RESERVED, MappingState.ORPHANED
DOOMED = MappingState.DOOMED


def mapped(**wanted: Any) -> Mapped:
    values: dict[str, Any] = {"service_id": A, "vmid": 100, "node": "pve1", "name": "web", "state": ACTIVE}
    return Mapped(**({"id": 1, "updated_at": LONG_AGO} | values | wanted))


def vm(**wanted: Any) -> SeenVm:
    values: dict[str, Any] = {"vmid": 100, "node": "pve1", "name": "web", "markers": frozenset({A})}
    return SeenVm(**(values | wanted))


def service(**wanted: Any) -> KnownService:
    return KnownService(**({"id": A, "status": "Started", "instance_id": f"{AGENT}/100"} | wanted))


def in_order(**wanted: Any) -> Facts:
    """One service with its VM and its mapping; a test says what is otherwise."""
    return Facts(**({"mapped": (mapped(),), "seen": (vm(),), "services": (service(),)} | wanted))


def told(facts: Facts) -> list[tuple[Kind, int | None, Repair | None]]:
    return [(finding.kind, finding.vmid, finding.repair) for finding in drift.compare(facts)]


# --- what differs -------------------------------------------------------------------------------------------------

UNMARKED, OTHERS, TWICE = frozenset[str](), frozenset({B}), frozenset({A, B})
GONE: dict[str, Any] = {"seen": (), "absent": frozenset({100})}
DELETED = (service(status="Deleted", instance_id=""),)
NEW = (service(status="New", instance_id=""),)

DRIFT: list[tuple[str, dict[str, Any], list[tuple[Kind, int | None, Repair | None]]]] = [
    ("in order", {}, []),
    ("gone", GONE, [(Kind.VM_GONE, 100, Repair.MARK_ORPHANED)]),
    ("gone, service deleted", GONE | {"services": DELETED}, [(Kind.VM_GONE, 100, Repair.FORGET)]),
    ("gone, service unknown", GONE | {"services": ()}, [(Kind.VM_GONE, 100, Repair.FORGET)]),
    ("not seen, not proven", {"seen": ()}, []),
    ("moved", {"seen": (vm(node="pve2"),)}, [(Kind.VM_MOVED, 100, Repair.CORRECT_NODE)]),
    ("node not known yet", {"mapped": (mapped(node=""),)}, [(Kind.VM_MOVED, 100, Repair.CORRECT_NODE)]),
    ("renamed", {"seen": (vm(name="db"),)}, [(Kind.VM_RENAMED, 100, None)]),
    (
        "moved and renamed",
        {"seen": (vm(node="pve2", name="db"),)},
        [(Kind.VM_MOVED, 100, Repair.CORRECT_NODE), (Kind.VM_RENAMED, 100, None)],
    ),
    ("marker lost", {"seen": (vm(markers=UNMARKED),)}, [(Kind.VM_RECYCLED, 100, None)]),
    ("two markers", {"seen": (vm(markers=TWICE),)}, [(Kind.VM_RECYCLED, 100, None)]),
    ("a container", {"seen": (vm(kind="lxc", markers=UNMARKED),)}, [(Kind.VM_RECYCLED, 100, None)]),
    ("a container in the VM's place", {"seen": (vm(kind="lxc"),)}, [(Kind.VM_RECYCLED, 100, None)]),
    ("a container in order", {"mapped": (mapped(kind="lxc"),), "seen": (vm(kind="lxc"),)}, []),
    ("a container unmapped", {"mapped": (), "seen": (vm(kind="lxc"),)}, [(Kind.ORPHAN_VM, 100, Repair.ADOPT)]),
    ("doomed", {"mapped": (mapped(state=DOOMED),), "services": DELETED}, []),
    ("doomed, service unknown", {"mapped": (mapped(state=DOOMED),), "services": ()}, []),
    ("doomed, and the service lives", {"mapped": (mapped(state=DOOMED),)}, [(Kind.MAPPING_UNREPORTED, 100, None)]),
    (
        "doomed, and moved",
        {"mapped": (mapped(state=DOOMED),), "services": DELETED, "seen": (vm(node="pve2"),)},
        [(Kind.VM_MOVED, 100, Repair.CORRECT_NODE)],
    ),
    (
        "doomed, and renamed",
        {"mapped": (mapped(state=DOOMED),), "services": DELETED, "seen": (vm(name="db"),)},
        [(Kind.VM_RENAMED, 100, None)],
    ),
    (
        "doomed, and a stranger has its VMID",
        {"mapped": (mapped(state=DOOMED),), "services": DELETED, "seen": (vm(markers=UNMARKED),)},
        [(Kind.VM_RECYCLED, 100, None)],
    ),
    (
        "doomed, and gone",
        GONE | {"mapped": (mapped(state=DOOMED),), "services": DELETED},
        [(Kind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    (
        "doomed, gone, and the service lives",
        GONE | {"mapped": (mapped(state=DOOMED),)},
        [(Kind.VM_GONE, 100, Repair.MARK_ORPHANED)],
    ),
    ("made a template", {"seen": (vm(is_template=True),)}, [(Kind.VM_RECYCLED, 100, None)]),
    (
        "another service's VM on the VMID",
        {"seen": (vm(markers=OTHERS),), "services": (service(), service(id=B, status="New", instance_id=""))},
        [(Kind.ORPHAN_VM, 100, None), (Kind.VM_RECYCLED, 100, None)],
    ),
    ("VM unmapped", {"mapped": ()}, [(Kind.ORPHAN_VM, 100, Repair.ADOPT)]),
    ("VM unmapped, never reported", {"mapped": (), "services": NEW}, [(Kind.ORPHAN_VM, 100, Repair.ADOPT)]),
    ("VM unmapped, service deleted", {"mapped": (), "services": DELETED}, [(Kind.VM_WITHOUT_SERVICE, 100, None)]),
    ("VM unmapped, service unknown", {"mapped": (), "services": ()}, [(Kind.VM_WITHOUT_SERVICE, 100, None)]),
    ("VM of another agent", {"mapped": (), "services": (), "foreign": frozenset({A})}, []),
    ("unmapped template with our marker", {"mapped": (), "services": (), "seen": (vm(is_template=True),)}, []),
    ("a copy", {"seen": (vm(), vm(vmid=200))}, [(Kind.ORPHAN_VM, 200, None)]),
    (
        "two unmapped VMs of one service",
        {"mapped": (), "seen": (vm(), vm(vmid=200))},
        [(Kind.ORPHAN_VM, 100, None), (Kind.ORPHAN_VM, 200, None)],
    ),
    ("came back", {"mapped": (mapped(state=ORPHANED),)}, [(Kind.ORPHAN_VM, 100, Repair.ADOPT)]),
    (
        "came back on another VMID",
        {"mapped": (mapped(state=ORPHANED),), "seen": (vm(vmid=200),), "absent": frozenset({100})},
        [(Kind.ORPHAN_VM, 200, Repair.ADOPT)],
    ),
    (
        "its VMID is remembered for another service",
        {"mapped": (mapped(service_id=B, state=ORPHANED),)},
        [(Kind.ORPHAN_VM, 100, None)],
    ),
    ("service without VM", GONE | {"mapped": ()}, [(Kind.SERVICE_WITHOUT_VM, 100, None)]),
    (
        "stopped without VM",
        GONE | {"mapped": (), "services": (service(status="Stopped"),)},
        [(Kind.SERVICE_WITHOUT_VM, 100, None)],
    ),
    ("orphaned", GONE | {"mapped": (mapped(state=ORPHANED),)}, [(Kind.SERVICE_WITHOUT_VM, 100, None)]),
    ("lost is known", GONE | {"mapped": (mapped(state=ORPHANED),), "services": (service(status="Lost"),)}, []),
    ("service without VM, not proven", {"mapped": (), "seen": ()}, []),
    (
        "a stranger on the service's VMID",
        {"mapped": (), "seen": (vm(markers=UNMARKED),)},
        [(Kind.SERVICE_WITHOUT_VM, 100, None)],
    ),
    ("an instance id of another form", GONE | {"mapped": (), "services": (service(instance_id="vm-100"),)}, []),
    ("mapped elsewhere", GONE | {"mapped": (), "foreign": frozenset({A})}, []),
    ("VM without service", {"services": DELETED}, [(Kind.VM_WITHOUT_SERVICE, 100, None)]),
    ("VM with an unknown service", {"services": ()}, [(Kind.VM_WITHOUT_SERVICE, 100, None)]),
    (
        "neither VM nor service, orphaned",
        GONE | {"mapped": (mapped(state=ORPHANED),), "services": DELETED},
        [(Kind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    (
        "neither VM nor service, reserved",
        GONE | {"mapped": (mapped(state=RESERVED),), "services": DELETED},
        [(Kind.VM_WITHOUT_SERVICE, 100, Repair.FORGET)],
    ),
    ("reserved, nothing made yet", GONE | {"mapped": (mapped(state=RESERVED),), "services": NEW}, []),
    (
        "reserved, half made",
        {"mapped": (mapped(state=RESERVED),), "services": NEW, "seen": (vm(markers=UNMARKED),)},
        [],
    ),
    ("never reported", {"services": NEW}, [(Kind.MAPPING_UNREPORTED, 100, None)]),
    ("another instance", {"services": (service(instance_id=f"{AGENT}/7777"),)}, [(Kind.MAPPING_UNREPORTED, 100, None)]),
]


@pytest.mark.parametrize(("wanted", "expected"), [row[1:] for row in DRIFT], ids=[row[0] for row in DRIFT])
def test_each_difference_has_its_kind_and_its_repair(
    wanted: dict[str, Any], expected: list[tuple[Kind, int | None, Repair | None]]
) -> None:
    assert told(in_order(**wanted)) == expected


@pytest.mark.parametrize("wanted", [row[1] for row in DRIFT], ids=[row[0] for row in DRIFT])
def test_a_service_that_is_worked_on_never_drifts(wanted: dict[str, Any]) -> None:
    assert told(in_order(**wanted, unsettled=frozenset({A, B}))) == []


def test_every_kind_is_in_the_table() -> None:
    assert {kind for _name, _facts, found in DRIFT for kind, _vmid, _repair in found} == set(Kind)


def test_a_move_is_no_damage_and_everything_else_is() -> None:
    found = [finding for row in DRIFT for finding in drift.compare(in_order(**row[1]))]
    assert {finding.kind for finding in found if not finding.is_damage} == {Kind.VM_MOVED}


def test_what_is_done_without_being_asked_neither_makes_nor_ends_a_mapping() -> None:
    assert {Repair.CORRECT_NODE, Repair.MARK_ORPHANED} == BY_ITSELF


services = st.sampled_from([A, B])
guests = st.builds(
    SeenVm,
    vmid=st.integers(100, 103),
    node=st.sampled_from(["pve1", "pve2"]),
    name=st.sampled_from(["web", "db"]),
    markers=st.frozensets(services, max_size=2),
    is_template=st.booleans(),
    kind=st.sampled_from(["qemu", "lxc"]),
)
rows = st.builds(
    mapped,
    id=st.integers(1, 9),
    service_id=services,
    vmid=st.integers(100, 103),
    state=st.sampled_from([ACTIVE, RESERVED, ORPHANED]),
)
known = st.builds(
    service,
    id=services,
    status=st.sampled_from(["New", "Started", "Lost", "Deleted"]),
    instance_id=st.sampled_from(["", f"{AGENT}/100", f"{AGENT}/101", "odd", "/", "a/²"]),
)


@given(
    mapped=st.lists(rows, max_size=2, unique_by=(lambda row: row.service_id, lambda row: row.vmid)),
    seen=st.lists(guests, max_size=4, unique_by=lambda guest: guest.vmid),
    services=st.lists(known, max_size=2, unique_by=lambda each: each.id),
    proven=st.frozensets(st.integers(100, 103)),
)
def test_nothing_is_repaired_without_its_proof(
    mapped: list[Mapped], seen: list[SeenVm], services: list[KnownService], proven: frozenset[int]
) -> None:
    """Whatever the world looks like: a VM that is there is never called gone, and only a service's own is adopted."""
    absent = proven - {guest.vmid for guest in seen}
    findings = drift.compare(Facts(mapped=mapped, seen=seen, services=services, absent=absent))
    assert len({finding.key for finding in findings}) == len(findings)
    for finding in findings:
        if finding.kind is Kind.VM_GONE or finding.repair in (Repair.MARK_ORPHANED, Repair.FORGET):
            assert finding.vmid in absent
        if finding.repair is Repair.ADOPT:
            (found,) = [guest for guest in seen if guest.is_of(finding.service_id)]
            assert found.vmid == finding.vmid
            assert not any(row.is_held for row in mapped if row.service_id == finding.service_id)
            assert not any(row.vmid == found.vmid for row in mapped if row.service_id != finding.service_id)
        if finding.repair is Repair.CORRECT_NODE:
            assert any(guest.is_of(finding.service_id) and guest.node == finding.node for guest in seen)


# --- can it be believed -------------------------------------------------------------------------------------------


def many(count: int, **wanted: Any) -> tuple[Mapped, ...]:
    return tuple(mapped(id=n, service_id=f"{n:08x}", vmid=100 + n, **wanted) for n in range(count))


def world(count: int = 0, **wanted: Any) -> World:
    """The first so many VMIDs are in the list, and a template, unless a test says otherwise."""
    found = {100 + n: "pve1" for n in range(count)} | {9000: "pve1"}
    return World(**({"is_quorate": True, "may_see_all_vms": True, "listed": found} | wanted))


FREEZES: list[tuple[str, World, tuple[Mapped, ...], str]] = [
    ("all is well", world(10), many(10), ""),
    ("nothing is mapped", world(0, listed={}), (), ""),
    ("no quorum", world(10, is_quorate=False), many(10), "no quorum"),
    ("no quorum, nothing mapped", world(0, is_quorate=False), (), "no quorum"),
    ("no privilege", world(10, may_see_all_vms=False), many(10), "lacks VM.Audit"),
    ("node of mappings offline", world(10, offline_nodes=frozenset({"pve1"})), many(10), "pve1 is offline"),
    ("another node offline", world(10, offline_nodes=frozenset({"pve9"})), many(10), ""),
    (
        "moved to a node that is offline now",
        world(0, listed={100: "pve2", 101: "pve1"}, offline_nodes=frozenset({"pve2"})),
        many(2),
        "pve2 is offline",
    ),
    ("only remembered VMs on it", world(2, offline_nodes=frozenset({"pve1"})), many(2, state=ORPHANED), ""),
    ("an empty list", world(0, listed={}), many(1), "lists no guest at all"),
    ("one of one gone, others there", world(0), many(1), ""),
    ("three gone are few", world(0), many(3), ""),
    ("four of four gone", world(0), many(4), "4 of 4 mapped VMs"),
    ("three of ten gone", world(7), many(10), ""),
    ("four of ten gone", world(6), many(10), "4 of 10 mapped VMs"),
    ("30 % of 100", world(70), many(100), ""),
    ("31 % of 100", world(69), many(100), "31 of 100 mapped VMs"),
    ("reservations need not be there", world(0), many(10, state=RESERVED), ""),
]


@pytest.mark.parametrize(("shown", "rows", "said"), [row[1:] for row in FREEZES], ids=[row[0] for row in FREEZES])
def test_a_suspicious_world_is_not_believed(shown: World, rows: tuple[Mapped, ...], said: str) -> None:
    reason = drift.frozen(shown, rows)
    assert said in reason
    assert bool(reason) == bool(said)


@pytest.mark.parametrize(("listed", "count", "is_frozen"), [(6, 10, False), (0, 10, False), (0, 0, False)])
def test_a_person_may_say_that_the_short_list_is_true(listed: int, count: int, is_frozen: bool) -> None:
    assert bool(drift.frozen(world(listed), many(count), believe_list=True)) is is_frozen


@pytest.mark.parametrize("wrong", [{"is_quorate": False}, {"may_see_all_vms": False}, {"offline_nodes": {"pve1"}}])
def test_no_person_can_make_up_for_quorum_privilege_and_nodes(wrong: dict[str, Any]) -> None:
    assert drift.frozen(world(10, **wrong), many(10), believe_list=True)


@pytest.mark.parametrize(
    ("count", "known_services", "said"),
    [(0, 0, ""), (3, 0, ""), (4, 0, "4 of 4 mapped services"), (10, 7, ""), (10, 6, "4 of 10 mapped services")],
)
def test_a_short_list_from_fulcrumcore_is_not_believed(count: int, known_services: int, said: str) -> None:
    rows = many(count)
    listed = [service(id=row.service_id) for row in rows[:known_services]]
    reason = drift.frozen_by_core(rows, listed)
    assert said in reason
    assert bool(reason) == bool(said)


# --- repairs ------------------------------------------------------------------------------------------------------


def mapping(engine: Engine, state: MappingState = ACTIVE, **wanted: Any) -> Mapped:
    """Write a mapping and return it as a look would."""
    values = {"service_id": A, "cluster": "c", "vmid": 100, "name": "web"} | wanted
    with transaction(engine) as session:
        row = mappings.reserve(session, **values)
        assert row is not None
        session.execute(update(Mapping).where(Mapping.id == row.id).values(state=state, node="pve1"))
    return rows_of(engine)[values["service_id"]]


def rows_of(engine: Engine) -> dict[str, Mapped]:
    with reading(engine) as session:
        return {row.service_id: row for row in reconcile._rows(session, "c").mapped}


def entries(engine: Engine) -> list[tuple[str, str, Any, Any]]:
    with reading(engine) as session:
        return [(each.who, each.verb, each.before, each.after) for each in audit.listing(session)]


def finding(row: Mapped | None, repair: Repair, **wanted: Any) -> Finding:
    values: dict[str, Any] = {
        "kind": Kind.VM_GONE,
        "service_id": A,
        "vmid": 100,
        "text": "t",
        "node": "pve2",
        "name": "db",
    }
    return Finding(**(values | {"repair": repair, "mapped": row} | wanted))  # fmt: skip


@pytest.mark.parametrize(
    ("repair", "before", "after"),
    [
        (Repair.CORRECT_NODE, ACTIVE, (ACTIVE, "pve2", "web")),
        (Repair.MARK_ORPHANED, ACTIVE, (ORPHANED, "pve1", "web")),
        (Repair.FORGET, ORPHANED, None),
        (Repair.ADOPT, ORPHANED, (ACTIVE, "pve2", "db")),
    ],
)
def test_a_repair_changes_the_mapping_and_is_in_the_audit(
    engine: Engine, repair: Repair, before: MappingState, after: tuple[str, str, str] | None
) -> None:
    row = mapping(engine, before)
    assert reconcile.repair(engine, "c", finding(row, repair), who="alice")
    found = rows_of(engine).get(A)
    assert (found and (found.state, found.node, found.name)) == after
    ((who, verb, was, now),) = entries(engine)
    assert (who, verb, was["state"]) == ("alice", repair, before)
    assert now["state"] == (after[0] if after else MappingState.DELETED)


def test_an_unmapped_vm_is_adopted(engine: Engine) -> None:
    assert reconcile.repair(engine, "c", finding(None, Repair.ADOPT), who="alice")
    found = rows_of(engine)[A]
    assert (found.vmid, found.state, found.node, found.name) == (100, ACTIVE, "pve2", "db")
    assert entries(engine)[0][2] is None


def test_a_vm_that_came_back_on_another_vmid_gets_a_mapping_of_its_own(engine: Engine) -> None:
    row = mapping(engine, ORPHANED)
    assert reconcile.repair(engine, "c", finding(row, Repair.ADOPT, vmid=200), who="alice")
    assert (rows_of(engine)[A].vmid, rows_of(engine)[A].state) == (200, ACTIVE)


def test_an_adoption_that_cannot_be_leaves_the_old_mapping_as_it_was(engine: Engine) -> None:
    """The VMID was given to another service since the look."""
    row = mapping(engine, ORPHANED)
    mapping(engine, service_id=B, vmid=200)
    assert not reconcile.repair(engine, "c", finding(row, Repair.ADOPT, vmid=200), who="alice")
    assert rows_of(engine)[A] == row
    assert entries(engine) == []


@pytest.mark.parametrize("repair", list(Repair))
def test_a_repair_does_nothing_when_the_mapping_has_changed_since(engine: Engine, repair: Repair) -> None:
    row = replace(mapping(engine), updated_at=LONG_AGO)
    before = rows_of(engine)
    assert not reconcile.repair(engine, "c", finding(row, repair), who="alice")
    assert not reconcile.repair(engine, "c", finding(replace(row, id=4711), repair), who="alice")
    assert (rows_of(engine), entries(engine)) == (before, [])


@pytest.mark.parametrize("open_as", ["pending", "processing", "due"])
def test_a_repair_does_nothing_while_the_service_is_worked_on(engine: Engine, open_as: str) -> None:
    row = mapping(engine)
    job_id = submit(engine, service_id=A)
    with transaction(engine) as session:
        if open_as == "processing":
            assert job_queue.claim(session, "me", lease_s=30)
        if open_as == "due":
            ended = {"status": "completed", "report_state": ReportState.DUE}
            session.execute(update(Job).where(Job.id == job_id).values(**ended))
    assert not reconcile.repair(engine, "c", finding(row, Repair.MARK_ORPHANED), who="alice")
    with transaction(engine) as session:
        assert reconcile.unsettled(session) == reconcile.unsettled(session, A) == {A}
        assert reconcile.unsettled(session, B) == frozenset()
        settled = {"status": "completed", "report_state": ReportState.REPORTED}
        session.execute(update(Job).where(Job.id == job_id).values(**settled))
    assert reconcile.repair(engine, "c", finding(row, Repair.MARK_ORPHANED), who="alice")


def test_mappings_of_another_cluster_are_none_of_this_ones(engine: Engine) -> None:
    mapping(engine)
    with transaction(engine) as session:
        mappings.reserve(session, service_id=B, cluster="elsewhere", vmid=100, name="db")
    with reading(engine) as session:
        found = reconcile._rows(session, "c")
    assert ([row.service_id for row in found.mapped], found.foreign) == ([A], {B})
