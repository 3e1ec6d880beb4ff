"""What differs between our mappings, Proxmox and FulcrumCore: the words for it, and the comparison, which asks nobody.

Three facts are laid side by side. `frozen` says first whether they can be believed at all: an empty answer is not an
empty world. Nothing here concludes that a VM is gone; `Facts.absent` holds those of which that was proven.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from executor.fulcrum.types import SERVICE_DELETED
from executor.model import GuestKind, MappingState

#: As many VMs as may vanish between two looks before the list is doubted; of many VMs, this share.
FEW = 3
SHRUNK_SHARE = 0.3
#: What FulcrumCore calls a service that has no VM, by the service type of this project.
WITHOUT_VM = frozenset({"New", "CreateFailed", "Lost", SERVICE_DELETED})


class Kind(StrEnum):
    """What can differ. These words are an interface: of `smith drift --json`, of the metrics and of the log."""

    VM_GONE = "vm_gone"  #: the mapped VM does not exist
    VM_MOVED = "vm_moved"  #: it is on another node; no damage, the mapping follows by itself
    VM_RENAMED = "vm_renamed"  #: it has another name: every action will refuse it
    VM_RECYCLED = "vm_recycled"  #: the VMID holds something that is not the service's
    ORPHAN_VM = "orphan_vm"  #: it carries our marker, and no mapping knows it
    SERVICE_WITHOUT_VM = "service_without_vm"  #: FulcrumCore believes in a VM, nobody else does
    VM_WITHOUT_SERVICE = "vm_without_service"  #: a mapping or VM whose service FulcrumCore has ended or never had
    MAPPING_UNREPORTED = "mapping_unreported"  #: we made the VM, FulcrumCore never took our word for it


class Repair(StrEnum):
    """What may be done about it. Each changes a row of ours and never a VM."""

    CORRECT_NODE = "correct_node"  #: write the VM's node into the mapping
    MARK_ORPHANED = "mark_orphaned"  #: keep the mapping, and write down that its VM is gone
    FORGET = "forget"  #: end the mapping: neither a VM nor a service is left
    ADOPT = "adopt"  #: make a mapping for the VM that carries the service's marker


#: Done by the periodic check without being asked; the others wait for `smith drift fix`.
BY_ITSELF = frozenset({Repair.CORRECT_NODE, Repair.MARK_ORPHANED})


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One of our mappings that is not deleted."""

    id: int
    service_id: str
    vmid: int
    node: str
    name: str
    state: str
    updated_at: datetime
    kind: str = GuestKind.QEMU

    @property
    def is_held(self) -> bool:
        """True while a VM is or may come to be behind it; an orphaned one is only remembered."""
        return self.is_there or self.state == MappingState.RESERVED

    @property
    def is_there(self) -> bool:
        """True while its VM should exist."""
        return self.state in (MappingState.ACTIVE, MappingState.DOOMED)


@dataclass(frozen=True, kw_only=True)
class SeenVm:
    """A guest as its own configuration told it, on a mapped VMID or with a marker of ours."""

    vmid: int
    node: str
    name: str
    markers: frozenset[str] = frozenset()  #: the services it says it belongs to; of ours there is exactly one
    is_template: bool = False
    kind: str = GuestKind.QEMU

    def is_of(self, service_id: str) -> bool:
        """True when it is this service's guest and nothing else."""
        return not self.is_template and self.markers == {service_id}

    @property
    def holder(self) -> str:
        """Say what it is, for people."""
        if self.is_template:
            return f"a template ({self.name})"
        marked = f"marked as {' and '.join(sorted(self.markers))}" if self.markers else "unmarked"
        return f"{'a container, ' if self.kind == GuestKind.LXC else ''}{self.name}, {marked}"


