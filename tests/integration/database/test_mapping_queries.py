"""Mappings of services to VMs: lists, searches, due deletions, and rows that are removed after a deletion."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select, update
from support.mapping_rows import OTHER, SERVICE, apply_result, reserve, row, store_reservation

from executor.database import mapping_queries, mappings, vm_names
from executor.database.engine import read_only_session, transaction
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.errors import StatementRefused
from executor.shared.marker import marker_for


def test_rows_of_mappings_are_removed_in_the_order_of_their_deletion_up_to_the_limit(engine: Engine) -> None:
    ages_s = {101: 20, 102: 40, 103: 30, 104: 0}
    mapping_ids = {vmid: store_reservation(engine, str(uuid.uuid4()), vmid) for vmid in ages_s}
    current, with_volumes = store_reservation(engine, SERVICE, 105), store_reservation(engine, OTHER, 106)
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
            remaining = set(session.scalars(select(Mapping.id)))
        removed.append((count, [vmid for vmid in ages_s if mapping_ids[vmid] not in remaining]))
    assert removed == [(2, [102, 103]), (1, [101, 102, 103]), (0, [101, 102, 103])]
    assert {current, with_volumes} <= remaining


def test_active_mappings_are_filtered_by_cluster_and_ordered_by_vmid(engine: Engine) -> None:
    for vmid, cluster in ((103, "c"), (101, "c"), (102, "d")):
        apply_result(engine, store_reservation(engine, str(uuid.uuid4()), vmid, cluster), status="running")
    store_reservation(engine, SERVICE, 104)
    with read_only_session(engine) as session:
        assert [mapping.vmid for mapping in mappings.active_mappings(session)] == [101, 102, 103]
        assert [mapping.vmid for mapping in mappings.active_mappings(session, "c")] == [101, 103]
        counts = mapping_queries.count_mappings_by_state(session)
    assert counts == {"reserved": 1, "active": 3, "pending_deletion": 0, "deleted": 0, "vm_lost": 0}


def test_deleted_mappings_are_counted_unless_the_caller_excludes_them(engine: Engine) -> None:
    apply_result(engine, store_reservation(engine), status="absent")
    store_reservation(engine, OTHER, 102)
    others = {"active": 0, "pending_deletion": 0, "vm_lost": 0}
    with read_only_session(engine) as session:
        assert mapping_queries.count_mappings_by_state(session) == {"reserved": 1, "deleted": 1} | others
        assert (
            mapping_queries.count_mappings_by_state(session, should_count_deleted_mappings=False)
            == {"reserved": 1} | others
        )


def test_current_mappings_and_their_vmids_are_listed(engine: Engine) -> None:
    deleted, first = store_reservation(engine, SERVICE, 101), store_reservation(engine, OTHER, 102)
    second = store_reservation(engine, str(uuid.uuid4()), 103, "another cluster")
    apply_result(engine, deleted, status="absent")
    with read_only_session(engine) as session:
        assert {mapping.id for mapping in mappings.all_current_mappings(session)} == {first, second}
        assert mappings.mapped_vmids(session, "c") == {102}


def test_a_mapping_is_read_by_the_id_of_its_row(engine: Engine) -> None:
    mapping_id, _other = store_reservation(engine), store_reservation(engine, OTHER, 102)
    with read_only_session(engine) as session:
        found = mappings.get(session, mapping_id)
        assert found is not None
        assert (found.id, mappings.get_one(session, mapping_id).id) == (mapping_id, mapping_id)
        assert mappings.get(session, 999) is None
    with pytest.raises(StatementRefused), read_only_session(engine) as session:
        mappings.get_one(session, 999)


def test_a_vm_with_a_time_of_deletion_is_pending_deletion_until_the_time_is_removed(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="stopped", node="pve1", delete_at=1_000_000_000)
    found = row(engine, mapping_id)
    assert (found.state, found.delete_at, found.deleted_at) == (
        "pending_deletion",
        datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
        None,
    )
    with read_only_session(engine) as session:
        assert [mapping.id for mapping in mappings.mappings_due_for_deletion(session, "c")] == [mapping_id]
        assert mappings.active_mappings(session) == []  # FulcrumCore accepts no metrics of the VM
        assert mappings.mappings_due_for_deletion(session, "another cluster") == []
    apply_result(engine, mapping_id, status="stopped", delete_at=4_000_000_000)
    with read_only_session(engine) as session:
        assert mappings.mappings_due_for_deletion(session, "c") == []
    apply_result(engine, mapping_id, status="stopped", delete_at=0)
    assert (row(engine, mapping_id).state, row(engine, mapping_id).delete_at) == ("active", None)


def test_due_deletions_are_listed_from_the_longest_overdue_on_up_to_the_limit(engine: Engine) -> None:
    ids_by_time = {}
    for vmid, delete_at in ((101, 3_000), (102, 1_000), (103, 2_000)):
        mapping_id = store_reservation(engine, str(uuid.uuid4()), vmid)
        apply_result(engine, mapping_id, status="stopped", delete_at=delete_at)
        ids_by_time[delete_at] = mapping_id
    with read_only_session(engine) as session:
        assert [mapping.id for mapping in mappings.mappings_due_for_deletion(session, "c")] == [
            ids_by_time[delete_at] for delete_at in sorted(ids_by_time)
        ]
        assert [mapping.id for mapping in mappings.mappings_due_for_deletion(session, "c", limit=1)] == [
            ids_by_time[1_000]
        ]


def test_a_deleted_vm_is_not_due_for_deletion_again(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    apply_result(engine, mapping_id, status="absent")
    with read_only_session(engine) as session:
        assert row(engine, mapping_id).delete_at is not None
        assert mappings.mappings_due_for_deletion(session, "c") == []


def test_a_vm_that_is_lost_is_not_due_for_deletion(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000)
    with transaction(engine) as session:
        mappings.mark_vm_lost(session, mapping_id, "VM_NOT_FOUND: gone")
        assert row(engine, mapping_id).delete_at is not None
        assert mappings.mappings_due_for_deletion(session, "c") == []


def test_pages_of_due_deletions_contain_each_mapping_once(engine: Engine) -> None:
    """Mappings with the same time are ordered by their ids, so that no page repeats or leaves out a mapping."""
    delete_times = {101: 2_000, 102: 1_000, 103: 2_000, 104: 2_000, 105: 3_000}
    mapping_ids = {vmid: store_reservation(engine, str(uuid.uuid4()), vmid) for vmid in delete_times}
    for vmid in reversed(delete_times):
        apply_result(engine, mapping_ids[vmid], status="stopped", delete_at=delete_times[vmid])
    pages, after = [], None
    with read_only_session(engine) as session:
        for _ in range(4):
            page = mappings.mappings_due_for_deletion(session, "c", limit=2, after=after)
            pages.append([mapping.vmid for mapping in page])
            after = page[-1] if page else after
    assert pages == [[102, 101], [103, 104], [105], []]


def test_a_list_of_mappings_has_a_limit(engine: Engine) -> None:
    for vmid in (101, 102, 103):
        store_reservation(engine, str(uuid.uuid4()), vmid)
    with read_only_session(engine) as session:
        assert [mapping.vmid for mapping in mapping_queries.list_mappings(session, limit=2)] == [103, 102]


def test_a_vm_pending_deletion_keeps_its_vmid(engine: Engine) -> None:
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, status="stopped", delete_at=1_000_000_000)
    assert reserve(engine, OTHER, 101) is None


def test_the_mapping_of_a_container_has_the_kind_lxc(engine: Engine) -> None:
    with transaction(engine) as session:
        new = mappings.reserve(session, service_id=SERVICE, cluster="c", vmid=101, name="db", kind="lxc")
        assert new is not None
        adopted = mappings.adopt(session, service_id=OTHER, cluster="c", vmid=102, name="x", node="pve1", kind="lxc")
        assert adopted is not None
    assert (row(engine, new.id).kind, row(engine, adopted.id).kind) == ("lxc", "lxc")
    assert row(engine, store_reservation(engine, str(uuid.uuid4()), 103)).kind == "qemu"


@pytest.mark.parametrize(
    ("reference", "match_count"),
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
def test_a_mapping_is_found_by_vmid_name_or_service(engine: Engine, reference: str, match_count: int) -> None:
    store_reservation(engine)
    with read_only_session(engine) as session:
        assert len(mapping_queries.find_mappings_by_vm_or_service(session, reference)) == match_count


@pytest.mark.parametrize(
    ("reference", "vmids"),
    [
        ("web-0a1b2c3d", [101]),
        ("web", [101]),
        ("web-", []),
        ("we", []),
        ("web-0a1b2c3", []),
        ("web-00000000", [102]),
        ("web-ffffffff", []),
        ("cafe", [104, 103]),
        ("CAFE", [103]),
    ],
)
def test_a_mapping_is_found_by_its_name_without_the_suffix_of_its_service(
    engine: Engine, reference: str, vmids: list[int]
) -> None:
    """The name of a service's VM is a reference too if it may be the beginning of a service id, such as cafe."""
    names = {
        101: (SERVICE, vm_names.vm_name("Web", SERVICE)),
        102: (OTHER, "web-00000000"),  # this suffix is not that of the service, so `web` does not name this VM
        103: ("cafe0000-1111-4000-8000-000000000001", "other"),
        104: ("0000cafe-1111-4000-8000-000000000001", "cafe"),
    }
    with transaction(engine) as session:
        for vmid, (service_id, name) in names.items():
            assert mappings.reserve(session, service_id=service_id, cluster="c", vmid=vmid, name=name) is not None
        assert [mapping.vmid for mapping in mapping_queries.find_mappings_by_vm_or_service(session, reference)] == vmids


