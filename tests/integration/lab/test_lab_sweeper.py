"""The sweeper of a lab (`smith lab-sweep`) removes the guests, backups and leases that runs of lab tests have left.

It removes only those of a run whose reservation (its lease, a VM at the first VMID of a range) has expired.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from smith_lab.lab_test import sweeper
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.removal_rules import GRACE_S
from smith_lab.lab_test.reservation import release_range, reserve_any_range
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.lab_guests import add_vm, sweep, vmids_in_lab
from support.lab_settings import FIRST, SIZE, lab_settings


@pytest.fixture(scope="module")
def server() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def stand_in(server: ProxmoxStandIn) -> Iterator[ProxmoxStandIn]:
    """Yield the stand-in, with a VM of another user in the first of the lab's ranges."""
    server.control("add", vmid=FIRST + 5, name="foreign", node="pve1")
    server.reset_request_log()
    yield server
    for guest in server.guests():
        if guest["vmid"] in range(FIRST, FIRST + 3 * SIZE):
            server.control("remove", vmid=guest["vmid"])


@pytest.fixture
def cluster(stand_in: ProxmoxStandIn) -> LabCluster:
    return LabCluster(lab_settings(stand_in))


def back_up(cluster: LabCluster, vmid: int) -> None:
    """Make a backup with the same notes as the action `backup` writes."""
    guest = cluster.guest(vmid)
    assert guest
    notes = {"notes-template": f"{guest.name}\n{guest.notes}"}
    cluster.wait_for_task("pve2", cluster.api.nodes("pve2").vzdump.post(vmid=vmid, storage="backups", **notes))


def test_the_sweeper_removes_the_guests_of_an_expired_run_and_no_others(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    expired, live = reserve_any_range(cluster, time.time() - GRACE_S), reserve_any_range(cluster, time.time() + 600)
    removed = [expired.vmids[0], add_vm(stand_in, expired, status="running")]
    removed.append(add_vm(stand_in, expired, 2, config={"description": "Debian 12"}))
    add_vm(stand_in, live)
    before = vmids_in_lab(stand_in)
    stand_in.reset_request_log()
    problems = sweep(cluster)
    assert (len(problems), set(problems.values())) == (3, {""})
    assert vmids_in_lab(stand_in) == sorted(set(before) - set(removed))
    changed_vmids = {entry["path"].split("/")[4] for entry in stand_in.changing_requests()}
    assert changed_vmids == {str(vmid) for vmid in removed}


def test_the_sweeper_does_not_remove_a_lease_while_proxmox_has_locked_a_clone_of_its_run(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """The clone has no marker yet: only the lease says which run made the clone."""
    expired = reserve_any_range(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired, config={"description": ""}, is_locked=True)
    assert list(sweeper.sweep(cluster, sweeper.list_findings(cluster), reservation_s=-GRACE_S)) == []
    assert stand_in.guest(vmid)
    stand_in.control("lock", vmid=vmid, lock=None)
    assert set(sweep(cluster).values()) == {""}
    assert (stand_in.guest(vmid), stand_in.guest(expired.vmids[0])) == (None, None)


def test_the_sweeper_removes_the_backups_of_an_expired_run(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    expired = reserve_any_range(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired)
    back_up(cluster, vmid)
    (volume,) = [archive.volume for archive in cluster.archives() if archive.vmid == vmid]
    assert sweep(cluster)[volume] == ""
    assert [archive for archive in cluster.archives() if archive.vmid == vmid] == []


def test_a_sweeper_with_the_prefix_ci_does_not_remove_guests_of_a_run_with_the_prefix_ci_2(
    stand_in: ProxmoxStandIn,
) -> None:
    longer, shorter = (LabCluster(lab_settings(stand_in, name_prefix=prefix)) for prefix in ("ci-2", "ci"))
    expired = reserve_any_range(longer, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired)
    back_up(longer, vmid)
    assert (sweep(shorter), len(longer.archives())) == ({}, 1)
    assert set(sweep(longer).values()) == {""}
    assert (stand_in.guest(vmid), longer.archives()) == (None, [])


def test_a_guest_that_cannot_be_read_stops_neither_a_run_nor_the_sweeper(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    expired = reserve_any_range(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired, node="pve1")
    stand_in.control("add", vmid=FIRST + 6, name="unreadable", node="pve2")
    stand_in.control("fail", method="GET", path=f"*/qemu/{FIRST + 6}/config", status=595, times=100)
    try:
        reserved = reserve_any_range(cluster, time.time() + 600)
        assert release_range(cluster, reserved) == []
        findings = {finding.vmid: finding for finding in sweeper.list_findings(cluster)}
        assert "cannot be read" in findings[FIRST + 6].reason
        assert not findings[FIRST + 6].is_removable
        sweep(cluster)
    finally:
        stand_in.control("clear_faults")
    assert stand_in.guest(vmid) is None
    assert stand_in.guest(FIRST + 6)
