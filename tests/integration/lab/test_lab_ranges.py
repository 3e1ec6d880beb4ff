"""Ranges of VMIDs in a lab: how a run of lab tests reserves a range, extends the reservation, waits and releases it.

A run reserves a range by its lease: a VM without disks that has the first VMID of the range. The notes of the lease say
which run has reserved the range, and until when.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from smith_lab.lab_test import sweeper
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.removal_rules import GRACE_S
from smith_lab.lab_test.reservation import (
    MAX_REMOVAL_S,
    NoFreeRange,
    acquire_lease,
    release_range,
    reserve_any_range,
    reserve_when_free,
)
from smith_lab.lab_test.reserved_range import ReservedRange, lease_in_notes
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.lab_guests import add_vm, sweep, vmids_in_lab
from support.lab_settings import FIRST, SIZE, lab_settings

#: The name of a backup archive of a VM, without its storage.
ARCHIVE = "backup/vzdump-qemu-{}-2026_11_27-08_00_00.vma.zst"


@pytest.fixture(scope="module")
def server() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def stand_in(server: ProxmoxStandIn) -> Iterator[ProxmoxStandIn]:
    """Yield the stand-in, with a VM of another user in the first of the lab's three ranges."""
    server.control("add", vmid=FIRST + 5, name="foreign", node="pve1")
    server.reset_request_log()
    yield server
    for guest in server.guests():
        if guest["vmid"] in range(FIRST, FIRST + 3 * SIZE):
            server.control("remove", vmid=guest["vmid"])


@pytest.fixture
def cluster(stand_in: ProxmoxStandIn) -> LabCluster:
    return LabCluster(lab_settings(stand_in))


def test_runs_that_start_together_reserve_different_ranges(stand_in: ProxmoxStandIn) -> None:
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(3)]
        runs = list(pool.map(lambda run_cluster: reserve_any_range(run_cluster, time.time() + 600), clusters))
    assert {run.vmids[0] for run in runs} == {FIRST, FIRST + SIZE, FIRST + 2 * SIZE}
    assert len({run.prefix for run in runs}) == 3
    with pytest.raises(NoFreeRange, match="smith lab-sweep"):
        reserve_any_range(clusters[0], time.time() + 600)


def test_of_two_runs_that_create_the_same_lease_proxmox_refuses_the_second(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """Both have read that the first VMID is free."""
    vmids = range(FIRST, FIRST + SIZE)
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(2)]
        leases = list(pool.map(lambda run_cluster: acquire_lease(run_cluster, vmids, [], time.time() + 600), clusters))
    (lease,) = [lease for lease in leases if lease]
    assert stand_in.guest(FIRST)["name"] == f"smith-lab-{lease.token}-lease"  # type: ignore[index]
    assert stand_in.guest(FIRST)["status"] == "stopped"  # type: ignore[index]


def test_of_two_runs_that_take_over_the_same_expired_lease_proxmox_refuses_the_second(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """Both have read the same expired lease; each sends one request, with the digest that it has read."""
    vmids = range(FIRST, FIRST + SIZE)
    assert acquire_lease(cluster, vmids, [], time.time() - GRACE_S)
    guests = cluster.guests(vmids)
    stand_in.reset_request_log()
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(2)]
        leases = list(
            pool.map(lambda run_cluster: acquire_lease(run_cluster, vmids, guests, time.time() + 600), clusters)
        )
    (lease,) = [lease for lease in leases if lease]
    config = stand_in.guest(FIRST)["config"]  # type: ignore[index]
    assert (config["name"], config["description"]) == (f"smith-lab-{lease.token}-lease", lease.notes())
    changes = [(entry["method"], entry["path"]) for entry in stand_in.changing_requests()]
    assert changes == [("PUT", f"/nodes/pve1/qemu/{FIRST}/config")] * 2


