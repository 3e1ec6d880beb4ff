"""Adds services with stopped VMs to a lab, so that a workload does not have to create these VMs by jobs.

A lab consists of the simulators of FulcrumCore and Proxmox, and an agent.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from smith_lab.system import LabSystem

from executor.database import mappings
from executor.fulcrum.client import FulcrumClient

THREADS = 8
_vmids = itertools.count(120_000)


@dataclass(frozen=True)
class ServiceWithVm:
    """The id of a service in FulcrumCore, and the VMID of its VM in Proxmox."""

    service_id: str
    vmid: int


def add_services_with_vms(lab: LabSystem, count: int) -> list[ServiceWithVm]:
    """Add `count` services to FulcrumCore, and a stopped VM of each to Proxmox.

    The agent has no mappings of these VMs. It finds a VM by the marker in its description when the service has a job.
    """
    client = FulcrumClient(lab.core.url, lambda: lab.ids.agent_token)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda number: _add_one(lab, client, f"seeded-{number}"), range(count)))


def _add_one(lab: LabSystem, client: FulcrumClient, name: str) -> ServiceWithVm:
    service_id, vmid = lab.order_service(name), next(_vmids)
    (job,) = lab.admin.list_jobs(service_id)
    client.claim_job(job["id"])
    client.complete_job(job["id"], agent_instance_id=f"{lab.ids.agent_id}/{vmid}")
    config = {
        "description": f"smith-uid={service_id}",
        "tags": "smith",
        "cores": 2,
        "sockets": 1,
        "memory": "2048",
        "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=10G",
        "net0": f"virtio=BC:24:11:00:{vmid // 256 % 256:02X}:{vmid % 256:02X},bridge=vmbr0",
        "boot": "order=scsi0",
    }
    lab.proxmox.control("add", vmid=vmid, name=mappings.vm_name(name, service_id), status="stopped", config=config)
    return ServiceWithVm(service_id, vmid)
