"""The sweeper (`smith lab-sweep`): removes the guests and backups that expired runs of lab tests left in the lab.

In this module, a run is a run of lab tests. It is expired when its lease has expired. A run leaves guests if it
was started with --keep, cannot remove them or is killed. A range of VMIDs is reserved by its lease VM: a stopped VM
with the first VMID of the range. The lease is a text in the notes of this VM. It contains the expiry, and the token
that identifies the run. The sweeper also removes lease VMs with an expired lease. An archive is the file of a backup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.removal import Removal, remove_archive, remove_guest, remove_lease_vm
from smith_lab.lab_test.removal_rules import Finding, decide_archive_removals, decide_guest_removals
from smith_lab.lab_test.reservation import acquire_lease
from smith_lab.lab_test.reserved_range import ReservedRange

#: Seconds for which the sweeper reserves a range of VMIDs while it removes the guests in the range.
RESERVATION_S = 900


def list_findings(cluster: LabCluster) -> list[Finding]:
    """Return a finding for each guest whose VMID belongs to the lab, and for each backup that a run has made.

    A finding says whether a sweep would remove the guest or the backup, and why.
    """
    lab, now = cluster.lab_settings, cluster.now()
    guests = cluster.guests(range(lab.vmid_min, lab.vmid_max + 1))
    return [*decide_guest_removals(guests, lab, now), *decide_archive_removals(cluster.archives(), guests, lab, now)]


def sweep(cluster: LabCluster, findings: Sequence[Finding], reservation_s: float = RESERVATION_S) -> Iterator[Removal]:
    """Remove the removable guests and backups, and yield the outcome of each removal.

    Before it removes guests, the sweeper reserves their range as a run does. So the sweeper and a run never work on one
    range at once.
    """
    removable_guests = [finding for finding in findings if finding.guest and finding.is_removable]
    for vmids in cluster.lab_settings.ranges():
        if any(finding.vmid in vmids for finding in removable_guests):
            yield from _sweep_range(cluster, vmids, findings, reservation_s)
    # The last VMIDs of the lab are in no range if they are too few for one.
    vmids_in_ranges = {vmid for vmids in cluster.lab_settings.ranges() for vmid in vmids}
    yield from (remove_guest(cluster, each) for each in removable_guests if each.vmid not in vmids_in_ranges)
    yield from (remove_archive(cluster, each) for each in findings if each.guest is None and each.is_removable)


def _sweep_range(
    cluster: LabCluster, vmids: range, findings: Sequence[Finding], reservation_s: float
) -> Iterator[Removal]:
    """Remove the removable guests of one range, and then the lease VM of the range.

    If the guest with the first VMID is not a lease VM, no run can reserve the range. Then the guests of the range are
    removed without a reservation.
    """
    findings_in_range = [finding for finding in findings if finding.guest and finding.vmid in vmids]
    removable_findings = [finding for finding in findings_in_range if finding.is_removable]
    findings_without_lease_vms = [finding for finding in removable_findings if not finding.is_lease_vm]
    can_be_reserved = not any(finding.vmid == vmids[0] and not finding.is_lease_vm for finding in findings_in_range)
    if not can_be_reserved:
        yield from (remove_guest(cluster, finding) for finding in findings_without_lease_vms)
        return
    problem = "another process has reserved its range"
    try:
        lease = acquire_lease(
            cluster,
            vmids,
            guests=[each.guest for each in findings_in_range if each.guest],
            expires_at_s=cluster.now() + reservation_s,
        )
    except LabError as error:
        lease, problem = None, f"its range cannot be reserved: {error}"
    if lease is None:
        yield from (Removal(finding=each, problem=problem) for each in removable_findings)
        return
    removals = [remove_guest(cluster, finding) for finding in findings_without_lease_vms]
    yield from removals
    kept_findings = [finding for finding in findings_in_range if not finding.is_lease_vm and not finding.is_removable]
    are_all_removed = not any(removal.problem for removal in removals)
    # If a guest is locked, the lease VM is kept. A locked guest may be a new clone, whose notes do not identify its run
    # yet. When the clone has a name, the name contains the token of its run. A later sweep may remove the clone
    # only if the notes of the lease VM contain this token.
    if are_all_removed and not any(finding.guest and finding.guest.lock for finding in kept_findings):
        reserved_range = ReservedRange(vmids=vmids, lease=lease, lab_name_prefix=cluster.lab_settings.name_prefix)
        # If the range already had a lease VM, `acquire_lease` has renamed this VM. The removal is reported with the
        # caller's finding, which contains the old name.
        lease_vm_removal = remove_lease_vm(cluster, reserved_range)
        yield from (replace(lease_vm_removal, finding=finding) for finding in removable_findings if finding.is_lease_vm)
