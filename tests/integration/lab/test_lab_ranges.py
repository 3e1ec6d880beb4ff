"""Pipelines reserve their ranges in one lab, and the sweeper removes what a killed pipeline has left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from smith_lab.lab_test import sweeper
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.judge import GRACE_S
from smith_lab.lab_test.reservation import NoFreeRange, acquire, release, reserve
from smith_lab.lab_test.reserved_range import ReservedRange
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.lab_settings import FIRST, SIZE, lab_settings

from executor.shared.marker import marker_for

ARCHIVE = "backup/vzdump-qemu-{}-2026_11_27-08_00_00.vma.zst"


@pytest.fixture(scope="module")
def server() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def stand_in(server: ProxmoxStandIn) -> Iterator[ProxmoxStandIn]:
    """The stand-in, with a foreign VM in the lab's range."""
    server.control("add", vmid=FIRST + 5, name="foreign", node="pve1")
    server.reset_request_log()
    yield server
    for guest in server.guests():
        if guest["vmid"] in range(FIRST, FIRST + 3 * SIZE):
            server.control("remove", vmid=guest["vmid"])


@pytest.fixture
def cluster(stand_in: ProxmoxStandIn) -> LabCluster:
    return LabCluster(lab_settings(stand_in))


def add_vm(
    stand_in: ProxmoxStandIn, reserved: ReservedRange, position: int = 1, *, is_locked: bool = False, **more: Any
) -> int:
    """Add a VM as a test of the run makes one; return its VMID."""
    service_id = reserved.new_service_id()
    config = {"description": marker_for(service_id), **more.pop("config", {})}
    vmid = reserved.vmids[position]
    name = f"{reserved.prefix}-web-{service_id[:8]}"
    stand_in.control("add", **{"vmid": vmid, "name": name, "node": "pve2", "config": config} | more)
    if is_locked:
        stand_in.control("lock", vmid=vmid, lock="clone")
    return vmid


def vmids_in_lab(stand_in: ProxmoxStandIn) -> list[int]:
    return sorted(guest["vmid"] for guest in stand_in.guests() if FIRST <= guest["vmid"] < FIRST + 3 * SIZE)


def sweep(cluster: LabCluster) -> dict[str, str]:
    """Sweep the lab; return the problem of each removal."""
    return {each.finding.name: each.problem for each in sweeper.sweep(cluster, sweeper.inspect(cluster))}


def test_runs_that_start_together_reserve_different_ranges(stand_in: ProxmoxStandIn) -> None:
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(3)]
        runs = list(pool.map(lambda each: reserve(each, time.time() + 600), clusters))
    assert {run.vmids[0] for run in runs} == {FIRST, FIRST + SIZE, FIRST + 2 * SIZE}
    assert len({run.prefix for run in runs}) == 3
    with pytest.raises(NoFreeRange, match="smith lab-sweep"):
        reserve(clusters[0], time.time() + 600)


def test_proxmox_refuses_the_second_of_two_that_create_one_lease(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    """Both have read that the first VMID is free."""
    vmids = range(FIRST, FIRST + SIZE)
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(2)]
        leases = list(pool.map(lambda each: acquire(each, vmids, [], time.time() + 600), clusters))
    (lease,) = [lease for lease in leases if lease]
    assert stand_in.guest(FIRST)["name"] == f"smith-lab-{lease.token}-lease"  # type: ignore[index]
    assert stand_in.guest(FIRST)["status"] == "stopped"  # type: ignore[index]


