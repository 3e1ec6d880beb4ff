"""A custom action, the example of docs/custom-actions.md, end to end."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from smith_lab.fulcrum_setup import SERVICE_TYPE_FILE, load_type
from smith_lab.system import LabSystem, outcome_of, wait_for

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "actions"
ISO = "local:iso/debian-13.iso"
MakeLab = Callable[..., LabSystem]


def service_type_with_the_action() -> dict:
    """Return the VM service type with one more property and one more action."""
    service_type = copy.deepcopy(load_type(SERVICE_TYPE_FILE))
    service_type["name"] = "proxmox-vm-with-iso"
    service_type["propertySchema"]["properties"]["isoImage"] = {
        "type": "string",
        "label": "ISO image",
        "authorizers": [{"type": "actor", "config": {"actors": ["user"]}}],
    }
    transitions = [{"from": state, "to": state} for state in ("Stopped", "Started")]
    service_type["lifecycleSchema"]["actions"].append({"name": "attach-iso", "transitions": transitions})
    return service_type


@pytest.fixture
def lab(make_lab: MakeLab, tmp_path: Path) -> LabSystem:
    """A system with the custom action and a service type that offers it."""
    folder = tmp_path / "actions"
    shutil.copytree(EXAMPLES, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    system = make_lab(SMITH_ACTIONS_PATH=str(folder))
    system.proxmox.control("grant", path="/storage/local", privilege="Datastore.Audit")
    image = {"content": "iso", "format": "iso", "size": 1024**2, "ctime": 0}
    system.proxmox.control("storage", storage="local", volumes={ISO.partition(":")[2]: image})
    created = system.admin.create("service-types", **service_type_with_the_action())
    agent_type = system.admin.call("GET", f"/agent-types/{system.ids.agent_type_id}")
    offered = [*(item["id"] for item in agent_type.get("serviceTypes", [])), created["id"]]
    system.admin.call("PATCH", f"/agent-types/{system.ids.agent_type_id}", {"serviceTypeIds": offered})
    system.ids = replace(system.ids, service_type_id=created["id"])
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
    kinds = [task["type"] for task in lab.proxmox.tasks() if str(task.get("id")) == str(vm["vmid"])]
    assert "qmreboot" in kinds
    stored = lab.run_smith_json("jobs", "show", job["id"])
    assert stored["result"]["iso_image"] == ISO
    assert stored["result"]["changed"] is True
    again = lab.run_smith_json("jobs", "show", lab.run_action(service_id, "attach-iso")["id"])["result"]
    assert again["changed"] is False
    assert lab.run_smith_json(*by_hand)["vm"] == again


def test_properties_that_violate_the_actions_schema_are_refused_before_any_change(lab: LabSystem) -> None:
    service_id = order(lab, "odd", isoImage="local:iso/../../etc/shadow.iso")
    lab.proxmox.reset_request_log()

    job = lab.run_action(service_id, "attach-iso")

    assert job["errorMessage"].startswith("INVALID_REQUEST: isoImage must match ")
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
