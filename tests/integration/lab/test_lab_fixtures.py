"""The fixture `guests` of lab tests, which makes VMs in the VMID range of a run, with a stand-in as the lab.

The tests cover how workers share the range, the labels in names of VMs, and the end of the range's reservation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from smith_lab.lab_test.cluster import LabError
from smith_lab.lab_test.guest_actions import GuestActions
from smith_lab.lab_test.open_lab import CLEANUP_S, LabRun
from smith_lab.lab_test.reserved_range import ReservedRange, new_lease
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.lab_settings import FIRST, SIZE, lab_settings


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def guests(stand_in: ProxmoxStandIn) -> GuestActions:
    lease = new_lease(time.time() + 600)
    reserved = ReservedRange(vmids=range(FIRST, FIRST + SIZE), lease=lease, lab_name_prefix="smith-lab")
    return GuestActions(lab_run=LabRun(settings=lab_settings(stand_in), reserved_range=reserved))


def test_each_worker_uses_vmids_of_its_own(guests: GuestActions) -> None:
    workers = [replace(guests, worker_index_and_count=(number, 3)).vmids for number in range(3)]
    assert sorted(vmid for vmids in workers for vmid in vmids) == list(range(FIRST + 1, FIRST + SIZE))


def test_a_test_that_needs_a_vmid_fails_if_all_are_in_use(stand_in: ProxmoxStandIn, guests: GuestActions) -> None:
    worker_of_six = replace(guests, worker_index_and_count=(0, 6))
    for vmid in worker_of_six.vmids:
        assert worker_of_six.new_vm_variable()["vmid"] == vmid
        stand_in.control("add", vmid=vmid, name="used", node="pve1")
    with pytest.raises(LabError, match="all are in use"):
        worker_of_six.new_vm_variable()


@pytest.mark.parametrize("label", ["", "-x", "Web", "a b", "a.b", "x" * 21, "ü", "{{ 7 * 7 }}"])
def test_a_label_that_cannot_be_a_part_of_a_vms_name_is_refused(guests: GuestActions, label: str) -> None:
    with pytest.raises(LabError, match="label"):
        guests.new_vm_variable(label)


def test_no_action_begins_shortly_before_the_reservation_ends(stand_in: ProxmoxStandIn, guests: GuestActions) -> None:
    vm = replace(guests, worker_index_and_count=(5, 6)).new_vm_variable()
    stand_in.control("clock", shift_s=600 - CLEANUP_S)
    stand_in.reset_request_log()
    try:
        with pytest.raises(LabError, match="the reservation of this run ends"):
            guests.create(vm)
    finally:
        stand_in.control("clock", shift_s=0)
    assert stand_in.changing_requests() == []