def test_proxmox_refuses_the_second_of_two_that_take_one_lease_over(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """Both have read the same expired lease; each sends one request, with the digest that it has read."""
    vmids = range(FIRST, FIRST + SIZE)
    assert acquire(cluster, vmids, [], time.time() - GRACE_S)
    guests = cluster.guests(vmids)
    stand_in.reset_request_log()
    with ThreadPoolExecutor() as pool:
        clusters = [LabCluster(lab_settings(stand_in)) for _ in range(2)]
        leases = list(pool.map(lambda each: acquire(each, vmids, guests, time.time() + 600), clusters))
    (lease,) = [lease for lease in leases if lease]
    config = stand_in.guest(FIRST)["config"]  # type: ignore[index]
    assert (config["name"], config["description"]) == (f"smith-lab-{lease.token}-lease", lease.notes())
    changes = [(entry["method"], entry["path"]) for entry in stand_in.changing_requests()]
    assert changes == [("PUT", f"/nodes/pve1/qemu/{FIRST}/config")] * 2


def test_a_run_removes_its_own_guests_and_backups_and_nothing_else(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    reserved, other = reserve(cluster, time.time() + 600), reserve(cluster, time.time() + 600)
    vmid = add_vm(stand_in, reserved, status="running", config={"protection": 1})
    clone = add_vm(stand_in, reserved, 2, config={"description": "Debian 12"})
    add_vm(stand_in, other)
    stand_in.control("add_volume", storage="backups", volume=ARCHIVE.format(vmid), vmid=vmid, size=1)
    before = vmids_in_lab(stand_in)
    assert release(cluster, reserved) == []
    assert vmids_in_lab(stand_in) == sorted(set(before) - {vmid, clone, reserved.vmids[0]})


def test_a_run_that_cannot_remove_a_guest_keeps_its_lease(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    reserved = reserve(cluster, time.time() + 600)
    add_vm(stand_in, reserved, is_locked=True)
    (removal,) = release(cluster, reserved)
    assert "locked" in removal.problem
    assert stand_in.guest(reserved.vmids[0])


def test_the_sweeper_removes_an_expired_run_and_leaves_the_rest(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    expired, live = reserve(cluster, time.time() - GRACE_S), reserve(cluster, time.time() + 600)
    removed = [expired.vmids[0], add_vm(stand_in, expired, status="running")]
    removed.append(add_vm(stand_in, expired, 2, config={"description": "Debian 12"}))
    add_vm(stand_in, live)
    before = vmids_in_lab(stand_in)
    stand_in.reset_request_log()
    problems = sweep(cluster)
    assert (len(problems), set(problems.values())) == (3, {""})
    assert vmids_in_lab(stand_in) == sorted(set(before) - set(removed))
    touched = {entry["path"].split("/")[4] for entry in stand_in.changing_requests()}
    assert touched == {str(vmid) for vmid in removed}


def test_a_new_run_removes_what_an_expired_run_has_left_in_its_range(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    expired = reserve(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired)
    for vmids in cluster.lab.ranges():
        if vmids != expired.vmids:
            stand_in.control("add", vmid=vmids[0], name="foreign", node="pve1")
    reserved = reserve(cluster, time.time() + 600)
    assert (reserved.vmids, stand_in.guest(vmid)) == (expired.vmids, None)
    assert reserved.lease.former == (expired.lease.token,)


def test_the_sweeper_keeps_a_lease_as_long_as_proxmox_has_locked_a_clone_of_its_run(
    stand_in: ProxmoxStandIn, cluster: LabCluster
) -> None:
    """The clone has no marker yet, so that only the lease says whose it is."""
    expired = reserve(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired, config={"description": ""}, is_locked=True)
    assert list(sweeper.sweep(cluster, sweeper.inspect(cluster), reserve_s=-GRACE_S)) == []
    assert stand_in.guest(vmid)
    stand_in.control("lock", vmid=vmid, lock=None)
    assert set(sweep(cluster).values()) == {""}
    assert (stand_in.guest(vmid), stand_in.guest(expired.vmids[0])) == (None, None)


def test_the_sweeper_removes_the_backups_of_an_expired_run(stand_in: ProxmoxStandIn, cluster: LabCluster) -> None:
    expired = reserve(cluster, time.time() - GRACE_S)
    vmid = add_vm(stand_in, expired)
    name = cluster.guest(vmid).name  # type: ignore[union-attr]
    notes = f"{name}\n{cluster.guest(vmid).notes}"  # type: ignore[union-attr]
    backup = cluster.api.nodes("pve2").vzdump.post(vmid=vmid, storage="backups", **{"notes-template": notes})
    cluster._wait("pve2", backup)
    (volume,) = [each.volume for each in cluster.archives() if each.vmid == vmid]
    assert sweep(cluster)[volume] == ""
    assert [each for each in cluster.archives() if each.vmid == vmid] == []
