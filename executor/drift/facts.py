"""Defines the facts that a drift check compares, the findings that it returns, and the repairs of findings.

Drift is a difference between the agent's mappings, the guests in Proxmox and the services in FulcrumCore. A mapping
says which VM (or container) serves which service. A guest is a VM or a container. A marker is a line in the guest's
description in Proxmox, and contains the id of a service. FulcrumCore stores an instance id for each service. The agent
reports it as `<agent id>/<vmid>` when it has created the VM.

A mapping is pending deletion if a delete job has only stopped the VM, and the agent will delete the VM later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from executor.fulcrum.types import DELETED_SERVICE_STATUS
from executor.model import GuestKind, MappingState

#: FulcrumCore's statuses of services that have no VM.
STATUSES_WITHOUT_VM = frozenset({"New", "CreateFailed", "Lost", DELETED_SERVICE_STATUS})
#: Proxmox's VMIDs are the numbers from 100 to 999999999.
MIN_VMID_DIGITS, MAX_VMID_DIGITS = 3, 9


class DriftKind(StrEnum):
    """The kinds of findings.

    The values must not change, because the tools of operators read them from `smith drift --json`, the metrics and the
    log.
    """

    VM_GONE = "vm_gone"  #: the mapped VM does not exist
    VM_MOVED = "vm_moved"  #: the VM is on another node than the mapping says, which is harmless
    VM_RENAMED = "vm_renamed"  #: the VM has another name than the mapping says, so every action refuses the VM
    #: The guest with the mapped VMID does not count as the service's VM: another guest uses the VMID (the VMID was
    #: "recycled"), or the VM itself has lost the marker, has a second marker, or is now a template.
    VM_RECYCLED = "vm_recycled"
    VM_HALF_DESTROYED = "vm_half_destroyed"  #: a deletion was interrupted: the VM's configuration has only a lock
    VOLUMES_LEFT = "volumes_left"  #: volumes of a VM that was deleted still exist
    UNMAPPED_VM = "unmapped_vm"  #: a VM has the marker of a service, but no mapping names this VM
    SERVICE_WITHOUT_VM = "service_without_vm"  #: FulcrumCore has an instance id, but neither VM nor mapping exists
    #: FulcrumCore has deleted the service or does not know it, but its VM or its mapping exists. There are two
    #: exceptions. An active mapping whose VM is gone has the kind VM_GONE. For a VM that is pending deletion,
    #: there is no finding of this kind.
    VM_WITHOUT_SERVICE = "vm_without_service"
    #: The result of a create or delete did not reach FulcrumCore. Create: the service has no instance id, or one with
    #: another VMID than the mapping. Delete: the mapping is pending deletion, but the service is not deleted.
    MAPPING_UNREPORTED = "mapping_unreported"
    #: The VM is running, but its service has the status of a stopped VM, or the other way round.
    POWER_DIFFERS = "power_differs"
    #: FulcrumCore assigns a mapped service to another agent, for example because this agent was deleted in FulcrumCore
    #: and created again with another id.
    SERVICE_OF_OTHER_AGENT = "service_of_other_agent"


class Repair(StrEnum):
    """The changes by which the agent can repair a finding. A repair changes a mapping, never a VM."""

    CORRECT_NODE = "correct_node"  #: store the VM's node in the mapping
    CLEAR_VOLUMES_NOTE = "note_volumes_removed"  #: clear the mapping's `note`: the volumes that it names were removed
    MARK_VM_LOST = "mark_vm_lost"  #: keep the mapping, and set its state to vm_lost
    FORGET = "forget"  #: mark the mapping as deleted, because neither its VM nor its service exists
    ADOPT = "adopt"  #: create a mapping for the VM that has the service's marker


#: The repairs that the agent applies after each periodic drift check. Other repairs are applied only when an operator
#: runs `smith drift fix`.
AUTOMATIC_REPAIRS = frozenset({Repair.CORRECT_NODE, Repair.MARK_VM_LOST, Repair.CLEAR_VOLUMES_NOTE})


@dataclass(frozen=True, kw_only=True)
class MappingFacts:
    """The columns of a mapping's row that a check compares.

    A check reads deleted mappings only to find volumes of deleted VMs (see `VolumesLeft`).
    """

    id: int
    service_id: str
    vmid: int
    node: str
    name: str
    state: str
    updated_at: datetime
    kind: str = GuestKind.QEMU  #: a VM or a container

    @property
    def should_have_vm(self) -> bool:
        """True when the mapping is active or pending deletion, which means that its VM was created."""
        return self.state in (MappingState.ACTIVE, MappingState.PENDING_DELETION)

    @property
    def may_have_vm(self) -> bool:
        """True when the mapping is active, pending deletion or reserved.

        The VM of a reserved mapping exists if its create job has created it already.
        """
        return self.should_have_vm or self.state == MappingState.RESERVED


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """Facts about a guest that may belong to a service."""

    vmid: int
    node: str
    name: str
    markers: frozenset[str] = frozenset()  #: the service ids in the guest's markers; the VM of a service has one marker
    #: The id of the agent that wrote the marker; '' if an earlier version of Agent Smith wrote the marker.
    agent_id: str = ""
    is_template: bool = False
    #: None if unknown: Proxmox's list of guests lacks the guest or its status, or names a node that the guest has left.
    is_running: bool | None = None
    kind: str = GuestKind.QEMU  #: a VM or a container
    lock: str = ""  #: the operation for which Proxmox has locked the guest

    @property
    def is_half_destroyed(self) -> bool:
        """True for a guest whose deletion was interrupted. Its configuration has only the lock `destroyed`."""
        return self.lock == "destroyed"

    def has_only_marker_of(self, service_id: str) -> bool:
        """Return whether the guest has the marker of this service and of no other service, and is not a template."""
        return not self.is_template and self.markers == {service_id}

    @property
    def summary(self) -> str:
        """The guest's kind, name and markers, for the text of a finding."""
        if self.is_template:
            return f"the template {self.name}"
        service_ids = " and ".join(sorted(self.markers))
        marker_text = f"with the marker of service {service_ids}" if self.markers else "without a marker"
        kind_text = "the container" if self.kind == GuestKind.LXC else "the VM"
        return f"{kind_text} {self.name} {marker_text}"


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """A service in FulcrumCore."""

    id: str
    status: str
    instance_id: str = ""
    #: True if the status is that of a service whose VM runs. None if the service type in FulcrumCore does not name the
    #: statuses of a running service.
    is_running: bool | None = None

    @property
    def instance_vmid(self) -> int | None:
        """The VMID at the end of the instance id, which has the form `<agent id>/<vmid>`; None for another form."""
        digits = self.instance_id.rpartition("/")[2]
        is_vmid = digits.isascii() and digits.isdecimal() and MIN_VMID_DIGITS <= len(digits) <= MAX_VMID_DIGITS
        return int(digits) if is_vmid else None

    @property
    def is_deleted(self) -> bool:
        """True when FulcrumCore has deleted the service. FulcrumCore creates no more jobs for a deleted service."""
        return self.status == DELETED_SERVICE_STATUS

    @property
    def should_have_vm(self) -> bool:
        """True when the service has an instance id and a status that implies a VM."""
        return bool(self.instance_id) and self.status not in STATUSES_WITHOUT_VM


