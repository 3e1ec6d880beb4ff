"""The facts that a drift check compares, and the findings and repairs that follow from them."""

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
WITHOUT_VM = frozenset({"New", "CreateFailed", "Lost", SERVICE_DELETED})


class DriftKind(StrEnum):
    """What can differ. The values are an interface: of `smith drift --json`, of the metrics and of the log."""

    VM_GONE = "vm_gone"  #: the mapped VM does not exist
    VM_MOVED = "vm_moved"  #: the VM is on another node; harmless, and repaired by the agent
    VM_RENAMED = "vm_renamed"  #: the VM has another name, so every action refuses it
    VM_RECYCLED = "vm_recycled"  #: the mapped VMID holds a guest that is not the service's
    UNMAPPED_VM = "unmapped_vm"  #: a VM with our marker that no mapping leads to
    SERVICE_WITHOUT_VM = "service_without_vm"  #: FulcrumCore has an instance id, but neither VM nor mapping exists
    VM_WITHOUT_SERVICE = "vm_without_service"  #: a mapping or VM of a service that is deleted or unknown in FulcrumCore
    MAPPING_UNREPORTED = "mapping_unreported"  #: our mapping and VM exist, but FulcrumCore does not have the result


class Repair(StrEnum):
    """What can be done about a finding. Each repair changes a mapping and never a VM."""

    CORRECT_NODE = "correct_node"  #: store the VM's node in the mapping
    MARK_VM_LOST = "mark_vm_lost"  #: keep the mapping, with the state for a VM that is gone
    FORGET = "forget"  #: end the mapping: neither VM nor service exists
    ADOPT = "adopt"  #: create a mapping for the VM that has the service's marker


#: Applied by the agent's periodic check. The others wait for the operator's `smith drift fix`.
AUTOMATIC_REPAIRS = frozenset({Repair.CORRECT_NODE, Repair.MARK_VM_LOST})


@dataclass(frozen=True, kw_only=True)
class MappingFacts:
    """One mapping that is not deleted."""

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
        """True when its VM should exist now."""
        return self.state in (MappingState.ACTIVE, MappingState.PENDING_DELETION)

    @property
    def may_have_vm(self) -> bool:
        """True when its VM should exist now or after the create in progress."""
        return self.should_have_vm or self.state == MappingState.RESERVED


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """A VM or container on a mapped VMID or with our marker, as its own configuration describes it."""

    vmid: int
    node: str
    name: str
    markers: frozenset[str] = frozenset()  #: service ids in its notes; a guest of ours has exactly one
    is_template: bool = False
    kind: str = GuestKind.QEMU

    def belongs_to(self, service_id: str) -> bool:
        """Return whether it has the marker of this service and no other."""
        return not self.is_template and self.markers == {service_id}

    @property
    def description(self) -> str:
        """Describe the guest in a message."""
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
        """True when FulcrumCore will never create a job for it again."""
        return self.status == SERVICE_DELETED

    @property
    def should_have_vm(self) -> bool:
        """True when FulcrumCore has an instance id for it and its status implies a VM."""
        return bool(self.instance_id) and self.status not in WITHOUT_VM


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """What decides whether Proxmox's answers can be relied on."""

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
    busy_services: frozenset[str] = frozenset()  #: a job for them is open or unreported: a difference is no drift
    foreign_services: frozenset[str] = frozenset()  #: of another agent, or mapped on another cluster

    @cached_property
    def service_of(self) -> dict[str, ServiceFacts]:
        """The services by id."""
        return {service.id: service for service in self.services}

    @cached_property
    def guest_on(self) -> dict[int, GuestFacts]:
        """The guests by VMID."""
        return {guest.vmid: guest for guest in self.guests}

    @cached_property
    def mapping_of(self) -> dict[str, MappingFacts]:
        """The mapping of each service. A service has one at most."""
        return {mapping.service_id: mapping for mapping in self.mappings}

    def is_deleted(self, service_id: str) -> bool:
        """Return whether the service is deleted or unknown in FulcrumCore."""
        service = self.service_of.get(service_id)
        return service is None or service.is_deleted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One difference."""

    kind: DriftKind
    service_id: str
    vmid: int | None
    text: str  #: what is wrong, and what the operator can do when there is no repair
    node: str = ""
    name: str = ""
    guest_kind: str = GuestKind.QEMU
    repair: Repair | None = None
    mapping: MappingFacts | None = None  #: as compared: a repair is skipped when the mapping has changed since

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What identifies the same finding in the next check."""
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
