"""Checks at FulcrumCore and Proxmox whether a VM can be adopted as the VM of a service."""

from __future__ import annotations

from collections.abc import Sequence

from executor.cli.adoption import VmToAdopt
from executor.cli.arguments import UnusableArgument
from executor.cli.clients import Clients
from executor.errors import FulcrumAuthError, FulcrumRefused
from executor.proxmox.rows import VmRow, fill_in_vm_row
from executor.shared.marker import marker_values_in

#: FulcrumCore's status of a deleted service. FulcrumCore sends no more jobs for such a service.
DELETED_STATUS = "Deleted"


class ServiceMissing(UnusableArgument):
    """FulcrumCore does not know the service, or the service is deleted in FulcrumCore."""


class VmNotFound(UnusableArgument):
    """Proxmox does not list the VM for the agent's API token."""


def check_service_and_return_id(clients: Clients, service_id: str) -> str:
    """Ask FulcrumCore for the service, and return the service's id as FulcrumCore writes it.

    Raises ServiceMissing when FulcrumCore does not know the service or the service is deleted, and UnusableArgument
    when the service belongs to another agent or `service_id` is not the id of a service.
    """
    try:
        fulcrum_service = clients.fulcrum.get_service(service_id.strip())
    except FulcrumAuthError:
        # FulcrumCore answers 403 both for an unknown service and for a refused token. If it refuses the token,
        # `get_own_agent` raises FulcrumAuthError. If it accepts the token, the service is unknown.
        clients.fulcrum.get_own_agent()
        raise ServiceMissing(f"FulcrumCore knows no service {service_id}") from None
    except FulcrumRefused as error:
        raise UnusableArgument(f"{service_id} is not the id of a service: {error}") from None
    if fulcrum_service.agent_id != clients.agent_id:
        raise UnusableArgument(f"service {service_id} belongs to another agent")
    if fulcrum_service.status == DELETED_STATUS:
        raise ServiceMissing(
            f"service {service_id} is {DELETED_STATUS} in FulcrumCore, which sends no more jobs for it"
        )
    return fulcrum_service.id


def find_vm_to_adopt(clients: Clients, vm_rows: Sequence[VmRow], vmid: int) -> VmToAdopt:
    """Return the VM with this VMID. `vm_rows` are the VMs that Proxmox lists.

    Raises VmNotFound when Proxmox does not list the VM for the agent's API token, and UnusableArgument when the VM is a
    template.
    """
    vm_row = next((row for row in vm_rows if row.vmid == vmid), None)
    if vm_row is None:
        raise VmNotFound(f"Proxmox does not list a VM {vmid} for the agent's API token")
    # The kind is `qemu` (virtual machine) or `lxc` (container).
    config = clients.proxmox.vm_config(vm_row.node, vmid, kind=vm_row.kind)
    vm_row = fill_in_vm_row(vm_row, config)  # Proxmox's list of VMs may lack values or show old values
    if vm_row.is_template:
        raise UnusableArgument(f"VM {vmid} ({vm_row.name}) is a template, and a template cannot be adopted")
    description = str(config.get("description") or "")
    return VmToAdopt(
        vmid=vmid,
        node=vm_row.node,
        kind=vm_row.kind,
        name=vm_row.name,
        tags=vm_row.tags,
        description=description,
        marked_service_ids=frozenset(marker_values_in(description)),
    )


def check_service_marker(vm: VmToAdopt, service_id: str, *, may_write_marker: bool) -> bool:
    """Return True if the VM has the service's marker, and False if it has no marker and `may_write_marker` is True.

    Raises UnusableArgument if the VM has another service's marker, or if the VM has no marker and `may_write_marker` is
    False.
    """
    if vm.marked_service_ids == {service_id}:
        return True
    if vm.marked_service_ids:
        services = " and ".join(sorted(vm.marked_service_ids))
        raise UnusableArgument(
            f"VM {vm.vmid} ({vm.name}) has the marker of {services}: if the VM belongs to service {service_id}, first "
            "remove the marker, a line in the VM's description"
        )
    if not may_write_marker:
        raise UnusableArgument(f"VM {vm.vmid} ({vm.name}) has no marker: --set-marker writes it")
    return False
