"""Compares the agent's mappings with Proxmox's guests and FulcrumCore's services, and returns the differences.

All functions are pure. Before `compare`, the caller calls `inconclusive_reason` and `inconclusive_reason_of_fulcrum`,
because a VM or service that is not in a list may still exist. `compare` treats a VM as gone only when the VM's VMID is
in `Facts.empty_vmids`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from executor.drift.facts import (
    ClusterState,
    DriftKind,
    Facts,
    Finding,
    GuestFacts,
    MappingFacts,
    Repair,
    ServiceFacts,
)
from executor.model import MappingState

#: A list of VMs or services is not relied on if it lacks more than MAX_MISSING of the mapped entries and more than the
#: share MAX_MISSING_SHARE of them.
MAX_MISSING = 3
MAX_MISSING_SHARE = 0.3


# --- inconclusive answers -----------------------------------------------------------------------------------------


def inconclusive_reason(cluster: ClusterState, mappings: Sequence[MappingFacts], *, believe_list: bool = False) -> str:
    """Return why nothing can be concluded from Proxmox's answers, '' when the answers can be relied on.

    `believe_list` is True when the operator confirms that the VMs that Proxmox does not list are really gone.
    """
    if not cluster.is_quorate:
        return "the cluster has no quorum"
    if not cluster.may_see_all_vms:
        return "the token lacks VM.Audit on /vms, so VMs may be hidden from it"
    if nodes := _offline_nodes_with_vms(cluster, mappings):
        return f"node {', '.join(sorted(nodes))} is offline and holds mapped VMs"
    if believe_list:
        return ""
    vmids = {mapping.vmid for mapping in mappings if mapping.state == MappingState.ACTIVE}
    missing = vmids - cluster.listed.keys()
    if vmids and not cluster.listed:
        return f"Proxmox lists no guest at all, and {len(vmids)} are mapped"
    return _too_many_missing(len(missing), len(vmids), "mapped VMs are not in Proxmox's list")


def inconclusive_reason_of_fulcrum(mappings: Sequence[MappingFacts], services: Sequence[ServiceFacts]) -> str:
    """Return why nothing can be concluded from FulcrumCore's list of services, '' when the list can be relied on."""
    expected = {mapping.service_id for mapping in mappings if mapping.state == MappingState.ACTIVE}
    missing = expected - {service.id for service in services}
    return _too_many_missing(len(missing), len(expected), "mapped services are not in FulcrumCore's list")


def _offline_nodes_with_vms(cluster: ClusterState, mappings: Sequence[MappingFacts]) -> set[str]:
    """Return the offline nodes on which, by the mappings or by Proxmox's list, a mapped VM is."""
    with_vm = [mapping for mapping in mappings if mapping.may_have_vm]
    stored_nodes = {mapping.node for mapping in with_vm}
    listed_nodes = {cluster.listed.get(mapping.vmid, "") for mapping in with_vm}
    return (stored_nodes | listed_nodes) & cluster.offline_nodes


def _too_many_missing(missing: int, expected: int, what: str) -> str:
    return f"{missing} of {expected} {what}" if missing > max(MAX_MISSING, expected * MAX_MISSING_SHARE) else ""


# --- findings -----------------------------------------------------------------------------------------------------


def compare(facts: Facts) -> tuple[Finding, ...]:
    """Return the differences as findings, without the findings about busy services (see `Facts.busy_services`)."""
    findings = [finding for mapping in facts.mappings for finding in _compare_mapping(mapping, facts)]
    findings += [finding for guest in facts.guests for finding in _compare_marked_guest(guest, facts)]
    findings += [finding for service in facts.services for finding in _compare_service(service, facts)]
    reported = [finding for finding in findings if finding.service_id not in facts.busy_services]
    return tuple(sorted(reported, key=lambda finding: (finding.kind, finding.vmid or 0, finding.service_id)))


def _compare_mapping(mapping: MappingFacts, facts: Facts) -> Iterator[Finding]:
    """Compare a mapping with the guest on its VMID."""
    guest = facts.guests_by_vmid.get(mapping.vmid)
    if guest is None:
        # If no guest was read, the VM is gone only if it is proven that no guest has its VMID.
        yield from _compare_mapping_of_gone_vm(mapping, facts) if mapping.vmid in facts.empty_vmids else ()
    elif guest.belongs_to(mapping.service_id) and guest.kind == mapping.kind:
        yield from _compare_mapping_with_vm(mapping, guest, facts) if mapping.may_have_vm else ()
    elif mapping.should_have_vm:
        hint = "if it is the service's VM, restore its marker (`smith mappings adopt --set-marker`)"
        text = f"VMID {mapping.vmid} is {guest.description}, so every action for the service is refused: {hint}"
        yield _finding(mapping, DriftKind.VM_RECYCLED, text, node=guest.node)


def _compare_mapping_of_gone_vm(mapping: MappingFacts, facts: Facts) -> Iterator[Finding]:
    """Yield a finding for a mapping whose VM is proven to be gone."""
    if facts.is_deleted(mapping.service_id):
        kind = DriftKind.VM_GONE if mapping.state == MappingState.ACTIVE else DriftKind.VM_WITHOUT_SERVICE
        yield _finding(mapping, kind, "neither the VM nor the service exists", repair=Repair.FORGET)
    elif mapping.should_have_vm:
        text = "the VM no longer exists"
        yield _finding(mapping, DriftKind.VM_GONE, text, repair=Repair.MARK_VM_LOST)