@dataclass(frozen=True, kw_only=True)
class KnownService:
    """A service as FulcrumCore has it."""

    id: str
    status: str
    instance_id: str = ""

    @property
    def instance_vmid(self) -> int | None:
        """The VMID at the end of `<agent>/<vmid>`, None without one."""
        digits = self.instance_id.rpartition("/")[2]
        is_vmid = digits.isascii() and digits.isdecimal() and 3 <= len(digits) <= 9
        return int(digits) if is_vmid else None

    @property
    def has_ended(self) -> bool:
        """True when FulcrumCore will never ask for it again."""
        return self.status == SERVICE_DELETED

    @property
    def should_have_vm(self) -> bool:
        """True when FulcrumCore believes in a VM: it holds an instance id, which goes with the service's end."""
        return bool(self.instance_id) and self.status not in WITHOUT_VM


@dataclass(frozen=True, kw_only=True)
class World:
    """What Proxmox shows of itself, before any VM is looked at."""

    is_quorate: bool
    may_see_all_vms: bool
    offline_nodes: frozenset[str] = frozenset()
    listed: Mapping[int, str] = field(default_factory=dict)  #: node by VMID, of every guest in the list


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a comparison needs."""

    mapped: Sequence[Mapped] = ()
    seen: Sequence[SeenVm] = ()
    absent: frozenset[int] = frozenset()  #: VMIDs that were proven to hold nothing
    services: Sequence[KnownService] = ()
    unsettled: frozenset[str] = frozenset()  #: services that are being worked on: what differs now is no drift
    foreign: frozenset[str] = frozenset()  #: services of another agent, or mapped on another cluster

    @cached_property
    def service_of(self) -> dict[str, KnownService]:
        """The services by id."""
        return {service.id: service for service in self.services}

    @cached_property
    def vm_on(self) -> dict[int, SeenVm]:
        """The guests by VMID."""
        return {vm.vmid: vm for vm in self.seen}

    @cached_property
    def mapping_of(self) -> dict[str, Mapped]:
        """The mappings by service; there is one each."""
        return {mapped.service_id: mapped for mapped in self.mapped}

    def has_ended(self, service_id: str) -> bool:
        """True when FulcrumCore has ended the service, or knows none."""
        service = self.service_of.get(service_id)
        return service is None or service.has_ended


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that differs."""

    kind: Kind
    service_id: str
    vmid: int | None
    text: str  #: what is wrong, and what a person can do where there is no repair
    node: str = ""
    name: str = ""
    guest: str = GuestKind.QEMU  #: what kind of guest was seen
    repair: Repair | None = None
    mapped: Mapped | None = None  #: as it was when it was compared: a repair refuses when it is not so any more

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes it the same finding at the next look."""
        return (self.kind, self.service_id, self.vmid)

    @property
    def is_damage(self) -> bool:
        """False for what corrects itself and hinders nothing."""
        return self.kind is not Kind.VM_MOVED

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, for the log and for `--json`."""
        return {
            "kind": self.kind.value,
            "service_id": self.service_id,
            "vmid": self.vmid,
            "node": self.node or None,
            "name": self.name or None,
            "text": self.text,
            "repair": self.repair.value if self.repair else None,
        }


# --- can it be believed -------------------------------------------------------------------------------------------


def frozen(world: World, mapped: Sequence[Mapped], *, believe_list: bool = False) -> str:
    """Say why nothing may be concluded from what Proxmox shows, '' when it may.

    `believe_list`: a person says that a list which is much shorter than our mappings is the truth.
    """
    if not world.is_quorate:
        return "the cluster has no quorum"
    if not world.may_see_all_vms:
        return "the token lacks VM.Audit on /vms, so VMs may be hidden from it"
    if hidden := _on_offline_nodes(world, mapped):
        return f"node {', '.join(sorted(hidden))} is offline and holds mapped VMs"
    if believe_list:
        return ""
    vmids = {each.vmid for each in mapped if each.state == MappingState.ACTIVE}
    missing = vmids - world.listed.keys()
    if vmids and not world.listed:
        return f"Proxmox lists no guest at all, and {len(vmids)} are mapped"
    return _shrunk(len(missing), len(vmids), "mapped VMs are not in Proxmox's list")


