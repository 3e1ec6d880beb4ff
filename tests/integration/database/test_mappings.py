"""Reservations of VMIDs, names of VMs, and the states and history of mappings."""

from __future__ import annotations

import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select, update

from executor.database import mappings
from executor.database.engine import reading, transaction
from executor.database.tables import Mapping, db_now, utc_now
from executor.errors import DatabaseRefused, JobError
from executor.model import MappingState
from executor.shared.error_codes import ErrorCode

SERVICE = "0a1b2c3d-1111-4000-8000-000000000001"
OTHER = "ffffffff-2222-4000-8000-000000000002"
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


def reserve(engine: Engine, service_id: str = SERVICE, vmid: int = 101, cluster: str = "c") -> int | None:
    with transaction(engine) as session:
        wanted = {"service_id": service_id, "cluster": cluster, "vmid": vmid, "name": "vm"}
        mapping = mappings.reserve(session, **wanted)
        return None if mapping is None else mapping.id


def reserved(engine: Engine, *args: Any, **wanted: Any) -> int:
    mapping_id = reserve(engine, *args, **wanted)
    assert mapping_id is not None
    return mapping_id


def row(engine: Engine, mapping_id: int) -> Mapping:
    with reading(engine) as session:
        mapping = session.get(Mapping, mapping_id)
    assert mapping is not None
    return mapping


def apply_result(engine: Engine, mapping_id: int, **vm: Any) -> None:
    with transaction(engine) as session:
        mappings.apply_result(session, mapping_id, vm)


def pick(engine: Engine, low: int, high: int, *, quarantine_s: float = 3600, taken: set[int] | None = None) -> int:
    with transaction(engine) as session:
        return mappings.pick_vmid(session, ("c", low, high), quarantine_s=quarantine_s, used_vmids=taken or set())


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("web", "web-0a1b2c3d"),
        ("Web Server 01", "web-server-01-0a1b2c3d"),
        ("a.b_c", "a-b-c-0a1b2c3d"),
        ("-rf", "rf-0a1b2c3d"),
        ("--", "vm-0a1b2c3d"),
        ("", "vm-0a1b2c3d"),
        ("line\nbreak", "line-break-0a1b2c3d"),
        ("nul\x00byte", "nul-byte-0a1b2c3d"),
        ("Zürich", "zrich-0a1b2c3d"),
        ("сервер", "vm-0a1b2c3d"),
        ("\u202eevil", "evil-0a1b2c3d"),
        ("\U0001f600", "vm-0a1b2c3d"),
        ("\ud800", "vm-0a1b2c3d"),
        ("x" * 64, "x" * 54 + "-0a1b2c3d"),
        ("x" * 53 + "-y" * 10, "x" * 53 + "-0a1b2c3d"),
        ("$(reboot)", "reboot-0a1b2c3d"),
        ("{{ lookup('pipe','id') }}", "lookup-pipe-id-0a1b2c3d"),
        ("9000", "9000-0a1b2c3d"),
    ],
)
def test_a_host_becomes_a_dns_label(host: str, expected: str) -> None:
    assert mappings.vm_name(host, SERVICE) == expected


def test_a_vms_name_ends_with_eight_digits_of_the_service_id() -> None:
    assert mappings.vm_name("web", "0A1B-2C3D-4E5F") == "web-0a1b2c3d"


@given(st.text(), st.uuids(), st.uuids())
def test_any_name_is_a_dns_label_that_belongs_to_one_service(host: str, one: uuid.UUID, other: uuid.UUID) -> None:
    name = mappings.vm_name(host, str(one))
    assert DNS_LABEL.match(name)
    assert (name == mappings.vm_name(host, str(other))) == (one.hex[:8] == other.hex[:8])


# --- reservations -------------------------------------------------------------------------------------------------


def test_a_reservation_is_written_with_its_marker(engine: Engine) -> None:
    mapping = row(engine, reserved(engine))
    assert (mapping.service_id, mapping.vmid, mapping.state) == (SERVICE, 101, "reserved")
    assert (mapping.marker, mapping.node, mapping.deleted_at) == (f"smith-uid={SERVICE}", None, None)