def test_a_run_removes_its_own_guests_and_backups_and_nothing_else(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    reserved, other = reserve_any_range(cluster, time.time() + 600), reserve_any_range(cluster, time.time() + 600)
    vmid = add_vm(stand_in, reserved, status="running", config={"protection": 1})
    clone = add_vm(stand_in, reserved, 2, config={"description": "Debian 12"})
    add_vm(stand_in, other)
    stand_in.control("add_volume", storage="backups", volume=ARCHIVE.format(vmid), vmid=vmid, size=1)
    before = vmids_in_lab(stand_in)
    assert release_range(cluster, reserved) == []
    assert vmids_in_lab(stand_in) == sorted(set(before) - {vmid, clone, reserved.vmids[0]})


def test_a_run_that_cannot_remove_a_guest_does_not_remove_its_lease(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    reserved = reserve_any_range(cluster, time.time() + 600)
    add_vm(stand_in, reserved, is_locked=True)
    (removal,) = release_range(cluster, reserved)
    assert "locked" in removal.problem
    assert stand_in.guest(reserved.vmids[0])


def test_a_new_run_removes_the_guests_that_an_expired_run_has_left_in_its_range(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    expired = reserve_any_range(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired)
    for vmids in cluster.lab_settings.ranges():
        if vmids != expired.vmids:
            stand_in.control("add", vmid=vmids[0], name="foreign", node="pve1")
    reserved = reserve_any_range(cluster, time.time() + 600)
    assert (reserved.vmids, stand_in.guest(vmid)) == (expired.vmids, None)
    assert reserved.lease.tokens_of_expired_runs == (expired.lease.token,)


def test_a_lease_that_runs_or_has_a_disk_is_neither_taken_over_nor_removed(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    for number, use in enumerate(({"status": "running"}, {"config": {"scsi0": "ceph:vm-1-disk-0,size=8G"}})):
        vmids = cluster.lab_settings.ranges()[number]
        lease = acquire_lease(cluster, vmids, cluster.guests(vmids), time.time() - GRACE_S)
        assert lease
        config = {"description": lease.notes(), **use.get("config", {})}  # type: ignore[dict-item]
        stand_in.control("remove", vmid=vmids[0])
        name = f"smith-lab-{lease.token}-lease"
        more = {"status": use.get("status", "stopped"), "config": config}
        stand_in.control("add", vmid=vmids[0], name=name, node="pve1", **more)
        reserved = ReservedRange(vmids=vmids, lease=lease, lab_name_prefix="smith-lab")
        (problem,) = release_range(cluster, reserved)
        assert "so it is in use" in problem.problem
    assert {finding.reason for finding in sweeper.list_findings(cluster) if finding.vmid in (FIRST, FIRST + SIZE)} == {
        "it has the name of a VM that reserves VMIDs, but runs or has a disk"
    }
    assert sweep(cluster) == {}
    assert reserve_any_range(cluster, time.time() + 600).vmids == cluster.lab_settings.ranges()[2]
    assert stand_in.guest(FIRST)["status"] == "running"  # type: ignore[index]


def test_the_expiry_of_a_lease_is_checked_against_the_clock_of_the_lab(
    stand_in: ProxmoxStandIn, cluster: LabCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the machine that runs the pipeline is a day ahead."""
    live = reserve_any_range(cluster, time.time() + 600)
    vmid = add_vm(stand_in, live)
    monkeypatch.setattr(time, "time", lambda _now=time.time: _now() + 86_400)
    assert sweep(cluster) == {}
    stand_in.control("clock", shift_s=600 + GRACE_S + 60)
    try:
        assert len(sweep(cluster)) == 2
    finally:
        stand_in.control("clock", shift_s=0)
    assert (stand_in.guest(vmid), stand_in.guest(live.vmids[0])) == (None, None)


@pytest.mark.parametrize("size", [40, 30])
def test_a_range_that_overlaps_a_reserved_one_of_another_size_and_prefix_is_not_reserved(
    stand_in: ProxmoxStandIn, cluster: LabCluster, size: int
) -> None:
    other = LabCluster(lab_settings(stand_in, range_size=SIZE, name_prefix="ci"))
    for vmids in (range(FIRST, FIRST + SIZE), range(FIRST + 2 * SIZE, FIRST + 3 * SIZE)):
        stand_in.control("add", vmid=vmids[0], name="foreign", node="pve1")
    middle = reserve_any_range(other, time.time() + 600)
    assert middle.vmids == range(FIRST + SIZE, FIRST + 2 * SIZE)
    for vmid in (FIRST, FIRST + 2 * SIZE):
        stand_in.control("remove", vmid=vmid)
    large = LabCluster(lab_settings(stand_in, range_size=size))
    with pytest.raises(NoFreeRange) as refused:
        reserve_any_range(large, time.time() + 600)
    assert refused.value.may_become_free
    assert release_range(other, middle) == []
    assert reserve_any_range(large, time.time() + 600)


def test_runs_that_start_together_with_ranges_of_different_sizes_reserve_no_vmid_twice(
    stand_in: ProxmoxStandIn,
) -> None:
    def try_to_reserve(size: int) -> set[int]:
        lab = LabCluster(lab_settings(stand_in, range_size=size, name_prefix=f"ci-{size}"))
        try:
            return set(reserve_any_range(lab, time.time() + 600).vmids)
        except NoFreeRange:
            return set()

    with ThreadPoolExecutor() as pool:
        reserved = list(pool.map(try_to_reserve, (40, 30, 20, 12)))
    assert len(set.union(*reserved)) == sum(len(vmids) for vmids in reserved)


def test_a_range_is_not_reserved_if_another_run_has_just_reserved_a_part_of_it(stand_in: ProxmoxStandIn) -> None:
    """Proxmox's list is old: at the other lease's VMID, it still shows the name of the VMID's earlier guest."""
    others: list[ReservedRange] = []

    class OvertakenCluster(LabCluster):
        """Another run reserves a range of another size just before this one creates its lease."""

        def create_stopped_vm(self, vmid: int, name: str, notes: str) -> None:
            other = LabCluster(lab_settings(stand_in, range_size=SIZE, name_prefix="ci"))
            others.append(reserve_any_range(other, time.time() + 600))
            super().create_stopped_vm(vmid, name, notes)

    large = OvertakenCluster(lab_settings(stand_in, range_size=3 * SIZE))
    # The other run reserves one of these two ranges, because a VM of another user is in the first range.
    leases = (FIRST + SIZE, FIRST + 2 * SIZE)
    for vmid in leases:
        stand_in.control("add", vmid=vmid, name="former", node="pve1")
    stand_in.control("statistics", broadcast_interval_s=600)
    try:
        for vmid in leases:
            stand_in.control("remove", vmid=vmid)
        with pytest.raises(NoFreeRange):
            reserve_any_range(large, time.time() + 600)
    finally:
        stand_in.control("statistics", broadcast_interval_s=0.5)
    assert [other.vmids[0] in leases for other in others] == [True]
    assert vmids_in_lab(stand_in) == [FIRST + 5, others[0].vmids[0]]


def test_a_range_whose_expired_lease_is_locked_is_not_reserved(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    for vmids in cluster.lab_settings.ranges():
        assert acquire_lease(cluster, vmids, [], time.time() - GRACE_S)
        if vmids != cluster.lab_settings.ranges()[1]:
            stand_in.control("lock", vmid=vmids[0], lock="backup")
    for vmid in (FIRST + SIZE + 1, FIRST + SIZE + 2):  # VMs of others, so that this range is tried last
        stand_in.control("add", vmid=vmid, name="foreign", node="pve1")
    assert reserve_any_range(cluster, time.time() + 600).vmids == cluster.lab_settings.ranges()[1]


def test_a_range_is_reserved_although_the_response_to_the_request_was_lost(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    stand_in.control("fail", method="POST", path="/nodes/*/qemu", status=0, after=True)
    reserved = reserve_any_range(cluster, time.time() + 600)
    assert stand_in.guest(reserved.vmids[0])["name"] == reserved.lease_name  # type: ignore[index]
    assert release_range(cluster, reserved) == []


def test_a_run_extends_its_reservation_before_it_removes_its_guests(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    reserved = reserve_any_range(cluster, time.time() + 60)
    add_vm(stand_in, reserved)
    stand_in.reset_request_log()
    assert release_range(cluster, reserved) == []
    extension, *_removals = stand_in.changing_requests()
    lease = lease_in_notes(extension["params"]["description"])
    assert lease is not None
    assert lease.expires_at_s > time.time() + MAX_REMOVAL_S


def test_a_run_whose_reservation_another_run_has_taken_over_removes_nothing(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    reserved = reserve_any_range(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, reserved)
    holder = cluster.guest(reserved.vmids[0])
    assert holder
    later_lease = acquire_lease(cluster, reserved.vmids, [holder], time.time() + 600)
    assert later_lease
    (problem,) = release_range(cluster, reserved)
    assert "taken the reservation over" in problem.problem
    assert stand_in.guest(vmid)
    assert lease_in_notes(cluster.guest(reserved.vmids[0]).notes) == later_lease  # type: ignore[union-attr]


def test_a_lease_names_only_earlier_runs_that_have_guests_in_its_range(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """Each earlier run may have been killed and may have left guests, but Proxmox limits the length of the notes."""
    vmids = cluster.lab_settings.ranges()[1]
    first = acquire_lease(cluster, vmids, [], time.time() - GRACE_S)
    assert first
    name_of_first_run = f"smith-lab-{first.token}-web"
    stand_in.control("add", vmid=vmids[1], name=name_of_first_run, node="pve1")
    for _ in range(2):
        assert acquire_lease(cluster, vmids, cluster.guests(vmids), time.time() - GRACE_S)
    third = lease_in_notes(cluster.guest(vmids[0]).notes)  # type: ignore[union-attr]
    assert third is not None
    assert (len(third.tokens_of_expired_runs), first.token in third.tokens_of_expired_runs) == (2, True)
    stand_in.control("remove", vmid=vmids[1])
    fourth = acquire_lease(cluster, vmids, cluster.guests(vmids), time.time() - GRACE_S)
    assert fourth is not None
    assert fourth.tokens_of_expired_runs == (third.token,)


def test_a_run_waits_until_another_run_has_ended(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    runs = [reserve_any_range(cluster, time.time() + 600) for _ in range(3)]
    messages: list[str] = []

    def end_one(text: str) -> None:
        messages.append(text)
        assert release_range(cluster, runs[0]) == []

    assert reserve_when_free(cluster, 600, 120, end_one).vmids == runs[0].vmids
    assert len(messages) == 1
    assert "waiting up to 120 s for a free range" in messages[0]
    with pytest.raises(NoFreeRange):
        reserve_when_free(cluster, 600, 0, messages.append)
    assert len(messages) == 1


def test_a_run_does_not_wait_if_no_other_run_has_a_reservation(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    for vmids in cluster.lab_settings.ranges():
        stand_in.control("add", vmid=vmids[0], name="foreign", node="pve1")
    messages: list[str] = []
    with pytest.raises(NoFreeRange):
        reserve_when_free(cluster, 600, 3600, messages.append)
    assert messages == []


def test_a_range_in_which_other_users_have_many_vmids_is_not_reserved(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    for vmid in [*range(FIRST + 6, FIRST + 15), *range(FIRST + SIZE + 1, FIRST + SIZE + 11)]:
        stand_in.control("add", vmid=vmid, name="foreign", node="pve1")
    starts = {reserve_any_range(cluster, time.time() + 600).vmids[0]}
    with pytest.raises(NoFreeRange):
        reserve_any_range(cluster, time.time() + 600)
    assert starts == {FIRST + 2 * SIZE}