def test_the_current_mappings_of_services_do_not_include_deleted_ones(engine: Engine) -> None:
    deleted = store_reservation(engine, SERVICE, 101)
    apply_result(engine, deleted, status="absent")
    current_mapping_id, only_deleted = store_reservation(engine, SERVICE, 102), store_reservation(engine, OTHER, 103)
    apply_result(engine, only_deleted, status="absent")
    not_requested = str(uuid.uuid4())
    store_reservation(engine, not_requested, 104)
    with read_only_session(engine) as session:
        found = mapping_queries.current_mappings_by_service(session, [SERVICE, OTHER, str(uuid.uuid4())])
        assert {service_id: mapping.id for service_id, mapping in found.items()} == {SERVICE: current_mapping_id}
        assert mapping_queries.current_mappings_by_service(session, []) == {}


def test_a_reservation_has_the_marker_and_the_tenant_of_its_service(engine: Engine) -> None:
    with transaction(engine) as session:
        mapping = mappings.reserve(session, service_id=SERVICE, cluster="c", vmid=101, name="web", tenant_id="tenant-1")
        assert mapping is not None
    found = row(engine, mapping.id)
    assert (found.state, found.tenant_id, found.marker) == ("reserved", "tenant-1", marker_for(SERVICE))
    assert row(engine, store_reservation(engine, OTHER, 102)).tenant_id is None


def test_at_most_the_newest_hundred_mappings_of_a_vmid_are_found(engine: Engine) -> None:
    last = store_reservation(engine)
    with transaction(engine) as session:
        mappings.mark_mapping_deleted(session, last, "")
        for _ in range(mapping_queries.MAX_FOUND_MAPPINGS):
            mapping = mappings.reserve(session, service_id=SERVICE, cluster="c", vmid=101, name="vm")
            assert mapping is not None
            mappings.mark_mapping_deleted(session, mapping.id, "")
        last = mapping.id
    with read_only_session(engine) as session:
        found = [mapping.id for mapping in mapping_queries.find_mappings_by_vmid(session, 101)]
    assert found == list(range(last, last - mapping_queries.MAX_FOUND_MAPPINGS, -1))
