"""Reserves a range of VMIDs for one run of lab tests, among pipelines that share nothing but the lab.

A range is reserved by a stopped VM at its first VMID. Of two processes that create this VM, Proxmox refuses one. An
expired reservation is taken over by one request with the digest of the configuration that was read: of two processes
that do this, Proxmox refuses one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from executor.errors import JobError
from executor.shared.marker import service_in
from smith_lab.lab_test.cluster import ChangedMeanwhile, Guest, LabCluster, LabError
from smith_lab.lab_test.judge import Finding, is_expired, judge_guests, lease_of_vm, token_of_guest
from smith_lab.lab_test.reserved_range import Lease, ReservedRange, lease_of_service, new_lease


class NoFreeRange(LabError):
    """Every range of the lab is reserved, or in use by guests of others."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The outcome of one removal."""

    finding: Finding
    problem: str = ""  #: why it was not removed; '' if it was


def reserve(cluster: LabCluster, until: float) -> ReservedRange:
    """Reserve a range until `until`, and remove what an expired run has left in it. Raises NoFreeRange.

    Ranges without guests come first, in random order, so that pipelines that start together seldom try the same one.
    """
    lab = cluster.lab
    guests = cluster.guests(range(lab.vmid_min, lab.vmid_max + 1))
    ranges = lab.ranges()
    random.shuffle(ranges)
    for vmids in sorted(ranges, key=lambda vmids: sum(guest.vmid in vmids for guest in guests)):
        lease = acquire(cluster, vmids, guests, until)
        if lease is not None:
            reserved = ReservedRange(vmids=vmids, lease=lease, base_prefix=lab.name_prefix)
            remove_leftovers(cluster, reserved)
            return reserved
    raise NoFreeRange(
        f"all {len(ranges)} ranges between the VMIDs {lab.vmid_min} and {lab.vmid_max} are reserved or in use: wait "
        "for the other runs, run `smith lab-sweep`, or extend LAB_PROXMOX_VMID_MIN to LAB_PROXMOX_VMID_MAX"
    )


def acquire(cluster: LabCluster, vmids: range, guests: Sequence[Guest], until: float) -> Lease | None:
    """Reserve one range, of which `guests` were read; return the lease, or None if the range cannot be reserved."""
    holder = next((guest for guest in guests if guest.vmid == vmids[0]), None)
    if holder is None:
        return _create(cluster, vmids[0], until)
    lease = lease_of_vm(holder, cluster.lab)
    if lease is None or not is_expired(lease, time.time()):
        return None
    return take_over(cluster, holder, lease, until)


def _create(cluster: LabCluster, vmid: int, until: float) -> Lease | None:
    lease = new_lease(until)
    try:
        cluster.create_stopped_vm(vmid, f"{cluster.lab.name_prefix}-{lease.token}-lease", lease.notes())
    except ChangedMeanwhile:
        return None
    return lease


def take_over(cluster: LabCluster, holder: Guest, expired: Lease, until: float) -> Lease | None:
    """Take an expired lease over; return the new lease, or None if another process was faster."""
    lease = new_lease(until, former=(*expired.former, expired.token))
    try:
        cluster.replace_name_and_notes(holder, f"{cluster.lab.name_prefix}-{lease.token}-lease", lease.notes())
    except ChangedMeanwhile:
        return None
    return lease


def remove_leftovers(cluster: LabCluster, reserved: ReservedRange) -> list[Removal]:
    """Remove the guests of expired runs from a range that the caller has reserved."""
    guests = cluster.guests(reserved.guest_vmids)
    holder = cluster.guests(reserved.vmids[:1])
    findings = judge_guests([*holder, *guests], cluster.lab, time.time(), reserved.lease.token)
    return [remove_guest(cluster, finding) for finding in findings if finding.is_removable and not finding.is_lease]


def release(cluster: LabCluster, reserved: ReservedRange) -> list[Removal]:
    """Remove the caller's own guests and backups, and then its lease. Return what could not be removed.

    If something could not be removed, the lease stays: the sweeper removes both when it has expired.
    """
    removals = []
    for guest in cluster.guests(reserved.guest_vmids):
        if token_of_guest(guest, cluster.lab) == reserved.lease.token and not guest.is_template:
            finding = Finding(name=guest.name, vmid=guest.vmid, is_removable=True, reason="of this run", guest=guest)
            removals.append(remove_guest(cluster, finding))
    for archive in cluster.archives():
        lease = lease_of_service(service_in(archive.notes))
        if lease is not None and lease.token == reserved.lease.token and archive.vmid in reserved.guest_vmids:
            finding = Finding(name=archive.volume, vmid=archive.vmid, is_removable=True, reason="of this run")
            removals.append(remove_archive(cluster, finding))
    problems = [removal for removal in removals if removal.problem]
    if not problems:
        remove_lease(cluster, reserved)
    return problems


def remove_lease(cluster: LabCluster, reserved: ReservedRange) -> None:
    """Remove the VM that reserves the range, if it still has the caller's lease."""
    guest = cluster.guest(reserved.vmids[0])
    if guest is not None and lease_of_vm(guest, cluster.lab) == reserved.lease:
        cluster.remove(guest)


def remove_guest(cluster: LabCluster, finding: Finding) -> Removal:
    """Read the guest of a finding again, and remove it if it still is the one that was judged."""

    def remove() -> None:
        judged, current = finding.guest, cluster.guest(finding.vmid)
        if current is None or judged is None:
            return
        if (current.name, current.notes, current.kind) != (judged.name, judged.notes, judged.kind):
            raise LabError("it has changed since it was read")
        cluster.remove(current)

    return _attempt(finding, remove)


def remove_archive(cluster: LabCluster, finding: Finding) -> Removal:
    """Remove the backup of a finding."""
    return _attempt(finding, lambda: cluster.remove_archive(finding.name))


def _attempt(finding: Finding, remove: Callable[[], None]) -> Removal:
    try:
        remove()
    except (LabError, JobError) as error:
        return Removal(finding=finding, problem=str(error))
    return Removal(finding=finding)
