"""A command line beside a FulcrumCore simulator and a Proxmox stand-in, without an agent."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smith_lab.system import LabSystem
from support.cli_world import Cli

from executor.database import mappings
from executor.fulcrum.client import FulcrumClient

VMIDS = itertools.count(100_001)


class World:
    """A command line in an empty data folder, beside a Proxmox and a FulcrumCore that several tests share."""

    def __init__(self, lab: LabSystem, folder: Path) -> None:
        self.lab = lab
        self.cli = Cli(folder)
        environment = lab.environment()
        logins = {name: text for name, text in environment.items() if name.startswith(("FULCRUM_", "PROXMOX_"))}
        self.cli.env |= logins
        self.added_vmids: list[int] = []

    def add_vm(self, service_id: str = "", *, name: str = "", vmid: int = 0, **config: Any) -> int:
        """Add a VM to the stand-in, with the marker of the service if `service_id` is given."""
        vmid = vmid or next(VMIDS)
        values: dict[str, Any] = {"cores": 2, "sockets": 2, "memory": "512", "description": "Acme's shop"}
        if service_id:
            values |= {"description": f"Acme's shop\n\nsmith-uid={service_id}", "tags": "smith"}
        self.lab.proxmox.control("add", vmid=vmid, name=name or f"vm-{vmid}", node="pve1", config=values | config)
        self.added_vmids.append(vmid)
        return vmid

    def delete_vm_but_leave_volume(self, volume: str) -> int:
        """Delete the VM of a new service as an agent does, but let this volume stay in Proxmox; return the VMID."""
        service_id, vmid = self.add_service_with_vm()
        self.lab.proxmox.control("remove", vmid=vmid)
        result = {"status": "absent", "volumes_left": [volume.format(vmid)]}
        with self.cli.database_session() as session:
            mapping = mappings.find_current_mapping(session, service_id)
            assert mapping
            mappings.apply_result(session, mapping.id, result)
        return vmid

    def service(self, vmid: int | None) -> str:
        """Order a service, and complete its create job as an agent does; return the service's id.

        The service gets a VM with this VMID. With None, the create job stays pending."""
        service_id = self.lab.order_service(f"s-{uuid.uuid4().hex[:8]}")
        if vmid is None:
            return service_id
        core = FulcrumClient(self.lab.core.url, lambda: self.lab.ids.agent_token)
        job_id = self.lab.last_job(service_id)["id"]
        core.claim_job(job_id)
        core.complete_job(job_id, agent_instance_id=f"{self.lab.ids.agent_id}/{vmid}")
        return service_id

    def mapping(self, service_id: str, vmid: int, **wanted: Any) -> None:
        """Write an active mapping of the service to the VMID."""
        values = {"cluster": "default", "name": f"vm-{vmid}", "node": "pve1"} | wanted
        with self.cli.database_session() as session:
            assert mappings.insert_active_mapping(session, service_id=service_id, vmid=vmid, **values)

    def add_service_with_vm(self) -> tuple[str, int]:
        """Add a service, its VM and its mapping, as a create leaves them; return the service's id and the VMID."""
        vmid = next(VMIDS)
        service_id = self.service(vmid)
        self.add_vm(service_id, vmid=vmid)
        self.mapping(service_id, vmid)
        return service_id, vmid

    def drift(self, *args: str, code: int) -> Any:
        """Run `smith drift` with these arguments, which must exit with `code`; return its JSON document."""
        done = self.cli("drift", *args, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def kinds(self, *args: str, code: int = 1) -> list[tuple[str, int]]:
        """Run `smith drift`; return the kind and the VMID of each finding."""
        return [(finding["kind"], finding["vmid"]) for finding in self.drift(*args, code=code)["findings"]]

    def state(self, service_id: str) -> tuple[str, str, str]:
        """Return the state, the node and the VM's name in the service's only mapping."""
        (row,) = [row for row in self.cli.json("mappings", "list", "--all") if row["service_id"] == service_id]
        return row["state"], row["node"], row["name"]

    def audit(self) -> list[tuple[str, str]]:
        """Return the verb and the subject of each entry of the audit."""
        return [(entry["verb"], entry["subject_id"]) for entry in self.cli.json("audit", "list")]


@contextmanager
def empty_world(lab: LabSystem, folder: Path) -> Iterator[World]:
    """Yield a world with an empty database. Afterwards, end the services and remove the VMs of the test."""
    world = World(lab, folder)
    with world.cli.database_session():
        pass  # an empty database
    yield world
    end_services_and_vms(lab)


def end_services_and_vms(lab: LabSystem) -> None:
    """End the services of a test and remove its VMs, for the next test."""
    lab.proxmox.control("clear_faults")
    lab.proxmox.control("grant", path="/vms", privilege="VM.Audit")
    for guest in lab.guests():
        lab.proxmox.control("remove", vmid=guest["vmid"])
    for service in lab.admin.list_services():
        if service["status"] != "Deleted":
            end_service(lab, service["id"])


def end_service(lab: LabSystem, service_id: str) -> None:
    """Complete the open jobs of a service, and delete the service."""
    core = FulcrumClient(lab.core.url, lambda: lab.ids.agent_token)
    for job in lab.admin.list_jobs(service_id):
        if job["status"] == "Pending":
            core.claim_job(job["id"])
            core.complete_job(job["id"])
    lab.admin.delete_service(service_id)
    job_id = lab.last_job(service_id)["id"]
    core.claim_job(job_id)
    core.complete_job(job_id)