def _compare_mapping_with_vm(mapping: MappingFacts, guest: GuestFacts, facts: Facts) -> Iterator[Finding]:
    """Compare a mapping with its VM and with its service in FulcrumCore. The VM has the marker of the service."""
    if mapping.should_have_vm and mapping.node != guest.node:
        text = f"the VM moved from {mapping.node or 'an unknown node'} to {guest.node}"
        yield _finding(mapping, DriftKind.VM_MOVED, text, node=guest.node, repair=Repair.CORRECT_NODE)
    if mapping.should_have_vm and mapping.name != guest.name:
        hint = "restore its name in Proxmox, or accept the new name (`smith mappings adopt`)"
        text = f"the VM's name is {guest.name}, so every action for the service is refused: {hint}"
        yield _finding(mapping, DriftKind.VM_RENAMED, text, node=guest.node)
    service = facts.services_by_id.get(mapping.service_id)
    if mapping.state == MappingState.PENDING_DELETION:
        if service is not None and not service.is_deleted:
            hint = "repeat delete in FulcrumCore, or keep the VM (`smith mappings recall`)"
            text = f"the VM is pending deletion, but its service has the status {service.status} in FulcrumCore: {hint}"
            yield _finding(mapping, DriftKind.MAPPING_UNREPORTED, text, node=guest.node)
    elif service is None or service.is_deleted:
        yield _finding(mapping, DriftKind.VM_WITHOUT_SERVICE, _no_service_text(service), node=guest.node)
    elif mapping.state == MappingState.ACTIVE and service.instance_vmid != mapping.vmid:
        stored = f"the instance id {service.instance_id}" if service.instance_id else "no instance id"
        text = f"FulcrumCore has {stored} for the service: repeat create (or delete) there, which finds the VM"
        yield _finding(mapping, DriftKind.MAPPING_UNREPORTED, text, node=guest.node)


def _finding(
    mapping: MappingFacts, kind: DriftKind, text: str, *, node: str = "", repair: Repair | None = None
) -> Finding:
    return Finding(
        kind=kind,
        service_id=mapping.service_id,
        vmid=mapping.vmid,
        text=text,
        node=node or mapping.node,
        name=mapping.name,
        repair=repair,
        mapping=mapping,
    )


def _compare_marked_guest(guest: GuestFacts, facts: Facts) -> Iterator[Finding]:
    """Yield a finding for a guest that has the marker of one service, but is not the VM in the service's mapping."""
    if guest.is_template or len(guest.markers) != 1:
        return  # a template may have a marker: a VM that is converted into a template keeps its marker
    (service_id,) = guest.markers
    mapping = facts.mappings_by_service.get(service_id)
    if service_id in facts.foreign_services or (mapping and mapping.may_have_vm and mapping.vmid == guest.vmid):
        return  # `_compare_mapping` has compared this guest with its mapping
    repair = None
    if mapping and mapping.may_have_vm:
        kind = DriftKind.UNMAPPED_VM
        text = f"the VM is a copy: it has the marker of the service whose VM is {mapping.vmid}"
    elif facts.is_deleted(service_id):
        kind, text = DriftKind.VM_WITHOUT_SERVICE, _no_service_text(facts.services_by_id.get(service_id))
    elif problem := _adoption_problem(guest, service_id, facts):
        kind, text = DriftKind.UNMAPPED_VM, problem
    else:
        kind, text, repair = DriftKind.UNMAPPED_VM, "the VM has our marker, but no mapping", Repair.ADOPT
    yield Finding(
        kind=kind,
        service_id=service_id,
        vmid=guest.vmid,
        text=text,
        node=guest.node,
        name=guest.name,
        guest_kind=guest.kind,
        repair=repair,
        mapping=mapping,
    )


def _no_service_text(service: ServiceFacts | None) -> str:
    status = "deleted" if service else "unknown"
    return f"the VM's service is {status} in FulcrumCore: delete the VM in Proxmox if it is not needed"


def _adoption_problem(guest: GuestFacts, service_id: str, facts: Facts) -> str:
    """Return why a guest with the service's marker cannot be mapped to the service, '' when it can."""
    vms_by_service = Counter(service for each in facts.guests for service in each.markers if each.belongs_to(service))
    if vms_by_service[service_id] > 1:
        return "more than one VM has this service's marker: keep the marker on the right VM, remove it from the others"
    others = [each for each in facts.mappings if each.vmid == guest.vmid and each.service_id != service_id]
    return f"the VMID is mapped to service {others[0].service_id}: forget that mapping first" if others else ""


def _compare_service(service: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    """Yield a finding for a service that should have a VM, but has neither a mapping nor a marked guest."""
    mapping, vmid = facts.mappings_by_service.get(service.id), service.instance_vmid
    if not service.should_have_vm or vmid is None or service.id in facts.foreign_services:
        return
    if (mapping and mapping.may_have_vm) or any(service.id in guest.markers for guest in facts.guests):
        return  # `_compare_mapping` or `_compare_marked_guest` has compared this service
    occupant = facts.guests_by_vmid.get(vmid)
    if occupant is None and vmid not in facts.empty_vmids:
        return
    state = f"VMID {vmid} is {occupant.description}" if occupant else f"VM {vmid} does not exist"
    yield Finding(
        kind=DriftKind.SERVICE_WITHOUT_VM,
        service_id=service.id,
        vmid=vmid,
        text=f"the service has the status {service.status}, but {state}: delete the service, or restore its VM",
        mapping=mapping,
    )
