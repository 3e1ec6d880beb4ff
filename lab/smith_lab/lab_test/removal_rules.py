"""Decides which guests and backups of lab tests may be removed. Pure functions.

A run is here a run of lab tests, not of one playbook. A token of six hexadecimal digits identifies the run. A lease (in
messages: the reservation) reserves a range of VMIDs for a run until the expiry of the lease. The lease is a text in the
notes of the lease VM: the VM with the first VMID of the range.

A guest may be removed only if its VMID belongs to the lab, and the lease of its run has expired. The name of a guest
contains the token of the run. The marker of a guest is a line in its notes with a service id. This service id contains
the token and the expiry of the lease. An object of the class Lease contains what was read from the notes of a lease VM
or from a marker (reserved_range.py).

A guest whose marker has another token than its name is kept. For a guest without a marker, such as a new clone, the
token in its name is looked up in the notes of the lease VMs. If none of them contains the token, the expiry of the
lease is unknown, and the guest is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from executor.proxmox.rows import ArchiveRow
from executor.shared.marker import marker_values_in, service_id_in
from smith_lab.lab_test.cluster import Guest
from smith_lab.lab_test.lab_settings import LabSettings
from smith_lab.lab_test.reserved_range import Lease, lease_in_notes, lease_in_service_id, token_in_name, utc_text

#: A lease counts as expired GRACE_S seconds after its expiry: the clocks of a cluster's nodes may differ by this time.
GRACE_S = 120


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One guest or backup, with the decision whether it may be removed, and the reason."""

    name: str  #: the name of the guest, or the volume of the backup
    vmid: int
    is_removable: bool
    reason: str
    guest: Guest | None = None  #: None for a backup
    is_lease_vm: bool = False  #: True for a lease VM


def decide_guest_removals(
    guests: Sequence[Guest], lab: LabSettings, now: float, token_of_caller: str = ""
) -> list[Finding]:
    """Decide for each guest whether it may be removed. A guest whose VMID does not belong to the lab is kept.

    Nothing may be removed from a range that another run has reserved. `token_of_caller` is the token of the caller's
    lease; '' if the caller has no lease.
    """
    lease_by_vmid = {guest.vmid: lease for guest in guests if (lease := lease_of_vm(guest, lab)) is not None}
    # A lease contains the tokens of expired runs that have used the same range, but not when they expired. 0 stands
    # for any time in the past.
    expiry_by_token = {token: 0 for lease in lease_by_vmid.values() for token in lease.tokens_of_expired_runs}
    expiry_by_token |= {lease.token: lease.expires_at_s for lease in lease_by_vmid.values()}
    findings = []
    for guest in guests:
        range_lease = next((lease_by_vmid.get(vmids[0]) for vmids in lab.ranges() if guest.vmid in vmids), None)
        is_removable, reason = _check_guest(guest, lab, expiry_by_token, now)
        if is_removable and range_lease and range_lease.token != token_of_caller and not is_expired(range_lease, now):
            is_removable, reason = False, f"its range is reserved until {utc_text(range_lease.expires_at_s)}"
        findings.append(
            Finding(
                name=guest.name,
                vmid=guest.vmid,
                is_removable=is_removable,
                reason=reason,
                guest=guest,
                is_lease_vm=guest.vmid in lease_by_vmid,
            )
        )
    return findings


def decide_archive_removals(
    archives: Iterable[ArchiveRow], guests: Sequence[Guest], lab: LabSettings, now: float
) -> list[Finding]:
    """Decide for each backup that a run has made whether it may be removed. Other backups get no finding.

    Proxmox calls the file of a backup an archive.
    """
    unexpired_tokens = {
        lease.token for guest in guests if (lease := lease_of_vm(guest, lab)) is not None and not is_expired(lease, now)
    }
    findings = []
    for archive in archives:
        lease = lease_of_archive(archive, lab)
        if lease is None or not lab.vmid_min <= archive.vmid <= lab.vmid_max:
            continue
        is_removable = lease.token not in unexpired_tokens and is_expired(lease, now)
        reason = "backup of an expired run" if is_removable else f"reserved until {utc_text(lease.expires_at_s)}"
        findings.append(Finding(name=archive.volume, vmid=archive.vmid, is_removable=is_removable, reason=reason))
    return findings