@pytest.mark.parametrize(
    ("service_id", "vmid", "cluster", "is_reserved"),
    [
        (OTHER, 101, "c", False),  # another service has the VMID
        (SERVICE, 102, "c", False),  # the service has one
        (SERVICE, 101, "c", False),
        (OTHER, 102, "c", True),
        (OTHER, 101, "another cluster", True),
        (SERVICE, 101, "another cluster", False),
    ],
)
def test_no_two_reservations_have_a_service_or_vmid_in_common(
    engine: Engine, service_id: str, vmid: int, cluster: str, is_reserved: bool
) -> None:
    reserved(engine)
    assert (reserve(engine, service_id, vmid, cluster) is not None) == is_reserved


def test_a_refused_reservation_leaves_the_transaction_usable(engine: Engine) -> None:
    reserved(engine)
    with transaction(engine) as session:
        wanted = {"service_id": OTHER, "cluster": "c", "name": "vm"}
        assert mappings.reserve(session, vmid=101, **wanted) is None
        assert mappings.reserve(session, vmid=102, **wanted) is not None
    with reading(engine) as session:
        assert [mapping.vmid for mapping in mappings.list_mappings(session)] == [102, 101]


def test_simultaneous_creates_reserve_different_vmids(engine: Engine) -> None:
    start = threading.Barrier(6, timeout=60)

    def create(_: int) -> int:
        service_id = str(uuid.uuid4())
        start.wait()
        while True:
            vmid = pick(engine, 101, 106)
            if reserve(engine, service_id, vmid) is not None:
                return vmid

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(create, range(6))) == [101, 102, 103, 104, 105, 106]


def test_one_of_two_simultaneous_creates_of_a_service_reserves(engine: Engine) -> None:
    start = threading.Barrier(4, timeout=60)

    def create(number: int) -> bool:
        start.wait()
        return reserve(engine, SERVICE, 101 + number) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(4))) == 1


# --- choosing a VMID ----------------------------------------------------------------------------------------------


def test_the_last_free_vmid_of_a_range_is_found(engine: Engine) -> None:
    reserved(engine, SERVICE, 1000)
    assert pick(engine, 1000, 3000, taken=set(range(1000, 3000))) == 3000


def test_a_full_range_is_a_capacity_error(engine: Engine) -> None:
    reserved(engine, SERVICE, 101)
    reserved(engine, OTHER, 102)
    with pytest.raises(JobError, match="no VMID is free between 101 and 103") as caught:
        pick(engine, 101, 103, taken={103})
    assert caught.value.code is ErrorCode.CAPACITY


def test_vmids_of_other_clusters_and_ranges_are_ignored(engine: Engine) -> None:
    reserved(engine, SERVICE, 101, "another cluster")
    reserved(engine, OTHER, 102)
    assert pick(engine, 101, 101) == 101


def test_vmids_are_spread_over_the_range(engine: Engine) -> None:
    """Agents that share a Proxmox cluster but no database would collide on every VMID if each chose the lowest."""
    assert len({pick(engine, 100_000, 199_999) for _ in range(10)}) > 1


@pytest.mark.parametrize("how", ["deleted", "released"])
def test_a_freed_vmid_is_in_quarantine_before_it_is_used_again(engine: Engine, how: str) -> None:
    mapping_id = reserved(engine)
    if how == "deleted":
        apply_result(engine, mapping_id, vmid=101, status="absent")
    else:
        with transaction(engine) as session:
            mappings.mark_deleted(session, mapping_id, "the VMID is another guest's")
    with pytest.raises(JobError, match="CAPACITY"):
        pick(engine, 101, 101)
    assert pick(engine, 101, 101, quarantine_s=0) == 101
    with transaction(engine) as session:
        session.execute(update(Mapping).values(deleted_at=db_now(-3601)))
    assert pick(engine, 101, 101) == 101


