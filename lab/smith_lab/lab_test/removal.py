"""Removes the guests and backups of one run of lab tests, and then the VM that reserves its range of VMIDs.

This VM is the lease VM. The lease is a text in its notes, with the token that identifies the run and the time at which
the reservation of the range expires. The lease VM has the first VMID of the range.
`ReservedRange.guest_vmids` are the other VMIDs of the range.

An archive is a backup. Its notes contain the same token and time; `lease_of_archive` returns them as a lease.

A finding is a guest or a backup, with the decision whether it may be removed. This module makes the findings for the
caller's run. removal_rules.py makes the findings for other runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from executor.errors import JobError
from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.removal_rules import (
    Finding,
    decide_guest_removals,
    lease_of_archive,
    lease_of_vm,
    run_token_of_guest,
)
from smith_lab.lab_test.reserved_range import ReservedRange


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The outcome of one removal."""

    finding: Finding
    problem: str = ""  #: why the guest or backup was not removed; '' if it was removed


def remove_leftovers(cluster: LabCluster, reserved_range: ReservedRange) -> list[Removal]:
    """From a range that the caller has reserved, remove the guests of runs whose reservation has expired.

    Return all removals, including the failed ones.
    """
    guests = cluster.guests(reserved_range.vmids)
    findings = decide_guest_removals(guests, cluster.lab_settings, cluster.now(), reserved_range.lease.token)
    return [remove_guest(cluster, finding) for finding in findings if finding.is_removable and not finding.is_lease_vm]


def remove_guests_backups_and_lease_vm(
    cluster: LabCluster, reserved_range: ReservedRange, keep_reservation: Callable[[], bool]
) -> list[Removal]:
    """Remove the guests and backups of the caller's run, and then its lease VM. Return the failed removals.

    If a removal fails, the lease VM stays. After the reservation has expired, `smith lab-sweep` removes the remaining
    guests and backups, and the lease VM.

    `keep_reservation` is called before each removal. It extends the reservation if necessary, and returns whether the
    caller still has the reservation. If it returns False, nothing more is removed, because another run may have
    reserved the range.
    """
    removals: list[Removal] = []
    for finding in _findings_of_run(cluster, reserved_range):
        if not keep_reservation():
            problem = "another process has taken the reservation over"
            return [*failed_removals_in(removals), Removal(finding=lease_vm_finding(reserved_range), problem=problem)]
        remove = remove_guest if finding.guest is not None else remove_archive
        removals.append(remove(cluster, finding))
    if not failed_removals_in(removals):
        removals.append(remove_lease_vm(cluster, reserved_range))
    return failed_removals_in(removals)


def failed_removals_in(removals: list[Removal]) -> list[Removal]:
    """Return the removals that have failed."""
    return [removal for removal in removals if removal.problem]


def _findings_of_run(cluster: LabCluster, reserved_range: ReservedRange) -> list[Finding]:
    """Return the findings for the guests and backups of the caller's run."""
    token = reserved_range.lease.token
    guests = [
        Finding(name=guest.name, vmid=guest.vmid, is_removable=True, reason="it belongs to this run", guest=guest)
        for guest in cluster.guests(reserved_range.guest_vmids)
        if run_token_of_guest(guest, cluster.lab_settings) == token and not guest.is_template
    ]
    archives = [
        Finding(name=archive.volume, vmid=archive.vmid, is_removable=True, reason="it belongs to this run")
        for archive in cluster.archives()
        if archive.vmid in reserved_range.guest_vmids
        and (lease := lease_of_archive(archive, cluster.lab_settings)) is not None
        and lease.token == token
    ]
    return [*guests, *archives]


def remove_lease_vm(cluster: LabCluster, reserved_range: ReservedRange) -> Removal:
    """Remove the lease VM of the range, if its notes still contain the token of the caller's run.

    The VM is not stopped first. If it was started after its notes were read, Proxmox refuses to remove it.
    """

    def remove() -> None:
        guest = cluster.guest(reserved_range.vmids[0])
        if guest is None:
            return
        lease = lease_of_vm(guest, cluster.lab_settings)
        if lease is not None and lease.token == reserved_range.lease.token:
            cluster.remove_without_stopping(guest)
        elif guest.is_named_as_lease_but_in_use and guest.name == reserved_range.lease_name:
            # `lease_of_vm` returns None for a VM that has the name of a lease VM, but runs or has a disk.
            raise LabError("it runs or has a disk, so it is in use")

    return _try_removal(lease_vm_finding(reserved_range), remove)


def remove_guest(cluster: LabCluster, finding: Finding) -> Removal:
    """Read the guest of a finding again, and remove the guest if its name, notes and kind have not changed.

    The removal fails if the guest's configuration cannot be read. `guest.problem` says why.
    """

    def remove() -> None:
        checked_guest, guest = finding.guest, cluster.guest(finding.vmid)
        if guest is None or checked_guest is None:
            return
        if guest.problem:
            raise LabError(f"its configuration cannot be read: {guest.problem}")
        if (guest.name, guest.notes, guest.kind) != (checked_guest.name, checked_guest.notes, checked_guest.kind):
            raise LabError("its name, notes or kind have changed since it was checked: run `smith lab-sweep` again")
        cluster.stop_and_remove(guest)

    return _try_removal(finding, remove)


def remove_archive(cluster: LabCluster, finding: Finding) -> Removal:
    """Remove the backup of a finding."""
    return _try_removal(finding, lambda: cluster.remove_archive(finding.name))


def _try_removal(finding: Finding, remove: Callable[[], None]) -> Removal:
    try:
        remove()
    except (LabError, JobError) as error:
        return Removal(finding=finding, problem=str(error))
    return Removal(finding=finding)


def lease_vm_finding(reserved_range: ReservedRange) -> Finding:
    """Return the finding for the lease VM of the caller's range."""
    return Finding(
        name=reserved_range.lease_name,
        vmid=reserved_range.vmids[0],
        is_removable=True,
        reason="it belongs to this run",
        is_lease_vm=True,
    )
