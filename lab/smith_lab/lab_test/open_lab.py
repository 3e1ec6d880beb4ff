"""Prepares the lab for one run of tests: starts a stand-in if LAB_PROXMOX_* names no cluster, and reserves VMIDs.

The lab is a Proxmox cluster for tests, or a stand-in for such a cluster. A lease is a text in the notes of a VM. It
reserves VMIDs for a run, and contains its expiry and the token that identifies the run. A finding says whether a guest
or a backup may be removed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from executor.errors import JobError
from executor.settings.settings import Settings
from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.lab_settings import VARIABLE_PREFIX, LabSettings, is_lab_configured
from smith_lab.lab_test.removal import Removal, lease_vm_finding
from smith_lab.lab_test.reservation import extend_reservation, release_range, reserve_when_free
from smith_lab.lab_test.reserved_range import Lease, ReservedRange
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

#: The environment variable by which `smith lab-test` passes the reserved range to pytest. Its value is the token of the
#: run, the expiry of the reservation, the first and the last VMID.
RESERVED_VARIABLE = f"{VARIABLE_PREFIX}RESERVED"
#: If this environment variable is set, the guests are kept until the reservation expires.
KEEP_VARIABLE = f"{VARIABLE_PREFIX}KEEP"
#: Seconds at the end of a reservation in which no test runs. In this time, the run ends its processes and removes its
#: guests.
CLEANUP_S = 300


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """One run of tests in the lab."""

    settings: LabSettings
    reserved_range: ReservedRange
    #: The removals that have failed at the end of the run.
    failed_removals: list[Removal] = field(default_factory=list)

    def variables(self) -> dict[str, str]:
        """Return the environment variables with which another process uses the range of this run.

        Among them, LAB_PROXMOX_VMID_MIN and LAB_PROXMOX_VMID_MAX are the first and the last VMID for the run's guests.
        The first VMID of the range is not for guests: the VM whose notes contain the lease has it.
        """
        lease, vmids = self.reserved_range.lease, self.reserved_range.vmids
        guest_range = {
            f"{VARIABLE_PREFIX}VMID_MIN": str(self.reserved_range.guest_vmids[0]),
            f"{VARIABLE_PREFIX}VMID_MAX": str(self.reserved_range.guest_vmids[-1]),
        }
        reserved_text = f"{lease.token} {lease.expires_at_s} {vmids[0]} {vmids[-1]}"
        return {**self.settings.variables(), **guest_range, RESERVED_VARIABLE: reserved_text}


@contextmanager
def open_lab(environ: Mapping[str, str]) -> Iterator[LabSettings]:
    """Yield the settings of the lab that LAB_PROXMOX_* names, or of a stand-in, which runs for the `with` block."""
    if is_lab_configured(environ):
        lab = LabSettings.from_environment(environ)
        lab.require_enough_vmids_for_one_test_run()
        yield lab
        return
    with running_stand_in() as stand_in:
        yield stand_in_settings(stand_in)


@contextmanager
def reserve_range_for_run(
    lab: LabSettings,
    *,
    time_limit_s: float,
    must_keep_guests: bool = False,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] = print,
) -> Iterator[LabRun]:
    """Reserve a range for the `with` block. Then remove the guests of the run, unless `must_keep_guests` is set.

    The tests may run for `time_limit_s`. The reservation lasts CLEANUP_S longer.
    If all ranges are reserved, this function calls `on_wait` with a text, and waits up to `wait_s`. Raises NoFreeRange.
    The failed removals are added to the `failed_removals` of the run.
    """
    cluster, duration_s = LabCluster(lab), time_limit_s + CLEANUP_S
    reserved_range = reserve_when_free(cluster, duration_s, wait_s, on_wait)
    # `reserve_when_free` also removes the guests of expired runs from the range. If this has taken more than half of
    # CLEANUP_S, the reservation is extended. `extend_reservation` returns None if another process has taken over the
    # reservation. This function then yields the range with the old lease. `smith lab-test` notices that the
    # reservation is lost, and ends the tests.
    if reserved_range.lease.expires_at_s - cluster.now() < duration_s - CLEANUP_S / 2:
        reserved_range = extend_reservation(cluster, reserved_range, cluster.now() + duration_s) or reserved_range
    run = LabRun(settings=lab, reserved_range=reserved_range)
    try:
        yield run
    finally:
        if not must_keep_guests:
            run.failed_removals.extend(_release_range_with_retry(cluster, reserved_range))


def _release_range_with_retry(cluster: LabCluster, reserved_range: ReservedRange) -> list[Removal]:
    """Remove the run's guests, and release the range. If a guest could not be removed, try once more.

    A removal fails while a Proxmox task, such as a clone, still locks the guest. This function ignores Ctrl-C and
    TERM, because guests that it does not remove stay until the reservation has expired.
    """
    with _signals_ignored():
        try:
            return release_range(cluster, reserved_range) and release_range(cluster, reserved_range)
        except (LabError, JobError) as error:
            # A Removal needs a finding, and a finding is for one guest. It is unknown which guests remain, so this is
            # the finding for the VM with the lease.
            problem = f"the guests of this run cannot be removed: {error}"
            return [Removal(finding=lease_vm_finding(reserved_range), problem=problem)]


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignore Ctrl-C and TERM during the block."""
    previous_handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def lab_run_of_parent_process(environ: Mapping[str, str]) -> LabRun | None:
    """Return the run of the `smith lab-test` that started this process; None if RESERVED_VARIABLE is not set."""
    text = environ.get(RESERVED_VARIABLE, "")
    if not text:
        return None
    try:
        token, expires_at_s, first, last = text.split()
        lease, vmids = Lease(token=token, expires_at_s=int(expires_at_s)), range(int(first), int(last) + 1)
    except ValueError as exc:
        raise LabError(
            f"{RESERVED_VARIABLE} has a wrong value: unset it, because only `smith lab-test` may set it"
        ) from exc
    settings = LabSettings.from_environment(environ)
    reserved_range = ReservedRange(vmids=vmids, lease=lease, lab_name_prefix=settings.name_prefix)
    return LabRun(settings=settings, reserved_range=reserved_range)


def stand_in_settings(stand_in: ProxmoxStandIn) -> LabSettings:
    """Return the settings of a lab that is a stand-in. Its VMIDs are outside the executor's default range."""
    first = Settings().proxmox_vmid_min // 10
    return LabSettings(
        host=stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_id=stand_in.token_id,
        token_secret=stand_in.token_secret,
        ca_bundle=str(stand_in.ca_bundle),
        node="pve1",
        second_node="pve2",
        template=9000,
        storage="ceph",
        backup_storage="backups",
        os_template="local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst",
        vmid_min=first,
        vmid_max=first + 99,
    )