def test_a_vmid_is_not_used_while_volumes_of_its_deleted_vm_exist(engine: Engine) -> None:
    """A new VM on this VMID would have the disks of a former customer under its own names."""
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, vmid=101, status="absent", volumes_left=["ceph:vm-101-disk-0"])
    with transaction(engine) as session:
        session.execute(update(Mapping).values(deleted_at=db_now(-1_000_000)))
        assert mappings.prune(session, deleted_before=utc_now(), limit=9) == 0
    with pytest.raises(JobError, match="CAPACITY"):
        pick(engine, 101, 101)
    with transaction(engine) as session:
        mappings.note_volumes_removed(session, mapping_id)
    assert pick(engine, 101, 101) == 101


# --- states of a mapping ------------------------------------------------------------------------------------------


def test_a_result_activates_the_mapping(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, vmid=101, status="running", node="pve1", mac_address="BC:24:11:00:00:01")
    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.mac_address) == ("active", "pve1", "BC:24:11:00:00:01")


def test_a_result_without_a_node_keeps_the_stored_node(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="running", node="pve1", mac_address="BC:24:11:00:00:01")
    apply_result(engine, mapping_id, status="stopped", node="", mac_address="")
    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.mac_address) == ("active", "pve1", "BC:24:11:00:00:01")


def test_a_deleted_mapping_never_changes(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="absent")
    deleted = row(engine, mapping_id)
    apply_result(engine, mapping_id, status="running", node="pve9")
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "late")
        mappings.mark_deleted(session, mapping_id, "late")
        assert mappings.current(session, SERVICE) is None
    after = row(engine, mapping_id)
    assert (after.state, after.node, after.note, after.deleted_at) == ("deleted", None, None, deleted.deleted_at)


def test_every_vm_of_a_service_stays_in_the_history(engine: Engine) -> None:
    for vmid in (101, 102, 103):
        apply_result(engine, reserved(engine, SERVICE, vmid), status="absent")
    last = reserved(engine, SERVICE, 101)
    with reading(engine) as session:
        assert [mapping.vmid for mapping in mappings.find(session, SERVICE)] == [101, 103, 102, 101]
        assert len(mappings.find(session, "101")) == 2
        current = mappings.current(session, SERVICE)
        assert current is not None
        assert current.id == last
        assert [mapping.id for mapping in mappings.list_mappings(session)] == [last]
        assert len(mappings.list_mappings(session, states=[MappingState.DELETED])) == 3


def test_a_mapping_of_a_lost_vm_is_still_the_services_and_keeps_its_vmid(engine: Engine) -> None:
    """A later delete must find it, and no other service may get its VMID while the VM may still exist."""
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="running")
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        current = mappings.current(session, SERVICE)
        assert current is not None
        assert (current.state, current.note) == ("vm_lost", "VM_NOT_FOUND: gone")
        assert list(mappings.active(session)) == []
    assert reserve(engine, OTHER, 101) is None
    apply_result(engine, mapping_id, status="running")
    assert (row(engine, mapping_id).state, row(engine, mapping_id).note) == ("active", None)


def test_a_vm_without_a_row_is_inserted_as_active(engine: Engine) -> None:
    with transaction(engine) as session:
        wanted = {"service_id": SERVICE, "cluster": "c", "name": "web-0a1b2c3d", "node": "pve1"}
        adopted = mappings.insert_active(session, vmid=101, **wanted)
        assert adopted is not None
        assert mappings.insert_active(session, vmid=102, **wanted) is None
    mapping = row(engine, adopted.id)
    assert (mapping.state, mapping.node, mapping.name) == ("active", "pve1", "web-0a1b2c3d")
    assert mapping.note == "found by its marker"


def adopt(engine: Engine, vmid: int, service_id: str = SERVICE, cluster: str = "c") -> int | None:
    with transaction(engine) as session:
        wanted = {"cluster": cluster, "name": "found", "node": "pve2", "kind": "lxc"}
        mapping = mappings.adopt(session, service_id=service_id, vmid=vmid, **wanted)
        return None if mapping is None else mapping.id


def lost(engine: Engine, *args: Any) -> int:
    mapping_id = reserved(engine, *args)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "gone")
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    return mapping_id


