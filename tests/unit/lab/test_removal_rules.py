"""Which guests and backups of lab tests may be removed."""

from __future__ import annotations

from typing import Any

import pytest
from smith_lab.lab_test.cluster import Guest
from smith_lab.lab_test.removal_rules import GRACE_S, decide_archive_removals, decide_guest_removals
from smith_lab.lab_test.reserved_range import (
    Lease,
    ReservedRange,
    lease_in_notes,
    lease_in_service_id,
    new_lease,
    new_service_id,
    token_in_name,
)
from support.lab_settings import FIRST, SIZE, lab_settings

from executor.proxmox.rows import ArchiveRow
from executor.shared.marker import is_service_id, marker_for

LAB = lab_settings()
NOW = 1_800_000_000
#: Expiry times of leases: the first one has passed long enough ago for a removal, the second one has not.
EXPIRED, LIVE = NOW - GRACE_S, NOW - GRACE_S + 1
VMIDS = range(FIRST, FIRST + SIZE)


def reserve_for_run(until: int, **changes: Any) -> ReservedRange:
    """Return a range that a run of the lab tests has reserved until this time."""
    return ReservedRange(vmids=VMIDS, lease=new_lease(until, **changes), lab_name_prefix=LAB.name_prefix)


def lease_vm(reserved: ReservedRange, **changes: Any) -> Guest:
    values: dict[str, Any] = {"vmid": FIRST, "name": reserved.lease_name, "notes": reserved.lease.notes()}
    return Guest(**{"node": "pve1", "kind": "qemu", **values, **changes})


def vm(reserved: ReservedRange, **changes: Any) -> Guest:
    service_id = reserved.new_service_id()
    values = {"vmid": FIRST + 1, "name": f"{reserved.prefix}-web-{service_id[:8]}", "notes": marker_for(service_id)}
    return Guest(**{"node": "pve1", "kind": "qemu", **values, **changes})


def are_removable(*guests: Guest, token_of_caller: str = "") -> list[bool]:
    """Return for each guest whether it may be removed."""
    return [finding.is_removable for finding in decide_guest_removals(guests, LAB, NOW, token_of_caller)]


def test_a_service_id_of_the_lab_names_its_lease_and_is_a_valid_id() -> None:
    lease = new_lease(NOW)
    service_id = new_service_id(lease)
    assert lease_in_service_id(service_id) == lease
    assert is_service_id(service_id)
    assert new_service_id(lease) != service_id


@pytest.mark.parametrize(
    "service_id", ["", "8f2c0a11-9b5e-4a1b-bc2d-6929e0105b7e", "8f2c0a11-1ab0-4a1b-bc2d-6929e0105b7e"]
)
def test_a_service_id_of_no_lab_names_no_lease(service_id: str) -> None:
    assert lease_in_service_id(service_id) is None


def test_the_notes_of_a_lease_are_readable_after_proxmox_has_stored_them() -> None:
    lease = new_lease(NOW, tokens_of_expired_runs=("0123ab", "ffffff"))
    assert lease_in_notes(lease.notes().rstrip()) == lease
    assert lease_in_notes("smith-lab=xyz\nsmith-lab-until=1") is None
    assert lease_in_notes(f"smith-lab={lease.token}") is None


def test_a_name_of_the_lab_contains_prefix_and_token() -> None:
    assert token_in_name("smith-lab-0123ab-web-8f2c0a11", "smith-lab") == "0123ab"
    assert token_in_name("smith-lab-0123ab", "smith-lab") == ""
    assert token_in_name("my-smith-lab-0123ab-web", "smith-lab") == ""
    assert token_in_name("smith-lab-0123ab-Web", "smith-lab") == "0123ab"
    assert token_in_name("smith-lab-2-0123ab-web", "smith-lab") == ""


@pytest.mark.parametrize(("until", "is_removable"), [(EXPIRED, True), (LIVE, False)])
def test_the_guests_of_a_run_are_removed_only_after_the_expiry_of_its_lease(until: int, is_removable: bool) -> None:
    reserved = reserve_for_run(until)
    assert are_removable(lease_vm(reserved), vm(reserved)) == [is_removable, is_removable]
    assert are_removable(vm(reserved)) == [is_removable]  # without its lease


