"""Mappings of services to VMs: names, reservations, and the choice of a VMID."""

from __future__ import annotations

import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update
from support.mapping_rows import OTHER, SERVICE, apply_result, pick_free_vmid, reserve, row, store_reservation

from executor.database import mapping_queries, mappings, vm_names, volumes_left
from executor.database.engine import read_only_session, transaction
from executor.database.tables.mappings import Mapping
from executor.database.times import db_now, utc_now
from executor.errors import JobError
from executor.shared.error_codes import ErrorCode

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


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
def test_a_host_name_becomes_a_dns_label(host: str, expected: str) -> None:
    assert vm_names.vm_name(host, SERVICE) == expected


def test_a_vms_name_ends_with_eight_digits_of_the_service_id() -> None:
    assert vm_names.vm_name("web", "0A1B-2C3D-4E5F") == "web-0a1b2c3d"


@given(st.text(), st.uuids(), st.uuids())
def test_any_name_is_a_dns_label_that_belongs_to_one_service(
    host: str, one_service: uuid.UUID, other_service: uuid.UUID
) -> None:
    name = vm_names.vm_name(host, str(one_service))
    assert DNS_LABEL.match(name)
    assert (name == vm_names.vm_name(host, str(other_service))) == (one_service.hex[:8] == other_service.hex[:8])


def test_a_reservation_is_written_with_its_marker(engine: Engine) -> None:
    mapping = row(engine, store_reservation(engine))
    assert (mapping.service_id, mapping.vmid, mapping.state) == (SERVICE, 101, "reserved")
    assert (mapping.marker, mapping.node, mapping.deleted_at) == (f"smith-uid={SERVICE}", None, None)


@pytest.mark.parametrize(
    ("service_id", "vmid", "cluster", "is_reserved"),
    [
        (OTHER, 101, "c", False),  # another service has the VMID
        (SERVICE, 102, "c", False),  # the service has a VMID
        (SERVICE, 101, "c", False),
        (OTHER, 102, "c", True),
        (OTHER, 101, "another cluster", True),
        (SERVICE, 101, "another cluster", False),
    ],
)
def test_no_two_reservations_have_a_service_or_vmid_in_common(
    engine: Engine, service_id: str, vmid: int, cluster: str, is_reserved: bool
) -> None:
    store_reservation(engine)
    assert (reserve(engine, service_id, vmid, cluster) is not None) == is_reserved


def test_a_refused_reservation_leaves_the_transaction_usable(engine: Engine) -> None:
    store_reservation(engine)
    with transaction(engine) as session:
        wanted = {"service_id": OTHER, "cluster": "c", "name": "vm"}
        assert mappings.reserve(session, vmid=101, **wanted) is None
        assert mappings.reserve(session, vmid=102, **wanted) is not None
    with read_only_session(engine) as session:
        assert [mapping.vmid for mapping in mapping_queries.list_mappings(session)] == [102, 101]


def test_simultaneous_creates_reserve_different_vmids(engine: Engine) -> None:
    start = threading.Barrier(6, timeout=60)

    def create(_: int) -> int:
        service_id = str(uuid.uuid4())
        start.wait()
        while True:
            vmid = pick_free_vmid(engine, 101, 106)
            if reserve(engine, service_id, vmid) is not None:
                return vmid

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(create, range(6))) == [101, 102, 103, 104, 105, 106]


def test_one_of_several_simultaneous_creates_of_a_service_reserves_a_vmid(engine: Engine) -> None:
    start = threading.Barrier(4, timeout=60)

    def create(number: int) -> bool:
        start.wait()
        return reserve(engine, SERVICE, 101 + number) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(4))) == 1


def test_the_last_free_vmid_of_a_range_is_found(engine: Engine) -> None:
    store_reservation(engine, SERVICE, 1000)
    assert pick_free_vmid(engine, 1000, 3000, taken=set(range(1000, 3000))) == 3000


def test_a_full_range_is_a_capacity_error(engine: Engine) -> None:
    store_reservation(engine, SERVICE, 101)
    store_reservation(engine, OTHER, 102)
    with pytest.raises(JobError, match="no VMID is free between 101 and 103") as caught:
        pick_free_vmid(engine, 101, 103, taken={103})
    assert (caught.value.code, caught.value.detail) == (ErrorCode.CAPACITY, "no VMID is free")


def test_vmids_of_other_clusters_and_ranges_are_ignored(engine: Engine) -> None:
    store_reservation(engine, SERVICE, 101, "another cluster")
    store_reservation(engine, OTHER, 102)
    assert pick_free_vmid(engine, 101, 101) == 101


def test_vmids_are_spread_over_the_range(engine: Engine) -> None:
    """Agents that share a Proxmox cluster but no database would collide on every VMID if each chose the lowest."""
    assert len({pick_free_vmid(engine, 100_000, 199_999) for _ in range(10)}) > 1


@pytest.mark.parametrize("how", ["deleted", "released"])
def test_the_vmid_of_a_deleted_mapping_is_in_quarantine_before_it_is_used_again(engine: Engine, how: str) -> None:
    mapping_id = store_reservation(engine)
    if how == "deleted":
        apply_result(engine, mapping_id, vmid=101, status="absent")
    else:
        with transaction(engine) as session:
            mappings.mark_mapping_deleted(session, mapping_id, "the VMID is another guest's")
    with pytest.raises(JobError, match="CAPACITY"):
        pick_free_vmid(engine, 101, 101)
    assert pick_free_vmid(engine, 101, 101, quarantine_s=0) == 101
    with transaction(engine) as session:
        session.execute(update(Mapping).values(deleted_at=db_now(-3601)))
    assert pick_free_vmid(engine, 101, 101) == 101


def test_a_vmid_is_not_used_while_volumes_of_its_deleted_vm_exist(engine: Engine) -> None:
    """Otherwise a new VM with this VMID would own volumes of an earlier customer: their names contain the VMID."""
    mapping_id = store_reservation(engine)
    apply_result(engine, mapping_id, vmid=101, status="absent", volumes_left=["ceph:vm-101-disk-0"])
    with transaction(engine) as session:
        session.execute(update(Mapping).values(deleted_at=db_now(-1_000_000)))
        assert mappings.prune(session, deleted_before=utc_now(), limit=9) == 0
    with pytest.raises(JobError, match="CAPACITY"):
        pick_free_vmid(engine, 101, 101)
    with transaction(engine) as session:
        volumes_left.remove_volumes_note(session, mapping_id)
    assert pick_free_vmid(engine, 101, 101) == 101
