"""Adds to a lab the custom action of docs/custom-actions.md, and a service type that offers it."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from smith_lab.fulcrum_setup import VM_SERVICE_TYPE_FILE, read_type_file
from smith_lab.system import LabSystem

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "actions"
ISO = "local:iso/debian-13.iso"


def copy_action(folder: Path) -> Path:
    """Copy the example to a folder that the executor accepts in SMITH_ACTIONS_PATH; return the folder."""
    shutil.copytree(EXAMPLES, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def offer_action(lab: LabSystem) -> None:
    """Add the ISO image to the stand-in, and let the lab order its services with a service type that has the action."""
    lab.proxmox.control("grant", path="/storage/local", privilege="Datastore.Audit")
    lab.proxmox.control("grant", path="/vms", privilege="VM.Config.CDROM")
    image = {"content": "iso", "format": "iso", "size": 1024**2, "ctime": 0}
    lab.proxmox.control("storage", storage="local", volumes={ISO.partition(":")[2]: image})
    created = lab.admin.create("service-types", **_service_type_with_the_action())
    agent_type = lab.admin.call("GET", f"/agent-types/{lab.ids.agent_type_id}")
    service_type_ids = [*(item["id"] for item in agent_type.get("serviceTypes", [])), created["id"]]
    lab.admin.call("PATCH", f"/agent-types/{lab.ids.agent_type_id}", {"serviceTypeIds": service_type_ids})
    lab.ids = replace(lab.ids, service_type_id=created["id"])


def _service_type_with_the_action() -> dict[str, Any]:
    """Return the VM service type with one more property and one more action."""
    service_type: dict[str, Any] = copy.deepcopy(read_type_file(VM_SERVICE_TYPE_FILE))
    service_type["name"] = "proxmox-vm-with-iso"
    service_type["propertySchema"]["properties"]["isoImage"] = {
        "type": "string",
        "label": "ISO image",
        "authorizers": [{"type": "actor", "config": {"actors": ["user"]}}],
    }
    transitions = [{"from": state, "to": state} for state in ("Stopped", "Started")]
    service_type["lifecycleSchema"]["actions"].append({"name": "attach-iso", "transitions": transitions})
    return service_type