def frozen_by_core(mapped: Sequence[Mapped], services: Sequence[KnownService]) -> str:
    """Say why nothing may be concluded from FulcrumCore's list of services, '' when it may."""
    wanted = {each.service_id for each in mapped if each.state == MappingState.ACTIVE}
    missing = wanted - {service.id for service in services}
    return _shrunk(len(missing), len(wanted), "mapped services are not in FulcrumCore's list")


def _on_offline_nodes(world: World, mapped: Sequence[Mapped]) -> set[str]:
    held = [each for each in mapped if each.is_held]
    nodes = {each.node for each in held} | {world.listed.get(each.vmid, "") for each in held}
    return nodes & world.offline_nodes


def _shrunk(missing: int, known: int, what: str) -> str:
    return f"{missing} of {known} {what}" if missing > max(FEW, known * SHRUNK_SHARE) else ""


# --- what differs -------------------------------------------------------------------------------------------------


def compare(facts: Facts) -> tuple[Finding, ...]:
    """Return what differs, services that are being worked on left out."""
    found = [finding for mapped in facts.mapped for finding in _of_mapping(mapped, facts)]
    found += [finding for vm in facts.seen for finding in _of_stray(vm, facts)]
    found += [finding for service in facts.services for finding in _of_service(service, facts)]
    settled = [finding for finding in found if finding.service_id not in facts.unsettled]
    return tuple(sorted(settled, key=lambda finding: (finding.kind, finding.vmid or 0, finding.service_id)))


def _of_mapping(mapped: Mapped, facts: Facts) -> Iterator[Finding]:
    vm = facts.vm_on.get(mapped.vmid)
    if vm is None:
        # Neither seen nor proven to be gone: nothing can be said.
        yield from _gone(mapped, facts) if mapped.vmid in facts.absent else ()
    elif vm.is_of(mapped.service_id) and vm.kind == mapped.kind:
        yield from _present(mapped, vm, facts) if mapped.is_held else ()
    elif mapped.is_there:
        hint = "put the marker back (`smith mappings adopt --set-marker`) if it is the service's all the same"
        text = f"VMID {mapped.vmid} is {vm.holder}; no action will touch it: {hint}"
        yield _about(mapped, Kind.VM_RECYCLED, text, node=vm.node)


def _gone(mapped: Mapped, facts: Facts) -> Iterator[Finding]:
    if facts.has_ended(mapped.service_id):
        kind = Kind.VM_GONE if mapped.state == MappingState.ACTIVE else Kind.VM_WITHOUT_SERVICE
        yield _about(mapped, kind, "neither the VM nor the service exists any more", repair=Repair.FORGET)
    elif mapped.is_there:
        yield _about(mapped, Kind.VM_GONE, "the VM does not exist any more", repair=Repair.MARK_ORPHANED)


def _present(mapped: Mapped, vm: SeenVm, facts: Facts) -> Iterator[Finding]:
    """The mapped VM is there, and is the service's."""
    if mapped.is_there and mapped.node != vm.node:
        text = f"the VM moved from {mapped.node or 'a node that was not known'} to {vm.node}"
        yield _about(mapped, Kind.VM_MOVED, text, node=vm.node, repair=Repair.CORRECT_NODE)
    if mapped.is_there and mapped.name != vm.name:
        hint = "rename it back in Proxmox, or take the new name over (`smith mappings adopt`)"
        text = f"the VM is called {vm.name}, so every action refuses it: {hint}"
        yield _about(mapped, Kind.VM_RENAMED, text, node=vm.node)
    service = facts.service_of.get(mapped.service_id)
    if mapped.state == MappingState.DOOMED:
        if service is not None and not service.has_ended:
            hint = "repeat delete there, or take the VM back (`smith mappings recall`)"
            text = f"it waits for its destruction, and FulcrumCore has its service as {service.status}: {hint}"
            yield _about(mapped, Kind.MAPPING_UNREPORTED, text, node=vm.node)
    elif service is None or service.has_ended:
        text = f"FulcrumCore {'has ended' if service else 'does not know'} its service: destroy the VM by hand, if so"
        yield _about(mapped, Kind.VM_WITHOUT_SERVICE, text, node=vm.node)
    elif mapped.state == MappingState.ACTIVE and service.instance_vmid != mapped.vmid:
        holds = f"{service.instance_id} as its instance" if service.instance_id else "no instance id for it"
        text = f"FulcrumCore holds {holds}: repeat create (or delete) there, which finds the VM"
        yield _about(mapped, Kind.MAPPING_UNREPORTED, text, node=vm.node)


