"""Mappings of services to VMs: how the state of a mapping changes. A VM is lost if Proxmox no longer has it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, event, update
from support.mapping_rows import OTHER, SERVICE, apply_result, pick_free_vmid, reserve, row, store_reservation

from executor.database import mapping_queries, mappings, volumes_left
from executor.database.engine import read_only_session, transaction
from executor.database.tables.mappings import Mapping
from executor.database.times import db_now
from executor.model import MappingState


def test_a_result_activates_the_mapping(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, vmid=101, status="running", node="pve1", mac_address="BC:24:11:00:00:01")
    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.mac_address) == ("active", "pve1", "BC:24:11:00:00:01")


def test_a_result_without_a_node_keeps_the_stored_node(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="running", node="pve1", mac_address="BC:24:11:00:00:01")
    apply_result(engine, mapping_id, status="stopped", node="", mac_address="")
    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.mac_address) == ("active", "pve1", "BC:24:11:00:00:01")


def test_a_deleted_mapping_never_changes(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="absent")
    deleted = row(engine, mapping_id)
    apply_result(engine, mapping_id, status="running", node="pve9")
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "late")
        mappings.mark_mapping_deleted(session, mapping_id, "late")
        assert mappings.find_current_mapping(session, SERVICE) is None
    after = row(engine, mapping_id)
    assert (after.state, after.node, after.note, after.deleted_at) == ("deleted", None, None, deleted.deleted_at)


def test_the_mappings_of_all_earlier_vms_of_a_service_can_still_be_found(engine: Engine) -> None:
    for vmid in (101, 102, 103):
        apply_result(engine, store_reservation(engine, SERVICE, vmid), status="absent")
    last = store_reservation(engine, SERVICE, 101)
    with read_only_session(engine) as session:
        assert [mapping.vmid for mapping in mapping_queries.find_mappings_by_vm_or_service(session, SERVICE)] == [
            101,
            103,
            102,
            101,
        ]
        assert len(mapping_queries.find_mappings_by_vm_or_service(session, "101")) == 2
        current = mappings.find_current_mapping(session, SERVICE)
        assert current is not None
        assert current.id == last
        assert [mapping.id for mapping in mapping_queries.list_mappings(session)] == [last]
        assert len(mapping_queries.list_mappings(session, states=[MappingState.DELETED])) == 3


def test_the_mapping_of_a_lost_vm_is_still_that_of_its_service_and_still_reserves_the_vmid(engine: Engine) -> None:
    """A later delete must find the mapping, and no other service may get the VMID while the VM may still exist."""
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="running")
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        current = mappings.find_current_mapping(session, SERVICE)
        assert current is not None
        assert (current.state, current.note) == ("vm_lost", "VM_NOT_FOUND: gone")
        assert list(mappings.active_mappings(session)) == []
    assert reserve(engine, OTHER, 101) is None
    apply_result(engine, mapping_id, status="running")
    assert (row(engine, mapping_id).state, row(engine, mapping_id).note) == ("active", None)


def test_a_vm_without_a_mapping_gets_an_active_one(engine: Engine) -> None:
    with transaction(engine) as session:
        wanted = {"service_id": SERVICE, "cluster": "c", "name": "web-0a1b2c3d", "node": "pve1"}
        adopted = mappings.insert_active_mapping(session, vmid=101, **wanted)
        assert adopted is not None
        assert mappings.insert_active_mapping(session, vmid=102, **wanted) is None
    mapping = row(engine, adopted.id)
    assert (mapping.state, mapping.node, mapping.name) == ("active", "pve1", "web-0a1b2c3d")
    assert mapping.note == "found by its marker"


def adopt(engine: Engine, vmid: int, service_id: str = SERVICE, cluster: str = "c") -> int | None:
    with transaction(engine) as session:
        wanted = {"cluster": cluster, "name": "found", "node": "pve2", "kind": "lxc"}
        mapping = mappings.adopt(session, service_id=service_id, vmid=vmid, **wanted)
        return None if mapping is None else mapping.id


def store_mapping_of_lost_vm(engine: Engine, *args: Any) -> int:
    mapping_id = store_reservation(engine, *args)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "gone")
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    return mapping_id


def test_adopting_a_lost_vm_that_exists_again_takes_its_present_name(engine: Engine) -> None:
    mapping_id = store_mapping_of_lost_vm(engine)
    before = row(engine, mapping_id)

    assert adopt(engine, 101) == mapping_id

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.node, mapping.name, mapping.kind) == ("active", "pve2", "found", "lxc")
    assert mapping.note == "found by its marker"
    assert mapping.updated_at > before.updated_at


def test_adopting_another_vmid_deletes_the_mapping_of_the_lost_vm(engine: Engine) -> None:
    old = store_mapping_of_lost_vm(engine)

    new = adopt(engine, 102)

    assert new not in {None, old}
    old_row, new_row = row(engine, old), row(engine, new or 0)
    assert (old_row.state, old_row.note) == ("deleted", "the service has another VM now: VMID 102")
    assert old_row.deleted_at is not None
    assert (new_row.state, new_row.vmid, new_row.node, new_row.name) == ("active", 102, "pve2", "found")


@pytest.mark.parametrize(("vmid", "cluster"), [(102, "c"), (101, "another cluster")])
def test_another_vm_is_not_adopted_while_the_service_has_one(engine: Engine, vmid: int, cluster: str) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="running", node="pve1")

    assert adopt(engine, vmid, SERVICE, cluster) is None

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.vmid, mapping.node) == ("active", 101, "pve1")


def test_a_vmid_of_another_service_is_not_adopted_and_the_lost_vms_mapping_stays(engine: Engine) -> None:
    mapping_id = store_mapping_of_lost_vm(engine)
    store_reservation(engine, OTHER, 102)

    assert adopt(engine, 102) is None
    assert row(engine, mapping_id).state == "vm_lost"


def test_the_node_of_a_vm_is_stored(engine: Engine) -> None:
    mapping_id, other = store_reservation(engine), store_reservation(engine, OTHER, 102)
    with transaction(engine) as session:
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, mapping_id)
    with transaction(engine) as session:
        mappings.store_node(session, mapping_id, "pve3")

    assert row(engine, mapping_id).node == "pve3"
    assert row(engine, mapping_id).updated_at > before.updated_at
    assert row(engine, other).node is None


def test_a_vmid_is_picked_with_an_index_for_each_reason_why_a_vmid_is_not_available(engine: Engine) -> None:
    """A scan of the table would take longer with each deleted VM, because the rows of deleted VMs remain in it."""
    statements: list[tuple[str, Any]] = []

    def record(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT mappings.vmid"):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    pick_free_vmid(engine, 100, 199)
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
    with read_only_session(sqlite_engine) as session:
        mappings.find_current_mapping(session, SERVICE)
    event.remove(sqlite_engine, "before_cursor_execute", record)
    ((statement, parameters),) = [executed for executed in statements if executed[0].startswith("SELECT")]
    with sqlite_engine.connect() as connection:
        (step,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    assert "ix_mappings_one_per_service" in step[-1]


def test_delete_reservation_deletes_only_a_mapping_in_the_state_reserved(engine: Engine) -> None:
    reservation, with_vm = store_reservation(engine), store_reservation(engine, OTHER, 102)
    other_reservation = store_reservation(engine, str(uuid.uuid4()), 103)
    apply_result(engine, with_vm, status="running", node="pve1")
    with transaction(engine) as session:
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, reservation)
    with transaction(engine) as session:
        for mapping_id in (reservation, with_vm):
            mappings.mark_reserved_mapping_deleted(session, mapping_id, "VM_ID_TAKEN: another VM has the VMID")

    deleted, unchanged = row(engine, reservation), row(engine, with_vm)
    assert deleted.updated_at > before.updated_at
    assert row(engine, other_reservation).state == "reserved"
    assert (deleted.state, deleted.note) == ("deleted", "VM_ID_TAKEN: another VM has the VMID")
    assert deleted.deleted_at is not None
    assert (unchanged.state, unchanged.note, unchanged.deleted_at) == ("active", None, None)


def test_the_note_of_a_deleted_mapping_is_the_reason_of_the_deletion(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    with transaction(engine) as session:
        mappings.mark_mapping_deleted(session, mapping_id, "the VMID is another guest's")
    assert row(engine, mapping_id).note == "the VMID is another guest's"


def test_a_mapping_that_is_set_to_active_has_no_note_and_no_scheduled_deletion(engine: Engine) -> None:
    mapping_id, other = store_reservation(engine), store_reservation(engine, OTHER, 102)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        session.execute(update(Mapping).values(updated_at=db_now(-3600)))
    before = row(engine, mapping_id)
    with transaction(engine) as session:
        mappings.mark_mapping_active(session, mapping_id)

    mapping = row(engine, mapping_id)
    assert (mapping.state, mapping.note, mapping.delete_at) == ("active", None, None)
    assert mapping.updated_at > before.updated_at
    assert row(engine, other).state == "reserved"


def test_volumes_that_still_exist_after_a_deletion_are_listed_until_they_are_removed(engine: Engine) -> None:
    volumes = ["ceph:vm-101-disk-0", "ceph:vm-101-cloudinit"]
    first, second = store_reservation(engine), store_reservation(engine, OTHER, 102)
    on_another_cluster = store_reservation(engine, str(uuid.uuid4()), 101, "another cluster")
    with_other_note = store_reservation(engine, str(uuid.uuid4()), 103)
    current = store_reservation(engine, str(uuid.uuid4()), 104)
    for mapping_id in (second, first, on_another_cluster):
        apply_result(engine, mapping_id, status="absent", volumes_left=volumes)
    with transaction(engine) as session:
        mappings.mark_mapping_deleted(session, with_other_note, "VM_ID_TAKEN")
        mappings.mark_vm_lost(session, current, "VOLUMES_LEFT: a")
    with transaction(engine) as session:
        found = volumes_left.mappings_with_volumes_left(session, "c")
        assert [mapping.id for mapping in found] == [first, second]
        assert [volumes_left.volume_ids_in_note(mapping) for mapping in found] == [volumes, volumes]
        for mapping_id in (first, with_other_note, current):
            volumes_left.remove_volumes_note(session, mapping_id)
        assert [mapping.id for mapping in volumes_left.mappings_with_volumes_left(session, "another cluster")] == [
            on_another_cluster
        ]

    assert row(engine, first).note is None
    assert volumes_left.has_volumes_left(row(engine, second))
    assert not volumes_left.has_volumes_left(row(engine, first))
    assert not volumes_left.has_volumes_left(row(engine, with_other_note))
    assert (row(engine, with_other_note).note, row(engine, current).note) == ("VM_ID_TAKEN", "VOLUMES_LEFT: a")