def test_adopting_a_lost_vm_that_exists_again_takes_its_present_name(engine: Engine) -> None:
    mapping_id = lost(engine)
    before = row(engine, mapping_id)

    assert adopt(engine, 101) == mapping_id

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.name, mapping.kind) == ("active", "pve2", "found", "lxc")
    assert mapping.note == "found by its marker"
    assert mapping.updated_at > before.updated_at


def test_adopting_another_vmid_deletes_the_mapping_of_the_lost_vm(engine: Engine) -> None:
    old = lost(engine)

    new = adopt(engine, 102)

    assert new not in {None, old}
    ended, new_row = row(engine, old), row(engine, new or 0)
    assert (ended.state, ended.note) == ("deleted", "the VM was found on VMID 102")
    assert ended.deleted_at is not None
    assert (new_row.state, new_row.vmid, new_row.node, new_row.name) == ("active", 102, "pve2", "found")


@pytest.mark.parametrize(("vmid", "cluster"), [(102, "c"), (101, "another cluster")])
def test_another_vm_is_not_adopted_while_the_service_has_one(engine: Engine, vmid: int, cluster: str) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="running", node="pve1")

    assert adopt(engine, vmid, SERVICE, cluster) is None

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.vmid, mapping.node) == ("active", 101, "pve1")


def test_a_vmid_of_another_service_is_not_adopted_and_the_lost_vms_mapping_stays(engine: Engine) -> None:
    mapping_id = lost(engine)
    reserved(engine, OTHER, 102)

    assert adopt(engine, 102) is None
    assert row(engine, mapping_id).state == "vm_lost"


def test_the_node_of_a_vm_is_stored(engine: Engine) -> None:
    mapping_id, other = reserved(engine), reserved(engine, OTHER, 102)
    with transaction(engine) as session:
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, mapping_id)
    with transaction(engine) as session:
        mappings.record_node(session, mapping_id, "pve3")

    assert row(engine, mapping_id).node == "pve3"
    assert row(engine, mapping_id).updated_at > before.updated_at
    assert row(engine, other).node is None


def test_a_vmid_is_picked_with_an_index_for_each_reason_why_a_vmid_is_not_available(engine: Engine) -> None:
    """A scan of the whole table would take longer with every VM that was ever deleted."""
    statements: list[tuple[str, Any]] = []

    def record(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT mappings.vmid"):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    pick(engine, 100, 199)
    event.remove(engine, "before_cursor_execute", record)
    steps = []
    with engine.connect() as connection:
        explain = "EXPLAIN QUERY PLAN"
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is empty
            explain = "EXPLAIN"
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            steps.append(" ".join(str(row[-1]) for row in plan))
    assert len(steps) == 3
    assert "ix_mappings_one_per_vmid" in steps[0]
    assert "ix_mappings_deleted" in steps[1]
    assert "ix_mappings_volumes_left" in steps[2]


def test_the_current_mapping_of_a_service_is_read_from_its_index(sqlite_engine: Engine) -> None:
    statements: list[tuple[str, Any]] = []

    def record(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(sqlite_engine, "before_cursor_execute", record)
    with reading(sqlite_engine) as session:
        mappings.current(session, SERVICE)
    event.remove(sqlite_engine, "before_cursor_execute", record)
    ((statement, parameters),) = [each for each in statements if each[0].startswith("SELECT")]
    with sqlite_engine.connect() as connection:
        (step,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    assert "ix_mappings_one_per_service" in step[-1]


def test_only_a_reserved_mapping_is_deleted_as_a_reservation(engine: Engine) -> None:
    reservation, with_vm = reserved(engine), reserved(engine, OTHER, 102)
    other_reservation = reserved(engine, str(uuid.uuid4()), 103)
    apply_result(engine, with_vm, status="running", node="pve1")
    with transaction(engine) as session:
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, reservation)
    with transaction(engine) as session:
        for mapping_id in (reservation, with_vm):
            mappings.delete_reservation(session, mapping_id, "VM_ID_TAKEN: another VM has the VMID")

    deleted, kept = row(engine, reservation), row(engine, with_vm)
    assert deleted.updated_at > before.updated_at
    assert row(engine, other_reservation).state == "reserved"
    assert (deleted.state, deleted.note) == ("deleted", "VM_ID_TAKEN: another VM has the VMID")
    assert deleted.deleted_at is not None
    assert (kept.state, kept.note, kept.deleted_at) == ("active", None, None)


def test_a_deleted_mapping_keeps_the_reason(engine: Engine) -> None:
    mapping_id = reserved(engine)
    with transaction(engine) as session:
        mappings.mark_deleted(session, mapping_id, "the VMID is another guest's")
    assert row(engine, mapping_id).note == "the VMID is another guest's"


def test_a_mapping_that_is_set_to_active_has_no_note_and_no_scheduled_deletion(engine: Engine) -> None:
    mapping_id, other = reserved(engine), reserved(engine, OTHER, 102)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, mapping_id)
    with transaction(engine) as session:
        mappings.mark_active(session, mapping_id)

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.note, mapping.delete_at) == ("active", None, None)
    assert mapping.updated_at > before.updated_at
    assert row(engine, other).state == "reserved"


