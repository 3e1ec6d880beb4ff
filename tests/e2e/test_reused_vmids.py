"""Volumes that are left of a deleted VM: a drift check reports them, and no new VM gets the VMID of the deleted VM.

The agent may use two VMIDs only, so that the tests see which one is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from smith_lab.system import LabSystem, outcome_of

MakeLab = Callable[..., LabSystem]
FIRST, SECOND = 150_000, 150_001


@pytest.fixture
def lab(make_lab: MakeLab) -> LabSystem:
    return make_lab(PROXMOX_VMID_MIN=str(FIRST), PROXMOX_VMID_MAX=str(SECOND), SMITH_VMID_QUARANTINE_S="0")


def wait_for_vmid(lab: LabSystem, service_id: str) -> int:
    lab.wait_for_jobs(service_id)
    assert outcome_of(lab.last_job(service_id)) == "Completed"
    (guest,) = lab.guests_of(service_id)
    return int(guest["vmid"])


def volume_findings(lab: LabSystem) -> list[int]:
    """Return the VMIDs of the deleted VMs of which a drift check finds volumes."""
    findings = lab.run_smith_json("drift", exit_codes=(0, 1))["findings"]
    return [finding["vmid"] for finding in findings if finding["kind"] == "volumes_left"]


def test_a_vmid_is_used_again_only_when_the_volumes_of_its_deleted_vm_are_removed(lab: LabSystem) -> None:
    lab.start_executor()
    deleted_service = lab.order_service("former")
    vmid = wait_for_vmid(lab, deleted_service)
    volume = next(guest for guest in lab.guests_of(deleted_service))["config"]["scsi0"].partition(",")[0]
    lab.proxmox.control("unremovable", volume=volume)
    assert outcome_of(lab.run_action(deleted_service, "delete")) == "Completed"
    assert volume_findings(lab) == [vmid]

    second = lab.order_service("second")
    assert wait_for_vmid(lab, second) != vmid
    refused = lab.order_service("refused")
    lab.wait_for_jobs(refused)
    assert outcome_of(lab.last_job(refused)).startswith("Failed: CAPACITY: no VMID is free")

    storage, _, name = volume.partition(":")
    lab.proxmox.control("remove_volume", storage=storage, volume=name)
    assert lab.run_smith_json("drift", "fix", "--yes", exit_codes=(0, 1))["repaired"][0]["kind"] == "volumes_left"
    assert wait_for_vmid(lab, lab.order_service("third")) == vmid


def test_a_create_whose_vmid_has_unknown_volumes_is_repeated_with_another_vmid(lab: LabSystem) -> None:
    """Another client, or an agent with another database, has deleted the VM: this agent's database has no row of it."""
    lab.proxmox.control("add_volume", storage="local-lvm", volume=f"vm-{FIRST}-disk-0", vmid=FIRST, size=1)
    lab.start_executor()
    assert wait_for_vmid(lab, lab.order_service("new")) == SECOND
