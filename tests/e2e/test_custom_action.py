"""A custom action, the example of docs/custom-actions.md, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from smith_lab.system import LabSystem, outcome_of, wait_for
from support.custom_action import ISO, copy_action, offer_action

MakeLab = Callable[..., LabSystem]


@pytest.fixture
def lab(make_lab: MakeLab, tmp_path: Path) -> LabSystem:
    """A system with the custom action and a service type that offers it."""
    system = make_lab(SMITH_ACTIONS_PATH=str(copy_action(tmp_path / "actions")))
    offer_action(system)
    system.start_executor()
    return system


def order(lab: LabSystem, name: str, **properties: object) -> str:
    service = lab.admin.create_service(
        group_id=lab.admin.create_group(lab.ids.consumer_id, f"group-{name}"),
        service_type_id=lab.ids.service_type_id,
        agent_id=lab.ids.agent_id,
        name=name,
        properties={"cores": 1, "memoryMb": 1024, "diskGb": 8, "image": "debian-12", **properties},
    )
    lab.wait_for_jobs(service["id"])
    return str(service["id"])


def drive_of(lab: LabSystem, service_id: str) -> str:
    """Return the VM's CD drive `ide3`. No change of the VM may wait for a restart."""
    (vm,) = lab.guests_of(service_id)
    assert vm["pending"] == {}
    return str(vm["config"].get("ide3", ""))


def test_the_documented_action_attaches_the_image_and_restarts_a_running_vm(lab: LabSystem) -> None:
    service_id = order(lab, "installer", isoImage=ISO)
    lab.run_action(service_id, "start")
    assert drive_of(lab, service_id) == ""
    by_hand = ("play", "attach-iso", "--service", service_id, "-e", f"properties.isoImage={ISO}")
    lab.proxmox.reset_request_log()
    assert lab.run_smith_json(*by_hand, "--check")["vm"]["planned"] == {"ide3": f"{ISO},media=cdrom"}
    assert lab.proxmox.changing_requests() == []

    job = lab.run_action(service_id, "attach-iso")

    assert outcome_of(job) == "Completed"
    assert drive_of(lab, service_id).startswith(f"{ISO},media=cdrom")
    (vm,) = lab.guests_of(service_id)
    assert vm["status"] == "running"
    task_types = [task["type"] for task in lab.proxmox.tasks() if str(task.get("id")) == str(vm["vmid"])]
    assert "qmreboot" in task_types
    stored = lab.run_smith_json("jobs", "show", job["id"])
    assert stored["result"]["iso_image"] == ISO
    assert stored["result"]["changed"] is True
    second_result = lab.run_smith_json("jobs", "show", lab.run_action(service_id, "attach-iso")["id"])["result"]
    assert second_result["changed"] is False
    assert lab.run_smith_json(*by_hand)["vm"] == second_result


def test_properties_that_violate_the_actions_schema_are_refused_before_any_change(lab: LabSystem) -> None:
    service_id = order(lab, "odd", isoImage="local:iso/../../etc/shadow.iso")
    lab.proxmox.reset_request_log()

    job = lab.run_action(service_id, "attach-iso")

    assert job["errorMessage"].startswith("INVALID_REQUEST: isoImage must match the pattern ")
    assert "shadow" not in job["errorMessage"]
    assert lab.proxmox.changing_requests() == []


def test_an_action_writable_by_other_users_is_refused_until_its_mode_is_corrected(
    lab: LabSystem, tmp_path: Path
) -> None:
    service_id = order(lab, "guarded", isoImage=ISO)
    playbook = tmp_path / "actions" / "attach-iso.yml"
    playbook.chmod(0o666)

    job = lab.run_action(service_id, "attach-iso")

    assert job["errorMessage"].startswith("UNSUPPORTED_ACTION: ")
    assert "is writable by all users" in job["errorMessage"]
    refused = wait_for(lambda: lab.log_events("action_refused"), 20, "the refusal in the log")
    assert refused[-1]["action"] == "attach-iso"
    playbook.chmod(0o644)
    assert outcome_of(lab.run_action(service_id, "attach-iso")) == "Completed"