def test_a_guest_that_does_not_match_range_name_marker_and_state_is_not_removed() -> None:
    reserved = reserve_for_run(EXPIRED)
    of_other_run = reserve_for_run(EXPIRED)
    not_removable = [
        vm(reserved, vmid=FIRST - 1),
        vm(reserved, vmid=FIRST + 3 * SIZE),
        vm(reserved, name="web-8f2c0a11"),
        vm(reserved, name="smith-lab-web"),
        vm(reserved, notes=""),  # without the run's lease, the name alone does not identify the VM
        vm(reserved, notes=marker_for("8f2c0a11-9b5e-4a1b-bc2d-6929e0105b7e")),
        vm(reserved, notes=marker_for(of_other_run.new_service_id())),
        vm(reserved, notes=f"{marker_for(reserved.new_service_id())}\n{marker_for(of_other_run.new_service_id())}"),
        vm(reserved, is_template=True),
        vm(reserved, lock="clone"),
        lease_vm(reserved, vmid=FIRST + 1),
        lease_vm(reserved, name="smith-lab-000000-lease"),
        lease_vm(reserved, is_named_as_lease_but_in_use=True),
        vm(reserved, problem="595 No route to host"),
    ]
    assert [are_removable(guest) for guest in not_removable] == [[False]] * len(not_removable)


def test_a_clone_without_a_marker_is_removable_if_the_lease_names_its_expired_run() -> None:
    expired, live = reserve_for_run(EXPIRED), reserve_for_run(LIVE)
    assert are_removable(lease_vm(expired), vm(expired, notes="Debian 12"))[1]
    assert not are_removable(lease_vm(live), vm(live, notes="Debian 12"))[1]
    taken_over = reserve_for_run(EXPIRED, tokens_of_expired_runs=(expired.lease.token,))
    assert are_removable(lease_vm(taken_over), vm(expired, notes=""))[1]


def test_guests_that_were_created_before_their_lease_was_extended_are_not_removed() -> None:
    reserved = reserve_for_run(EXPIRED)
    extended = ReservedRange(
        vmids=VMIDS, lease=Lease(token=reserved.lease.token, expires_at_s=LIVE), lab_name_prefix=LAB.name_prefix
    )
    assert are_removable(lease_vm(extended), vm(reserved)) == [False, False]


def test_only_the_owner_of_a_reserved_range_may_remove_guests_from_it() -> None:
    expired, live = reserve_for_run(EXPIRED), reserve_for_run(LIVE)
    guests = [lease_vm(live), vm(expired), vm(live)]
    assert are_removable(*guests) == [False, False, False]
    assert are_removable(*guests, token_of_caller=live.lease.token) == [False, True, False]


def test_backups_of_expired_runs_are_removed() -> None:
    expired, live = reserve_for_run(EXPIRED), reserve_for_run(LIVE)
    extended = Lease(token=expired.lease.token, expires_at_s=LIVE)
    notes = f"{expired.prefix}-web\n{marker_for(expired.new_service_id())}"
    live_notes = f"{live.prefix}-web\n{marker_for(live.new_service_id())}"
    other_prefix = f"ci-{expired.lease.token}-web\n{marker_for(expired.new_service_id())}"
    archives = [
        ArchiveRow(volume="backups:expired", vmid=FIRST + 1, notes=notes),
        ArchiveRow(volume="backups:live", vmid=FIRST + 1, notes=live_notes),
        ArchiveRow(volume="backups:other prefix", vmid=FIRST + 1, notes=other_prefix),
        ArchiveRow(volume="backups:no name", vmid=FIRST + 1, notes=marker_for(expired.new_service_id())),
        ArchiveRow(volume="backups:outside", vmid=FIRST - 1, notes=notes),
        ArchiveRow(volume="backups:foreign", vmid=FIRST + 1, notes="web"),
    ]
    is_removable_by_name = {
        finding.name: finding.is_removable for finding in decide_archive_removals(archives, [], LAB, NOW)
    }
    assert is_removable_by_name == {"backups:expired": True, "backups:live": False}
    lease_guest = lease_vm(ReservedRange(vmids=VMIDS, lease=extended, lab_name_prefix=LAB.name_prefix))
    assert not any(finding.is_removable for finding in decide_archive_removals(archives, [lease_guest], LAB, NOW))