@dataclass(frozen=True, kw_only=True)
class VolumesLeft:
    """The volumes of a deleted VM that may still exist, because Proxmox could not remove them with the VM."""

    mapping: MappingFacts  #: the deleted mapping
    volumes: tuple[str, ...]  #: the volume ids; empty if all volumes are gone


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """The facts that show whether the drift check can rely on Proxmox's lists."""

    is_quorate: bool
    may_see_all_vms: bool  #: whether the token may see all VMs; without quorum always False
    offline_nodes: frozenset[str] = frozenset()
    node_by_vmid: Mapping[int, str] = field(default_factory=dict)  #: the node of every guest that Proxmox lists


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts that one drift check compares: the input of `compare`."""

    mappings: Sequence[MappingFacts] = ()  #: the mappings of this cluster that are not deleted
    guests: Sequence[GuestFacts] = ()  #: the guests that may belong to a service
    vmids_without_guest: frozenset[int] = frozenset()  #: the VMIDs that are proven to have no guest
    services: Sequence[ServiceFacts] = ()  #: the services that FulcrumCore assigns to this agent
    volumes_left: Sequence[VolumesLeft] = ()
    #: Services with a pending or processing job, with a due report (a job result that is not yet sent to FulcrumCore),
    #: or with a run that an operator has started. Their differences are not drift, because the job, the report or the
    #: run will end the differences.
    busy_services: frozenset[str] = frozenset()
    #: Services whose job has ended recently: Proxmox's list may still show the earlier power state of their VMs.
    services_with_recently_ended_job: frozenset[str] = frozenset()
    services_on_other_clusters: frozenset[str] = frozenset()  #: services with a mapping on another cluster
    #: The services that FulcrumCore assigns to other agents. The keys are ids of services, the values ids of agents.
    other_agent_id_by_service: Mapping[str, str] = field(default_factory=dict)
    agent_id: str = ""  #: this agent's id

    @cached_property
    def services_by_id(self) -> dict[str, ServiceFacts]:
        """The services. The keys are their ids."""
        return {service.id: service for service in self.services}

    @cached_property
    def guests_by_vmid(self) -> dict[int, GuestFacts]:
        """The guests. The keys are their VMIDs."""
        return {guest.vmid: guest for guest in self.guests}

    @cached_property
    def mappings_by_service(self) -> dict[str, MappingFacts]:
        """The mappings. The keys are their service ids: a service has at most one mapping that is not deleted."""
        return {mapping.service_id: mapping for mapping in self.mappings}

    def is_of_other_owner(self, guest: GuestFacts) -> bool:
        """Return whether a guest belongs to another agent or another FulcrumCore, or is mapped on another cluster.

        A guest belongs to the agent of the service in the guest's marker. If FulcrumCore and the mappings do not
        contain the service, the guest belongs to the agent that wrote the marker (`guest.agent_id`).
        """
        if not self.services_on_other_clusters.isdisjoint(guest.markers):
            return True
        if not self.other_agent_id_by_service.keys().isdisjoint(guest.markers):
            return True
        services_of_this_agent = self.services_by_id.keys() | self.mappings_by_service.keys()
        return guest.agent_id not in ("", self.agent_id) and services_of_this_agent.isdisjoint(guest.markers)

    @property
    def other_owner_guest_count(self) -> int:
        """The number of guests with a marker for which `is_of_other_owner` is true. The check ignores these guests."""
        return sum(bool(guest.markers) and self.is_of_other_owner(guest) for guest in self.guests)

    def is_service_deleted_or_unknown(self, service_id: str) -> bool:
        """Return whether FulcrumCore has deleted the service, or does not list it as a service of this agent.

        A service that is not in `services` counts as unknown, because no caller asks about a service of another agent.
        """
        service = self.services_by_id.get(service_id)
        return service is None or service.is_deleted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Describes one difference between mappings, guests and services."""

    kind: DriftKind
    service_id: str
    vmid: int | None
    text: str  #: says what is wrong and, if there is no repair, what the operator can do
    node: str = ""
    name: str = ""  #: the name of the VM
    guest_kind: str = GuestKind.QEMU  #: a VM or a container; used only by the repair ADOPT
    repair: Repair | None = None  #: the repair that the finding proposes; None if the agent has no repair for it
    #: The mapping at the time of the comparison. A repair is skipped if the mapping has changed since then.
    mapping: MappingFacts | None = None

    @property
    def key(self) -> tuple[str, str, int | None]:
        """The values that identify the same finding in several checks."""
        return (self.kind, self.service_id, self.vmid)

    @property
    def needs_operator(self) -> bool:
        """False for a harmless difference that the agent itself repairs."""
        return self.kind is not DriftKind.VM_MOVED and self.repair is not Repair.CLEAR_VOLUMES_NOTE

    @property
    def shown_values(self) -> dict[str, Any]:
        """The keys and values of the finding in the log and in `smith drift --json`."""
        return {
            "kind": self.kind.value,
            "service_id": self.service_id,
            "vmid": self.vmid,
            "node": self.node or None,
            "name": self.name or None,
            "text": self.text,
            "repair": self.repair.value if self.repair else None,
        }