def test_the_volumes_that_a_deleted_vm_left_are_listed_until_they_are_removed(engine: Engine) -> None:
    volumes = ["ceph:vm-101-disk-0", "ceph:vm-101-cloudinit"]
    first, second = reserved(engine), reserved(engine, OTHER, 102)
    elsewhere = reserved(engine, str(uuid.uuid4()), 101, "another cluster")
    reason = reserved(engine, str(uuid.uuid4()), 103)
    current = reserved(engine, str(uuid.uuid4()), 104)
    for mapping_id in (second, first, elsewhere):
        apply_result(engine, mapping_id, status="absent", volumes_left=volumes)
    with transaction(engine) as session:
        mappings.mark_deleted(session, reason, "VM_ID_TAKEN")
        mappings.mark_vm_lost(session, current, "VOLUMES_LEFT: a")
    with transaction(engine) as session:
        found = mappings.with_volumes_left(session, "c")
        assert [mapping.id for mapping in found] == [first, second]
        assert [mappings.volumes_left(mapping) for mapping in found] == [volumes, volumes]
        for mapping_id in (first, reason, current):
            mappings.note_volumes_removed(session, mapping_id)
        assert [mapping.id for mapping in mappings.with_volumes_left(session, "another cluster")] == [elsewhere]

    assert row(engine, first).note is None
    assert mappings.has_volumes_left(row(engine, second))
    assert not mappings.has_volumes_left(row(engine, first))
    assert not mappings.has_volumes_left(row(engine, reason))
    assert (row(engine, reason).note, row(engine, current).note) == ("VM_ID_TAKEN", "VOLUMES_LEFT: a")


# --- prune --------------------------------------------------------------------------------------------------------


def test_rows_of_mappings_are_removed_in_the_order_of_their_deletion_up_to_the_limit(engine: Engine) -> None:
    ages_s = {101: 20, 102: 40, 103: 30, 104: 0}
    mapping_ids = {vmid: reserved(engine, str(uuid.uuid4()), vmid) for vmid in ages_s}
    current, with_volumes = reserved(engine, SERVICE, 105), reserved(engine, OTHER, 106)
    for mapping_id in mapping_ids.values():
        apply_result(engine, mapping_id, status="absent")
    apply_result(engine, with_volumes, status="absent", volumes_left=["ceph:vm-106-disk-0"])
    now = utc_now()
    with transaction(engine) as session:
        session.execute(update(Mapping).values(deleted_at=now - timedelta(seconds=100)))
        for vmid, age_s in ages_s.items():
            is_row = Mapping.id == mapping_ids[vmid]
            session.execute(
                update(Mapping).where(is_row).values(deleted_at=now - timedelta(seconds=age_s), note="gone")
            )

    removed = []
    for _ in range(3):
        with transaction(engine) as session:
            count = mappings.prune(session, deleted_before=now - timedelta(seconds=10), limit=2)
            left = set(session.scalars(select(Mapping.id)))
        removed.append((count, [vmid for vmid in ages_s if mapping_ids[vmid] not in left]))
    assert removed == [(2, [102, 103]), (1, [101, 102, 103]), (0, [101, 102, 103])]
    assert {current, with_volumes} <= left


