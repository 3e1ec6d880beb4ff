"""A failed job keeps the mapping of an existing VM. It deletes only a reservation, which has no VM yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem, outcome_of

MakeLab = Callable[..., LabSystem]
#: A playbook that replaces the project's `start` and reports that another VM has the VMID.
VMID_TAKEN = """---
- name: Fail because another VM has the VMID
  hosts: proxmox
  gather_facts: false
  tasks:
    - name: Fail
      ansible.builtin.fail:
        msg: "VM_ID_TAKEN: VMID {{ vm.vmid }} is held by another guest"
"""


def mapping_of(lab: LabSystem, service_id: str, *options: str) -> dict[str, Any]:
    listed = lab.run_smith_json("mappings", "list", *options)
    (found,) = [mapping for mapping in listed if mapping["service_id"] == service_id]
    return dict(found)


def test_an_action_that_reports_a_taken_vmid_keeps_the_mapping_of_the_vm(make_lab: MakeLab, tmp_path: Path) -> None:
    folder = tmp_path / "actions"
    folder.mkdir(mode=0o755)
    playbook = folder / "start.yml"
    playbook.write_text(VMID_TAKEN, encoding="utf-8")
    playbook.chmod(0o644)
    lab = make_lab(SMITH_ACTIONS_PATH=str(folder))
    lab.start_executor()
    service_id = lab.order_service("living")
    lab.wait_for_jobs(service_id)
    before = mapping_of(lab, service_id)

    job = lab.run_action(service_id, "start")

    assert outcome_of(job).startswith("Failed: VM_ID_TAKEN: ")
    assert not lab.log_events("job_requeued"), "further attempts would use the same VMID"
    after = mapping_of(lab, service_id)
    assert (after["created_at"], after["vmid"], after["state"]) == (before["created_at"], before["vmid"], "active")


@pytest.mark.parametrize("has_marker", [True, False], ids=["a VM with the marker", "a partial clone"])
def test_a_create_that_fails_before_its_run_keeps_the_mapping_of_a_vm_that_it_found(
    make_lab: MakeLab, has_marker: bool
) -> None:
    lab = make_lab()
    service_id = lab.order_service("found", image="no-such-image")
    config = {"cores": 1, "memory": "512"} | ({"description": f"smith-uid={service_id}"} if has_marker else {})
    lab.proxmox.control(
        "add", vmid=150_001, name=f"found-{service_id[:8]}", node="pve1", status="stopped", config=config
    )
    lab.start_executor()

    lab.wait_for_jobs(service_id)

    assert outcome_of(lab.last_job(service_id)).startswith("Failed: NOT_FOUND: ")
    assert mapping_of(lab, service_id)["vmid"] == 150_001


def test_a_create_that_fails_before_its_run_deletes_its_new_reservation(make_lab: MakeLab) -> None:
    lab = make_lab()
    service_id = lab.order_service("refused", image="no-such-image")
    lab.start_executor()

    lab.wait_for_jobs(service_id)

    assert outcome_of(lab.last_job(service_id)).startswith("Failed: NOT_FOUND: ")
    assert mapping_of(lab, service_id, "--state", "deleted")["note"].startswith("NOT_FOUND: ")
