"""The sweeper: removes what ended or killed runs of lab tests have left in the lab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.removal import Removal, remove_archive, remove_guest, remove_lease
from smith_lab.lab_test.removal_rules import Finding, check_archives, check_guests
from smith_lab.lab_test.reservation import acquire
from smith_lab.lab_test.reserved_range import ReservedRange

#: How long a sweeper reserves a range whose guests it removes.
SWEEP_S = 900


def list_findings(cluster: LabCluster) -> list[Finding]:
    """Return what a sweep would do with each guest in the lab's VMIDs, and with each backup of a run."""
    lab, now = cluster.lab, cluster.now()
    guests = cluster.guests(range(lab.vmid_min, lab.vmid_max + 1))
    return [*check_guests(guests, lab, now), *check_archives(cluster.archives(), guests, lab, now)]


def sweep(cluster: LabCluster, findings: Sequence[Finding], reserve_s: float = SWEEP_S) -> Iterator[Removal]:
    """Remove what is removable, and yield each outcome.

    The sweeper reserves each range first, as a run does, so that it and a run never work on one range at once.
    """
    guests = [finding for finding in findings if finding.guest and finding.is_removable]
    for vmids in cluster.lab.ranges():
        if any(finding.vmid in vmids for finding in guests):
            yield from _sweep_range(cluster, vmids, findings, reserve_s)
    in_ranges = {vmid for vmids in cluster.lab.ranges() for vmid in vmids}
    yield from (remove_guest(cluster, finding) for finding in guests if finding.vmid not in in_ranges)
    yield from (remove_archive(cluster, each) for each in findings if each.guest is None and each.is_removable)


def _sweep_range(cluster: LabCluster, vmids: range, findings: Sequence[Finding], reserve_s: float) -> Iterator[Removal]:
    """Remove the removable guests of one range, and then its lease.

    A range whose first VMID another guest has is never reserved, so that its guests are removed without a lease.
    """
    inside = [finding for finding in findings if finding.guest and finding.vmid in vmids]
    removable = [finding for finding in inside if finding.is_removable]
    others = [finding for finding in removable if not finding.is_lease]
    is_first_foreign = any(finding.vmid == vmids[0] and not finding.is_lease for finding in inside)
    if is_first_foreign:
        yield from (remove_guest(cluster, finding) for finding in others)
        return
    problem = "another process has reserved its range"
    try:
        lease = acquire(cluster, vmids, [each.guest for each in inside if each.guest], cluster.now() + reserve_s)
    except LabError as error:
        lease, problem = None, f"its range cannot be reserved: {error}"
    if lease is None:
        yield from (Removal(finding=each, problem=problem) for each in removable)
        return
    removals = [remove_guest(cluster, finding) for finding in others]
    yield from removals
    remaining = [finding for finding in inside if not finding.is_lease and not finding.is_removable]
    is_emptied = not any(removal.problem for removal in removals)
    # A clone that is still locked has no marker, so the notes of the lease must keep the token of its run.
    if is_emptied and not any(finding.guest and finding.guest.lock for finding in remaining):
        reserved = ReservedRange(vmids=vmids, lease=lease, base_prefix=cluster.lab.name_prefix)
        removed = remove_lease(cluster, reserved)
        yield from (replace(removed, finding=finding) for finding in removable if finding.is_lease)