# --- queries ------------------------------------------------------------------------------------------------------


def test_active_mappings_are_filtered_by_cluster_and_ordered_by_vmid(engine: Engine) -> None:
    for vmid, cluster in ((103, "c"), (101, "c"), (102, "d")):
        apply_result(engine, reserved(engine, str(uuid.uuid4()), vmid, cluster), status="running")
    reserved(engine, SERVICE, 104)
    with reading(engine) as session:
        assert [mapping.vmid for mapping in mappings.active(session)] == [101, 102, 103]
        assert [mapping.vmid for mapping in mappings.active(session, "c")] == [101, 103]
        counts = mappings.count_by_state(session)
    assert counts == {"reserved": 1, "active": 3, "pending_deletion": 0, "deleted": 0, "vm_lost": 0}


def test_deleted_mappings_are_counted_on_request_only(engine: Engine) -> None:
    apply_result(engine, reserved(engine), status="absent")
    reserved(engine, OTHER, 102)
    others = {"active": 0, "pending_deletion": 0, "vm_lost": 0}
    with reading(engine) as session:
        assert mappings.count_by_state(session) == {"reserved": 1, "deleted": 1} | others
        assert mappings.count_by_state(session, should_count_deleted=False) == {"reserved": 1} | others


def test_current_mappings_and_their_vmids_are_listed(engine: Engine) -> None:
    deleted, first = reserved(engine, SERVICE, 101), reserved(engine, OTHER, 102)
    second = reserved(engine, str(uuid.uuid4()), 103, "another cluster")
    apply_result(engine, deleted, status="absent")
    with reading(engine) as session:
        assert {mapping.id for mapping in mappings.all_current(session)} == {first, second}
        assert mappings.mapped_vmids(session, "c") == {102}


def test_a_mapping_is_read_by_the_id_of_its_row(engine: Engine) -> None:
    mapping_id, _other = reserved(engine), reserved(engine, OTHER, 102)
    with reading(engine) as session:
        found = mappings.get(session, mapping_id)
        assert found is not None
        assert (found.id, mappings.get_one(session, mapping_id).id) == (mapping_id, mapping_id)
        assert mappings.get(session, 999) is None
    with pytest.raises(DatabaseRefused), reading(engine) as session:
        mappings.get_one(session, 999)


def test_a_vm_marked_for_deletion_is_pending_deletion_until_the_mark_or_the_vm_is_gone(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="stopped", node="pve1", delete_at=1_000_000_000)
    found = row(engine, mapping_id)
    assert (found.state, found.delete_at, found.deleted_at) == (
        "pending_deletion",
        datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
        None,
    )
    with reading(engine) as session:
        assert [mapping.id for mapping in mappings.due_for_deletion(session, "c")] == [mapping_id]
        assert mappings.active(session) == []  # FulcrumCore accepts no metrics of it
        assert mappings.due_for_deletion(session, "another cluster") == []
    apply_result(engine, mapping_id, status="stopped", delete_at=4_000_000_000)
    with reading(engine) as session:
        assert mappings.due_for_deletion(session, "c") == []
    apply_result(engine, mapping_id, status="stopped", delete_at=0)
    assert (row(engine, mapping_id).state, row(engine, mapping_id).delete_at) == ("active", None)


def test_deletions_are_due_from_the_longest_overdue_on_up_to_the_limit(engine: Engine) -> None:
    by_age = {}
    for vmid, delete_at in ((101, 3_000), (102, 1_000), (103, 2_000)):
        mapping_id = reserved(engine, str(uuid.uuid4()), vmid)
        apply_result(engine, mapping_id, status="stopped", delete_at=delete_at)
        by_age[delete_at] = mapping_id
    with reading(engine) as session:
        assert [mapping.id for mapping in mappings.due_for_deletion(session, "c")] == [
            by_age[age] for age in sorted(by_age)
        ]
        assert [mapping.id for mapping in mappings.due_for_deletion(session, "c", limit=1)] == [by_age[1_000]]