def lease_of_archive(archive: ArchiveRow, lab: LabSettings) -> Lease | None:
    """Return the token and the expiry in the marker in a backup's notes, as a Lease.

    Return None if the name and the marker in the backup's notes do not identify the same run.
    """
    lease = lease_in_service_id(service_id_in(archive.notes))
    # The first line of the notes of a backup is the name of the guest.
    name = archive.notes.lstrip().partition("\n")[0].strip()
    return lease if lease is not None and token_in_name(name, lab.name_prefix) == lease.token else None


def lease_of_vm(guest: Guest, lab: LabSettings) -> Lease | None:
    """Return the lease in the notes of a lease VM; None if the guest is not a lease VM.

    A VM that has the name of a lease VM, but runs or has a disk (`is_named_as_lease_but_in_use`), is no lease VM.
    """
    lease = lease_in_notes(guest.notes)
    has_lease_name = lease is not None and guest.name == f"{lab.name_prefix}-{lease.token}-lease"
    has_first_vmid = any(guest.vmid == vmids[0] for vmids in lab.ranges())
    return lease if has_lease_name and has_first_vmid and not guest.is_named_as_lease_but_in_use else None


def ranges_of_other_runs(guests: Iterable[Guest], now: float, token_of_caller: str = "") -> list[range]:
    """Return the ranges of VMIDs that other runs have reserved.

    The name prefix and the size of the ranges are not checked, because other runs may have other settings.
    """
    leases = [(guest, lease) for guest in guests if (lease := lease_in_notes(guest.notes)) is not None]
    return [
        range(guest.vmid, max(guest.vmid, lease.last_vmid) + 1)
        for guest, lease in leases
        if guest.name.endswith(f"-{lease.token}-lease")
        and lease.token != token_of_caller
        and not is_expired(lease, now)
    ]


def is_expired(lease: Lease, now: float) -> bool:
    """Return whether a lease has expired by the clock of every node. The clocks may differ by GRACE_S."""
    return now >= lease.expires_at_s + GRACE_S


def run_token_of_guest(guest: Guest, lab: LabSettings) -> str:
    """Return the token of the run that made a guest; '' if the name and the marker do not identify the same run.

    A clone has no marker until its configuration is changed. Until then, only its name identifies the run.
    """
    token = "" if guest.is_named_as_lease_but_in_use else token_in_name(guest.name, lab.name_prefix)
    if not marker_values_in(guest.notes):
        return token
    lease = lease_in_service_id(service_id_in(guest.notes))
    return token if lease is not None and lease.token == token else ""


def _reason_to_keep(guest: Guest, lab: LabSettings) -> str:
    """Return a reason to keep the guest, whatever its marker is; '' if there is none."""
    if guest.problem:
        return f"its configuration cannot be read: {guest.problem}"
    if not lab.vmid_min <= guest.vmid <= lab.vmid_max or not token_in_name(guest.name, lab.name_prefix):
        return "its VMID or name does not belong to the lab"
    if guest.is_named_as_lease_but_in_use:
        return "it has the name of a VM that reserves VMIDs, but runs or has a disk"
    return "it is a template" if guest.is_template else ""


def _check_guest(guest: Guest, lab: LabSettings, expiry_by_token: Mapping[str, int], now: float) -> tuple[bool, str]:
    """Return whether a guest may be removed, and why. The caller then checks whether the guest's range is reserved."""
    if reason := _reason_to_keep(guest, lab):
        return False, reason
    expires_at_s = _expiry_of(guest, lab, expiry_by_token)
    if expires_at_s is None:
        return False, "its notes do not contain the marker of the run that its name identifies"
    if now < expires_at_s + GRACE_S:
        return False, f"reserved until {utc_text(expires_at_s)}"
    if guest.lock:
        return False, f"the reservation of its run has expired, but Proxmox has locked it ({guest.lock})"
    return True, "the reservation of its run has expired"


def _expiry_of(guest: Guest, lab: LabSettings, expiry_by_token: Mapping[str, int]) -> int | None:
    """Return when the lease of a guest's run expires: the later of the times in the lease VM and in the guest's marker.

    Return None if no lease has the token of the run, and the guest has no marker of the run.
    """
    if lease := lease_of_vm(guest, lab):
        return lease.expires_at_s
    token = run_token_of_guest(guest, lab)
    marker_lease = lease_in_service_id(service_id_in(guest.notes))
    expiries = [expiry_by_token[token]] if token in expiry_by_token else []
    if token and marker_lease is not None:
        expiries.append(marker_lease.expires_at_s)
    return max(expiries, default=None)
