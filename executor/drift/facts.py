"""Defines the facts that a drift check compares, and the findings and repairs that result from them."""

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
    """The kinds of difference. `smith drift --json`, the metrics and the log show the values, so they never change."""

    VM_GONE = "vm_gone"  #: the mapped VM does not exist
    VM_MOVED = "vm_moved"  #: the VM is on another node; harmless, and the agent repairs it
    VM_RENAMED = "vm_renamed"  #: the VM has another name, so every action refuses it
    VM_RECYCLED = "vm_recycled"  #: the mapped VMID holds a guest that is not the service's
    UNMAPPED_VM = "unmapped_vm"  #: a VM with our marker is the VM of no mapping
    SERVICE_WITHOUT_VM = "service_without_vm"  #: FulcrumCore has an instance id, but neither VM nor mapping exists
    VM_WITHOUT_SERVICE = "vm_without_service"  #: mapping or VM exists; FulcrumCore deleted the service or never had it
    MAPPING_UNREPORTED = "mapping_unreported"  #: mapping and VM exist, but FulcrumCore lacks the result


class Repair(StrEnum):
    """The repairs of a finding. Each changes a mapping and never a VM."""

    CORRECT_NODE = "correct_node"  #: store the VM's node in the mapping
    MARK_VM_LOST = "mark_vm_lost"  #: keep the mapping, with the state vm_lost
    FORGET = "forget"  #: delete the mapping: neither VM nor service exists
    ADOPT = "adopt"  #: create a mapping for the VM that has the service's marker


#: The agent's periodic check applies these repairs. Only the operator's `smith drift fix` applies the other ones.
AUTOMATIC_REPAIRS = frozenset({Repair.CORRECT_NODE, Repair.MARK_VM_LOST})


@dataclass(frozen=True, kw_only=True)
class MappingFacts:
    """A mapping that is not deleted."""

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
        """True when the mapping's VM should exist now."""
        return self.state in (MappingState.ACTIVE, MappingState.PENDING_DELETION)

    @property
    def may_have_vm(self) -> bool:
        """True when the mapping's VM should exist now, or may exist because its create is in progress."""
        return self.should_have_vm or self.state == MappingState.RESERVED


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """The configuration of a VM or container that has a mapped VMID or our marker."""

    vmid: int
    node: str
    name: str
    markers: frozenset[str] = frozenset()  #: service ids in its description; a guest of ours has exactly one
    is_template: bool = False
    kind: str = GuestKind.QEMU

    def belongs_to(self, service_id: str) -> bool:
        """Return whether the guest has the marker of this service and of no other."""
        return not self.is_template and self.markers == {service_id}

    @property
    def description(self) -> str:
        """The guest in the text of a finding."""
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
        """The VMID at the end of `<agent>/<vmid>`, None when the instance id has another form."""
        digits = self.instance_id.rpartition("/")[2]
        is_vmid = digits.isascii() and digits.isdecimal() and 3 <= len(digits) <= 9
        return int(digits) if is_vmid else None

    @property
    def is_deleted(self) -> bool:
        """True when FulcrumCore will never create a job for this service again."""
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
    listed: Mapping[int, str] = field(default_factory=dict)  #: node by VMID, of every guest in Proxmox's list


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The input of a comparison."""

    mappings: Sequence[MappingFacts] = ()
    guests: Sequence[GuestFacts] = ()
    empty_vmids: frozenset[int] = frozenset()  #: VMIDs that are proven to hold no guest
    services: Sequence[ServiceFacts] = ()
    busy_services: frozenset[str] = frozenset()  #: a difference is no drift while a job is open or unreported
    foreign_services: frozenset[str] = frozenset()  #: services of another agent, or mapped on another cluster

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
        """The mappings, by service id. A service has one mapping at most."""
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
    text: str  #: what is wrong, and what the operator can do when there is no repair
    node: str = ""
    name: str = ""
    guest_kind: str = GuestKind.QEMU
    repair: Repair | None = None
    mapping: MappingFacts | None = None  #: the compared mapping; a repair is skipped if the mapping has changed since

    @property
    def key(self) -> tuple[str, str, int | None]:
        """The key by which two checks recognise the same finding."""
        return (self.kind, self.service_id, self.vmid)

    @property
    def needs_attention(self) -> bool:
        """False for a harmless difference that the agent repairs."""
        return self.kind is not DriftKind.VM_MOVED

    @property
    def facts(self) -> dict[str, Any]:
        """Return the finding as the log and `--json` show it."""
        return {
            "kind": self.kind.value,
            "service_id": self.service_id,
            "vmid": self.vmid,
            "node": self.node or None,
            "name": self.name or None,
            "text": self.text,
            "repair": self.repair.value if self.repair else None,
        }