def test_a_deleted_vm_is_not_due_for_deletion_again(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    apply_result(engine, mapping_id, status="absent")
    with reading(engine) as session:
        assert row(engine, mapping_id).delete_at is not None
        assert mappings.due_for_deletion(session, "c") == []


def test_a_vm_that_is_lost_is_not_due_for_deletion(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        assert row(engine, mapping_id).delete_at is not None
        assert mappings.due_for_deletion(session, "c") == []


def test_pages_of_due_deletions_contain_each_mapping_once(engine: Engine) -> None:
    """Mappings with the same time are ordered by their ids, so that a page neither repeats nor leaves out one."""
    delete_times = {101: 2_000, 102: 1_000, 103: 2_000, 104: 2_000, 105: 3_000}
    mapping_ids = {vmid: reserved(engine, str(uuid.uuid4()), vmid) for vmid in delete_times}
    for vmid in reversed(delete_times):
        apply_result(engine, mapping_ids[vmid], status="stopped", delete_at=delete_times[vmid])
    pages, after = [], None
    with reading(engine) as session:
        for _ in range(4):
            page = mappings.due_for_deletion(session, "c", limit=2, after=after)
            pages.append([mapping.vmid for mapping in page])
            after = page[-1] if page else after
    assert pages == [[102, 101], [103, 104], [105], []]


def test_a_list_of_mappings_has_a_limit(engine: Engine) -> None:
    for vmid in (101, 102, 103):
        reserved(engine, str(uuid.uuid4()), vmid)
    with reading(engine) as session:
        assert [mapping.vmid for mapping in mappings.list_mappings(session, limit=2)] == [103, 102]


def test_a_vm_pending_deletion_keeps_its_vmid(engine: Engine) -> None:
    mapping_id = reserved(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000_000_000)
    assert reserve(engine, OTHER, 101) is None


def test_a_container_is_mapped_as_one(engine: Engine) -> None:
    with transaction(engine) as session:
        made = mappings.reserve(session, service_id=SERVICE, cluster="c", vmid=101, name="db", kind="lxc")
        assert made is not None
        found = mappings.adopt(session, service_id=OTHER, cluster="c", vmid=102, name="x", node="pve1", kind="lxc")
        assert found is not None
    assert (row(engine, made.id).kind, row(engine, found.id).kind) == ("lxc", "lxc")
    assert row(engine, reserved(engine, str(uuid.uuid4()), 103)).kind == "qemu"


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("101", 1),
        ("102", 0),
        ("vm", 1),
        (SERVICE, 1),
        (SERVICE.upper(), 1),
        ("0a1b", 1),
        ("0a1c", 0),
        ("", 0),
        ("%", 0),
        ("_a1b", 0),
        ("²", 0),
        ("9" * 30, 0),
        ("9" * 5000, 0),
    ],
)
def test_a_mapping_is_found_by_vmid_name_or_service(engine: Engine, reference: str, found: int) -> None:
    reserved(engine)
    with reading(engine) as session:
        assert len(mappings.find(session, reference)) == found


def test_at_most_the_newest_hundred_mappings_of_a_vmid_are_found(engine: Engine) -> None:
    last = reserved(engine)
    with transaction(engine) as session:
        mappings.mark_deleted(session, last, "")
        for _ in range(mappings.MAX_FOUND_MAPPINGS):
            mapping = mappings.reserve(session, service_id=SERVICE, cluster="c", vmid=101, name="vm")
            assert mapping is not None
            mappings.mark_deleted(session, mapping.id, "")
        last = mapping.id
    with reading(engine) as session:
        found = [mapping.id for mapping in mappings.find_by_vmid(session, 101)]
    assert found == list(range(last, last - mappings.MAX_FOUND_MAPPINGS, -1))