def _about(mapped: Mapped, kind: Kind, text: str, *, node: str = "", repair: Repair | None = None) -> Finding:
    return Finding(
        kind=kind,
        service_id=mapped.service_id,
        vmid=mapped.vmid,
        text=text,
        node=node or mapped.node,
        name=mapped.name,
        repair=repair,
        mapped=mapped,
    )


def _of_stray(vm: SeenVm, facts: Facts) -> Iterator[Finding]:
    """A VM with the marker of one service, whose mapping does not lead to it."""
    if vm.is_template or len(vm.markers) != 1:
        return  # a template made of a VM of ours still carries its marker
    (service_id,) = vm.markers
    mapped = facts.mapping_of.get(service_id)
    if service_id in facts.foreign or (mapped and mapped.is_held and mapped.vmid == vm.vmid):
        return  # told of the mapping, if anything is wrong with it
    repair = None
    if mapped and mapped.is_held:
        kind, text = Kind.ORPHAN_VM, f"a copy: it carries the marker of the service whose VM is {mapped.vmid}"
    elif facts.has_ended(service_id):
        known = "has ended" if service_id in facts.service_of else "does not know"
        kind, text = Kind.VM_WITHOUT_SERVICE, f"FulcrumCore {known} its service: destroy the VM by hand, if so"
    elif problem := _adoption_problem(vm, service_id, facts):
        kind, text = Kind.ORPHAN_VM, problem
    else:
        kind, text, repair = Kind.ORPHAN_VM, "it carries our marker, and no mapping knows it", Repair.ADOPT
    yield Finding(
        kind=kind,
        service_id=service_id,
        vmid=vm.vmid,
        text=text,
        node=vm.node,
        name=vm.name,
        guest=vm.kind,
        repair=repair,
        mapped=mapped,
    )


def _adoption_problem(vm: SeenVm, service_id: str, facts: Facts) -> str:
    marked = Counter(service for each in facts.seen for service in each.markers if each.is_of(service))
    if marked[service_id] > 1:
        return "more than one VM carries this service's marker: take it from all but the right one"
    others = [each for each in facts.mapped if each.vmid == vm.vmid and each.service_id != service_id]
    return f"its VMID is mapped for service {others[0].service_id}: forget that mapping first" if others else ""


def _of_service(service: KnownService, facts: Facts) -> Iterator[Finding]:
    """A service that FulcrumCore believes to have a VM."""
    mapped, vmid = facts.mapping_of.get(service.id), service.instance_vmid
    if not service.should_have_vm or vmid is None or service.id in facts.foreign or (mapped and mapped.is_held):
        return
    if any(service.id in vm.markers for vm in facts.seen):
        return  # told as an orphan
    holder = facts.vm_on.get(vmid)
    if holder is None and vmid not in facts.absent:
        return
    there = f"VMID {vmid} is {holder.holder}" if holder else f"VM {vmid} does not exist"
    yield Finding(
        kind=Kind.SERVICE_WITHOUT_VM,
        service_id=service.id,
        vmid=vmid,
        text=f"FulcrumCore has it as {service.status}, and {there}: delete the service, or restore its VM",
        mapped=mapped,
    )
