"""Adds services with stopped VMs to a lab, so that a benchmark need not run a playbook to create each VM.

A lab consists of the FulcrumCore simulator (`lab.core`), the Proxmox stand-in (`lab.proxmox`) and an agent. `lab.admin`
calls the simulator as an administrator. `lab.ids` has the ids of objects in the simulator, and the agent's token.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from smith_lab.system import LabSystem

from executor.database import vm_names
from executor.fulcrum.client import FulcrumClient

#: How many services are added in parallel.
THREADS = 8
#: The VMIDs of the next VMs.
_unused_vmids = itertools.count(120_000)


@dataclass(frozen=True)
class ServiceWithVm:
    """The id of a service in FulcrumCore, and the VMID of its VM in Proxmox."""

    service_id: str
    vmid: int


def add_services_with_vms(lab: LabSystem, count: int) -> list[ServiceWithVm]:
    """Add `count` services to FulcrumCore, and a stopped VM of each service to Proxmox.

    The agent has no mappings of these VMs. When a service has a job, the agent finds its VM by the marker: the id of
    the service in the description of the VM.
    """
    client = FulcrumClient(lab.core.url, lambda: lab.ids.agent_token)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda number: _add_service_with_vm(lab, client, f"seeded-{number}"), range(count)))


def _add_service_with_vm(lab: LabSystem, client: FulcrumClient, name: str) -> ServiceWithVm:
    """Add a service, complete its create job without a playbook run, and add its VM."""
    service_id, vmid = lab.order_service(name), next(_unused_vmids)
    (job,) = lab.admin.list_jobs(service_id)
    client.claim_job(job["id"])
    # `agent_instance_id` identifies the VM: the id of the agent, a slash, and the VMID.
    client.complete_job(job["id"], agent_instance_id=f"{lab.ids.agent_id}/{vmid}")
    mac_address = f"BC:24:11:00:{vmid // 256 % 256:02X}:{vmid % 256:02X}"  # ends with the last two bytes of the VMID
    config = {
        "description": f"smith-uid={service_id}",
        "tags": "smith",
        "cores": 2,
        "sockets": 1,
        "memory": "2048",
        "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=10G",
        "net0": f"virtio={mac_address},bridge=vmbr0",
        "boot": "order=scsi0",
    }
    vm_name = vm_names.vm_name(name, service_id)
    lab.proxmox.control("add", vmid=vmid, name=vm_name, status="stopped", config=config)
    return ServiceWithVm(service_id, vmid)
