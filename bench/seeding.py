"""Adds services with stopped VMs to a lab, so that a workload need not create them."""

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
    """A service in FulcrumCore and its VM in Proxmox."""

    service_id: str
    vmid: int


def add_services_with_vms(lab: LabSystem, count: int) -> list[ServiceWithVm]:
    """Add services to FulcrumCore and their stopped VMs to Proxmox. The agent finds the VMs by their markers."""
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
