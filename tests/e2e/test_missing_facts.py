"""Jobs on a cluster whose lists of guests lack names and other facts, as when nodes send no statistics.

No existing VM or template counts as missing, and no second VM is created.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from smith_lab.system import LabSystem, outcome_of, wait_for

MakeLab = Callable[..., LabSystem]
#: A VMID in the agent's range.
VMID = 150_001
ALL_NODES = ["pve1", "pve2"]


@pytest.fixture
def lab(make_lab: MakeLab) -> LabSystem:
    return make_lab()


def test_a_vm_is_created_started_and_deleted_while_no_node_sends_statistics(lab: LabSystem) -> None:
    lab.proxmox.control("statistics", silent_nodes=ALL_NODES)
    lab.start_executor()
    service_id = lab.order_service("silent")
    lab.wait_for_jobs(service_id)
    outcomes = [outcome_of(lab.last_job(service_id))]
    outcomes += [outcome_of(lab.run_action(service_id, action)) for action in ("start", "stop", "delete")]
    assert outcomes == ["Completed"] * 4
    assert lab.guests_of(service_id) == []


@pytest.mark.parametrize("tags", ["smith", ""])
def test_an_unmapped_vm_is_found_by_its_marker_although_the_list_of_guests_lacks_its_name(
    lab: LabSystem, tags: str
) -> None:
    service_id = lab.order_service("found")
    config = {"cores": 1, "memory": "512", "tags": tags, "description": f"smith-uid={service_id}"}
    config |= {"scsi0": f"ceph:vm-{VMID}-disk-0,size=10G", "net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0"}
    lab.proxmox.control("add", vmid=VMID, name=f"found-{service_id[:8]}", config=config)
    lab.proxmox.control("statistics", silent_nodes=ALL_NODES)
    lab.start_executor()

    lab.wait_for_jobs(service_id)

    assert outcome_of(lab.last_job(service_id)) == "Completed"
    assert [guest["vmid"] for guest in lab.guests_of(service_id)] == [VMID]


def test_a_clone_without_a_name_delays_the_search_for_an_unmapped_vm(lab: LabSystem) -> None:
    lab.proxmox.control("add", vmid=VMID, name="", config={"lock": "clone"})
    lab.proxmox.control("lock", vmid=VMID, lock="clone")
    service_id = lab.order_service("waiting")
    lab.start_executor()

    wait_for(lambda: lab.log_events("job_requeued"), 60, "the job to be requeued")
    assert "VM_LOCKED" in lab.log_events("job_requeued")[0]["reason"]
    assert lab.guests_of(service_id) == []

    lab.proxmox.control("rename", vmid=VMID, name="of-another-owner")
    lab.proxmox.control("lock", vmid=VMID, lock=None)
    lab.wait_for_jobs(service_id)
    assert outcome_of(lab.last_job(service_id)) == "Completed"
    assert [guest["vmid"] != VMID for guest in lab.guests_of(service_id)] == [True]
