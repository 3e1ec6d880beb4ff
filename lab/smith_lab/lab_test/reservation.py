"""Reserves a range of VMIDs for one run of lab tests. The runs may be on machines that share only the lab's Proxmox.

A range is reserved by a stopped VM with the range's first VMID. If two processes create this VM, Proxmox refuses the
second request. To take over an expired reservation, a process changes the VM by a request with the digest of the VM's
configuration. If two processes send this request, Proxmox refuses the second, because the digest has changed. The owner
extends its reservation in the same way. The notes of this VM (the lease VM) contain the lease: the token of the run
(six hexadecimal digits that identify the run), the time at which the reservation expires, the range's last VMID, and
the tokens of expired runs whose guests may still be in the range.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from smith_lab.lab_test.cluster import (
    PROXMOX_TASK_TIMEOUT_S,
    ConcurrentChange,
    Guest,
    LabCluster,
    LabError,
    NoAnswer,
)
from smith_lab.lab_test.lab_settings import MIN_RANGE_SIZE
from smith_lab.lab_test.removal import Removal, remove_guests_backups_and_lease_vm, remove_lease_vm, remove_leftovers
from smith_lab.lab_test.removal_rules import decide_guest_removals, is_expired, lease_of_vm, ranges_of_other_runs
from smith_lab.lab_test.reserved_range import Lease, ReservedRange, new_lease, token_in_name

#: Maximum seconds of one removal, which stops and destroys a guest. If the reservation would expire during a removal,
#: it is extended before the removal.
MAX_REMOVAL_S = 2 * PROXMOX_TASK_TIMEOUT_S + 60
#: How long a process waits before it tries again to reserve a range. A random time up to the same value is added.
WAIT_INTERVAL_S = 10.0


class NoFreeRange(LabError):
    """Each range of the lab is reserved, or has too few VMIDs for the guests of a run."""

    def __init__(self, text: str, *, may_become_free: bool) -> None:
        """`may_become_free` is true if a range can become free because its run ends."""
        super().__init__(text)
        self.may_become_free = may_become_free


def reserve_when_free(
    cluster: LabCluster, duration_s: float, wait_s: float, on_wait: Callable[[str], None]
) -> ReservedRange:
    """Reserve a range for `duration_s`. If all ranges are reserved, wait up to `wait_s` for a free range.

    `on_wait` is called once, with a text, before the wait. Raises NoFreeRange.
    """
    deadline, is_wait_reported = time.monotonic() + wait_s, False
    while True:
        try:
            # `cluster.now()` is the time of Proxmox's clock. All runs compare the expiry of leases with this clock.
            return reserve_any_range(cluster, cluster.now() + duration_s)
        except NoFreeRange as error:
            remaining_s = deadline - time.monotonic()
            if not error.may_become_free or remaining_s <= 0:
                raise
            if not is_wait_reported:
                on_wait(f"{error}\nwaiting up to {wait_s:.0f} s for a free range")
                is_wait_reported = True
            time.sleep(min(remaining_s, WAIT_INTERVAL_S * (1 + random.random())))  # noqa: S311 (no secret)


def reserve_any_range(cluster: LabCluster, expires_at_s: float) -> ReservedRange:
    """Reserve a range until `expires_at_s`, and remove the guests of expired runs from it. Raises NoFreeRange.

    Ranges with fewer guests are tried first. Otherwise the order is random, so that runs that start together seldom try
    the same range. If Proxmox refuses a request for a range, the next range is tried.
    """
    lab, refusal_text = cluster.lab_settings, ""
    # All lease VMs of the Proxmox cluster are included, because another run may have other settings: its lease VM may
    # have a VMID outside the VMIDs of `lab`, the settings of this run.
    guests = cluster.guests_and_all_lease_vms(range(lab.vmid_min, lab.vmid_max + 1))
    now = cluster.now()
    for vmids in _free_ranges(cluster, guests, now):
        try:
            lease = acquire_lease(cluster, vmids, guests, expires_at_s)
        except NoAnswer:  # Proxmox did not answer the request
            raise
        except LabError as error:
            refusal_text = f" (Proxmox: {error})"
            continue
        if lease is None:
            continue
        reserved_range = ReservedRange(vmids=vmids, lease=lease, lab_name_prefix=lab.name_prefix)
        if _overlaps_other_run(cluster, reserved_range):
            remove_lease_vm(cluster, reserved_range)
            continue
        remove_leftovers(cluster, reserved_range)
        return reserved_range
    raise NoFreeRange(
        f"all {len(lab.ranges())} ranges between the VMIDs {lab.vmid_min} and {lab.vmid_max} are reserved or in use"
        f"{refusal_text}: wait for the other runs, remove the guests of expired runs (`smith lab-sweep --apply`), or "
        "give the lab more VMIDs (LAB_PROXMOX_VMID_MIN, LAB_PROXMOX_VMID_MAX)",
        # A range can become free if another run has a lease that has not expired.
        may_become_free=bool(ranges_of_other_runs(guests, now)),
    )


def _free_ranges(cluster: LabCluster, guests: Sequence[Guest], now: float) -> list[range]:
    """Return the ranges that no other run has reserved and that have enough usable VMIDs for guests.

    A VMID is usable if no guest has it, or if its guest may be removed.
    """
    lab = cluster.lab_settings
    reserved_ranges = ranges_of_other_runs(guests, now)
    removal_decisions = decide_guest_removals(guests, lab, now)
    kept_vmids = {decision.vmid for decision in removal_decisions if not decision.is_removable}
    free_ranges = [
        vmids
        for vmids in lab.ranges()
        if not any(_do_overlap(vmids, other) for other in reserved_ranges)
        and sum(vmid not in kept_vmids for vmid in vmids[1:]) >= MIN_RANGE_SIZE - 1
    ]
    random.shuffle(free_ranges)
    return sorted(free_ranges, key=lambda vmids: sum(guest.vmid in vmids for guest in guests))


def _overlaps_other_run(cluster: LabCluster, reserved_range: ReservedRange) -> bool:
    """Return whether another run has also reserved a part of the range that the caller has just reserved.

    This can happen if both runs reserve at the same time and have ranges of different sizes. The configuration of every
    guest in the lab is read, because Proxmox's list of guests is not sufficient: for some seconds, the list can show a
    new lease VM with the name of an earlier guest that had this VMID.
    """
    guests = cluster.guests_and_all_lease_vms(range(cluster.lab_settings.vmid_min, cluster.lab_settings.vmid_max + 1))
    others = ranges_of_other_runs(guests, cluster.now(), token_of_caller=reserved_range.lease.token)
    return any(_do_overlap(reserved_range.vmids, other) for other in others)


def _do_overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def acquire_lease(cluster: LabCluster, vmids: range, guests: Sequence[Guest], expires_at_s: float) -> Lease | None:
    """Reserve one range until `expires_at_s`; return the lease.

    `guests` must contain the guests in the range, and may contain other guests. If no guest has the first VMID, a
    lease VM with this VMID is created. If the guest with the first VMID has an expired lease, the lease is replaced.
    Otherwise, None is returned. If another process creates or changes the VM first, None is returned, too.
    """
    first_guest = next((guest for guest in guests if guest.vmid == vmids[0]), None)
    if first_guest is None:
        lease = new_lease(expires_at_s, last_vmid=vmids[-1])
        name = f"{cluster.lab_settings.name_prefix}-{lease.token}-lease"
        return _write_lease(cluster, vmids[0], lease, lambda: cluster.create_stopped_vm(vmids[0], name, lease.notes()))
    old_lease = lease_of_vm(first_guest, cluster.lab_settings)
    if old_lease is None or not is_expired(old_lease, cluster.now()):
        return None
    lease = new_lease(
        expires_at_s,
        last_vmid=vmids[-1],
        tokens_of_expired_runs=_tokens_of_expired_runs(cluster, vmids, guests, old_lease),
    )
    return replace_lease(cluster, first_guest, lease)


def replace_lease(cluster: LabCluster, lease_vm: Guest, lease: Lease) -> Lease | None:
    """Replace the lease in the notes of `lease_vm` by `lease`. Return None if another process changed the VM first."""
    name = f"{cluster.lab_settings.name_prefix}-{lease.token}-lease"
    return _write_lease(
        cluster, lease_vm.vmid, lease, lambda: cluster.replace_name_and_notes(lease_vm, name, lease.notes())
    )


def _tokens_of_expired_runs(
    cluster: LabCluster, vmids: range, guests: Sequence[Guest], old_lease: Lease
) -> tuple[str, ...]:
    """Return the token of `old_lease`, and the tokens of earlier runs that may still have guests in the range.

    A clone has no name at first. So a guest without a name may belong to any earlier run.
    """
    names = [guest.name for guest in guests if guest.vmid in vmids[1:]]
    tokens_in_names = {token_in_name(name, cluster.lab_settings.name_prefix) for name in names}
    earlier_tokens = [token for token in old_lease.tokens_of_expired_runs if token in tokens_in_names or "" in names]
    return (*earlier_tokens, old_lease.token)


def _write_lease(cluster: LabCluster, vmid: int, lease: Lease, request: Callable[[], None]) -> Lease | None:
    """Send the request that writes a lease; return the lease, or None if another process changed the VM first.

    If the answer was lost, read the VM. Raises NoAnswer if the VM does not have the lease.
    """
    try:
        request()
    except ConcurrentChange:
        return None
    except NoAnswer:
        if not does_vm_contain_lease(cluster, vmid, lease):
            raise
    return lease


def does_vm_contain_lease(cluster: LabCluster, vmid: int, lease: Lease) -> bool:
    """Return whether the VM still has a lease with the token of `lease`. Raises LabError if the VM cannot be read."""
    return _lease_vm_and_lease(cluster, vmid, lease) is not None


def _lease_vm_and_lease(cluster: LabCluster, vmid: int, lease: Lease) -> tuple[Guest, Lease] | None:
    """Return the lease VM and its current lease; None if the VM has no lease with the token of `lease`."""
    lease_vm = cluster.guest(vmid) or cluster.guest(vmid)  # twice: the VM may move to another node during a read
    if lease_vm is None:
        return None
    if lease_vm.problem:
        raise LabError(f"the configuration of VM {vmid} cannot be read: {lease_vm.problem}")
    current_lease = lease_of_vm(lease_vm, cluster.lab_settings)
    if current_lease is None or current_lease.token != lease.token:
        return None
    return lease_vm, current_lease


def extend_reservation(cluster: LabCluster, reserved_range: ReservedRange, expires_at_s: float) -> ReservedRange | None:
    """Extend the caller's reservation until `expires_at_s`, and return the range with the new lease.

    Return None if the caller no longer has the reservation.
    """
    lease_vm_and_lease = _lease_vm_and_lease(cluster, reserved_range.vmids[0], reserved_range.lease)
    if lease_vm_and_lease is None:
        return None
    lease_vm, lease = lease_vm_and_lease
    extended_lease = replace_lease(cluster, lease_vm, replace(lease, expires_at_s=int(expires_at_s)))
    return replace(reserved_range, lease=extended_lease) if extended_lease is not None else None


def release_range(cluster: LabCluster, reserved_range: ReservedRange) -> list[Removal]:
    """Remove the guests and backups of the caller's run, and then its lease VM. Return the failed removals.

    If the reservation would expire during a removal, it is extended first.
    """
    current_range = reserved_range

    def keep_reservation() -> bool:
        """Extend the reservation if it would expire during a removal; return whether the caller still has it."""
        nonlocal current_range
        now = cluster.now()
        if current_range.lease.expires_at_s - now >= MAX_REMOVAL_S:
            return True
        extended_range = extend_reservation(cluster, current_range, now + 2 * MAX_REMOVAL_S)
        current_range = extended_range or current_range
        return extended_range is not None

    return remove_guests_backups_and_lease_vm(cluster, reserved_range, keep_reservation)
