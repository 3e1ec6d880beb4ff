"""Defines the facts that a drift check compares, and its findings and repairs.

Drift is a difference between the agent's mappings, the guests in Proxmox and the services in FulcrumCore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from executor.fulcrum.types import SERVICE_DELETED
from executor.model import GuestKind, MappingState

#: FulcrumCore's statuses of services that have no VM.
STATUSES_WITHOUT_VM = frozenset({"New", "CreateFailed", "Lost", SERVICE_DELETED})


class DriftKind(StrEnum):
    """The kinds of difference. Operators' tools read the values from `smith drift --json`, the metrics and the log.

    So a value is never changed.
    """

    VM_GONE = "vm_gone"  #: the mapped VM does not exist
    VM_MOVED = "vm_moved"  #: the VM is not on the mapping's node; this is harmless, and the agent repairs it
    VM_RENAMED = "vm_renamed"  #: the VM has another name than the mapping says, so every action refuses the VM
    VM_RECYCLED = "vm_recycled"  #: the guest with the mapped VMID is not the VM of the service
    UNMAPPED_VM = "unmapped_vm"  #: a VM has the marker of a service, but no mapping names this VM
    SERVICE_WITHOUT_VM = "service_without_vm"  #: FulcrumCore has an instance id, but no VM and no mapping exist
    VM_WITHOUT_SERVICE = "vm_without_service"  #: a mapping or VM exists, but its service is deleted or unknown
    MAPPING_UNREPORTED = "mapping_unreported"  #: mapping and VM exist, but FulcrumCore lacks the create's result


class Repair(StrEnum):
    """The possible repairs of a finding. A repair changes a mapping, never a VM."""

    CORRECT_NODE = "correct_node"  #: store the VM's node in the mapping
    MARK_VM_LOST = "mark_vm_lost"  #: keep the mapping, and set its state to vm_lost
    FORGET = "forget"  #: mark the mapping as deleted, because neither its VM nor its service exists
    ADOPT = "adopt"  #: create a mapping for the VM that has the service's marker


#: The agent's periodic drift check applies these repairs. All other repairs are applied only when an operator runs
#: `smith drift fix`.
AUTOMATIC_REPAIRS = frozenset({Repair.CORRECT_NODE, Repair.MARK_VM_LOST})


@dataclass(frozen=True, kw_only=True)
class MappingFacts:
    """The columns of a mapping that is not deleted. `id` is the id of its row."""

    id: int
    service_id: str
    vmid: int
    node: str
    name: str
    state: str
    updated_at: datetime
    kind: str = GuestKind.QEMU

    @property
    def should_have_vm(self) -> bool:
        """True when the mapping's state implies that its VM exists."""
        return self.state in (MappingState.ACTIVE, MappingState.PENDING_DELETION)

    @property
    def may_have_vm(self) -> bool:
        """True when the mapping's VM should exist, or may exist because its create is in progress."""
        return self.should_have_vm or self.state == MappingState.RESERVED


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """Facts from the configuration of a VM or container that may belong to a service."""

    vmid: int
    node: str
    name: str
    markers: frozenset[str] = frozenset()  #: the service ids in its description; a service's VM has exactly one
    is_template: bool = False
    kind: str = GuestKind.QEMU

    def belongs_to(self, service_id: str) -> bool:
        """Return whether the guest has the marker of this service and of no other service, and is not a template."""
        return not self.is_template and self.markers == {service_id}

    @property
    def description(self) -> str:
        """The text that describes the guest in a finding."""
        if self.is_template:
            return f"a template ({self.name})"
        marker = f"marked as {' and '.join(sorted(self.markers))}" if self.markers else "unmarked"
        return f"{'a container, ' if self.kind == GuestKind.LXC else ''}{self.name}, {marker}"


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """A service in FulcrumCore."""

    id: str
    status: str
    instance_id: str = ""

    @property
    def instance_vmid(self) -> int | None:
        """The VMID at the end of the instance id, which has the form `<agent id>/<vmid>`; None for another form."""
        digits = self.instance_id.rpartition("/")[2]
        is_vmid = digits.isascii() and digits.isdecimal() and 3 <= len(digits) <= 9
        return int(digits) if is_vmid else None

    @property
    def is_deleted(self) -> bool:
        """True when FulcrumCore has deleted the service. FulcrumCore creates no more jobs for a deleted service."""
        return self.status == SERVICE_DELETED

    @property
    def should_have_vm(self) -> bool:
        """True when the service has an instance id and a status that implies a VM."""
        return bool(self.instance_id) and self.status not in STATUSES_WITHOUT_VM


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """The facts that decide whether Proxmox's answers can be relied on."""

    is_quorate: bool
    may_see_all_vms: bool
    offline_nodes: frozenset[str] = frozenset()
    listed: Mapping[int, str] = field(default_factory=dict)  #: the VMID and the node of every guest that Proxmox lists


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The input of a comparison."""

    mappings: Sequence[MappingFacts] = ()
    guests: Sequence[GuestFacts] = ()
    empty_vmids: frozenset[int] = frozenset()  #: VMIDs of which it is proven that no guest has them
    services: Sequence[ServiceFacts] = ()
    #: Services with an open job or a due report. Their differences are not drift, because the job explains them.
    busy_services: frozenset[str] = frozenset()
    foreign_services: frozenset[str] = frozenset()  #: services of other agents, or with a mapping on another cluster

    @cached_property
    def services_by_id(self) -> dict[str, ServiceFacts]:
        """The services, by id."""
        return {service.id: service for service in self.services}

    @cached_property
    def guests_by_vmid(self) -> dict[int, GuestFacts]:
        """The guests, by VMID."""
        return {guest.vmid: guest for guest in self.guests}

    @cached_property
    def mappings_by_service(self) -> dict[str, MappingFacts]:
        """The mappings, by service id. A service has at most one mapping that is not deleted."""
        return {mapping.service_id: mapping for mapping in self.mappings}

    def is_deleted(self, service_id: str) -> bool:
        """Return whether the service is deleted or unknown in FulcrumCore."""
        service = self.services_by_id.get(service_id)
        return service is None or service.is_deleted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One difference between mappings, guests and services."""

    kind: DriftKind
    service_id: str
    vmid: int | None
    text: str  #: what is wrong and, if there is no repair, what the operator can do
    node: str = ""
    name: str = ""
    guest_kind: str = GuestKind.QEMU
    repair: Repair | None = None
    #: The mapping as it was compared. A repair is skipped if the mapping has changed after the comparison.
    mapping: MappingFacts | None = None

    @property
    def key(self) -> tuple[str, str, int | None]:
        """The values by which a finding of one check is recognised in a later check."""
        return (self.kind, self.service_id, self.vmid)

    @property
    def needs_attention(self) -> bool:
        """False for a harmless difference that the agent repairs."""
        return self.kind is not DriftKind.VM_MOVED

    @property
    def facts(self) -> dict[str, Any]:
        """The finding as the log and `smith drift --json` show it."""
        return {
            "kind": self.kind.value,
            "service_id": self.service_id,
            "vmid": self.vmid,
            "node": self.node or None,
            "name": self.name or None,
            "text": self.text,
            "repair": self.repair.value if self.repair else None,
        }
