"""Compares the agent's mappings with Proxmox's guests and FulcrumCore's services, and returns the differences.

All functions are pure. A guest is a VM or a container. A mapping says which VM (or container) serves which service. A
VM or service that Proxmox or FulcrumCore does not list may still exist. So the caller of `compare` first calls the
functions of `inconclusive.py`, which decide whether the lists of guests and services are complete enough. And
`compare` treats a VM as gone only when its VMID is in `Facts.vmids_without_guest`: a search on all online nodes has
found no guest with this VMID, and Proxmox reports the VMID as free.

Whether a mapping has a VM depends on the mapping's state. The property `should_have_vm` is true in the states active
and pending deletion. The property `may_have_vm` is true in these two states and in the state reserved, because the
create job may have created the VM already. In the state vm_lost, both properties are false.

FulcrumCore stores an instance id for each service: `<agent id>/<vmid>`, which the agent reports after a create.
"""

from __future__ import annotations

from collections.abc import Iterator

from executor.drift.facts import (
    DriftKind,
    Facts,
    Finding,
    GuestFacts,
    MappingFacts,
    Repair,
    ServiceFacts,
    VolumesLeft,
)
from executor.model import GuestKind, MappingState


def compare(facts: Facts) -> tuple[Finding, ...]:
    """Return the differences as findings. Findings about busy services are left out.

    A service is busy while it has a pending or processing job, a job result that FulcrumCore must still get, or a run
    that an operator has started. The job, the result or the run may end the difference.
    """
    findings = [finding for mapping in facts.mappings for finding in _compare_mapping(mapping, facts)]
    findings += [finding for guest in facts.guests for finding in _compare_marked_guest(guest, facts)]
    findings += [finding for service in facts.services for finding in _compare_service(service, facts)]
    findings += [_volumes_finding(volumes_left) for volumes_left in facts.volumes_left]
    findings_of_idle_services = [finding for finding in findings if finding.service_id not in facts.busy_services]
    return tuple(
        sorted(findings_of_idle_services, key=lambda finding: (finding.kind, finding.vmid or 0, finding.service_id))
    )


def _volumes_finding(volumes_left: VolumesLeft) -> Finding:
    """Return the finding about volumes that existed after the deletion of a VM.

    If some of these volumes still exist, an operator must remove them. Otherwise, the repair of the finding removes the
    names of the volumes from the mapping (column `note`).
    """
    kind = DriftKind.VOLUMES_LEFT
    if not volumes_left.volumes:
        return _finding_about_mapping(
            volumes_left.mapping,
            kind,
            "the deletion of the VM left volumes, but these volumes do not exist any more",
            repair=Repair.CLEAR_VOLUMES_NOTE,
        )
    volumes = ", ".join(volumes_left.volumes)
    text = f"the VM is deleted, but its volumes {volumes} still exist: remove them by hand (`pvesm free VOLUME`)"
    return _finding_about_mapping(volumes_left.mapping, kind, text)


def _compare_mapping(mapping: MappingFacts, facts: Facts) -> Iterator[Finding]:
    """Compare a mapping with the guest on its VMID."""
    if agent_id := facts.other_agent_id_by_service.get(mapping.service_id):
        hint = "remove the mapping with `smith mappings forget`, which keeps the VM"
        text = (
            f"FulcrumCore assigns the service to agent {agent_id}, and sends the service's jobs to that agent: {hint}"
        )
        yield _finding_about_mapping(mapping, DriftKind.SERVICE_OF_OTHER_AGENT, text)
        return
    guest = facts.guests_by_vmid.get(mapping.vmid)
    if guest is None:
        # The VM may exist although it could not be read. The VM is gone only if its VMID is proven to have no guest.
        if mapping.vmid in facts.vmids_without_guest:
            yield from _compare_mapping_of_gone_vm(mapping, facts)
    elif guest.has_only_marker_of(mapping.service_id) and guest.kind == mapping.kind:
        if mapping.may_have_vm:
            yield from _compare_mapping_with_vm(mapping, guest, facts)
    elif guest.is_half_destroyed:
        tool = "pct" if guest.kind == GuestKind.LXC else "qm"
        commands = f"`{tool} unlock {guest.vmid}` and `{tool} destroy {guest.vmid}`"
        hint = f"run {commands} on node {guest.node}"
        text = f"a deletion of the VM was interrupted, and left only a lock in the VM's configuration: {hint}"
        yield _finding_about_mapping(mapping, DriftKind.VM_HALF_DESTROYED, text, node=guest.node)
    elif mapping.should_have_vm:  # the guest on the VMID is not the service's VM
        hint = "if this guest is the service's VM, restore its marker (`smith mappings adopt --set-marker`)"
        text = f"VMID {mapping.vmid} belongs to {guest.summary}, so every action for the service is refused: {hint}"
        yield _finding_about_mapping(mapping, DriftKind.VM_RECYCLED, text, node=guest.node)


def _compare_mapping_of_gone_vm(mapping: MappingFacts, facts: Facts) -> Iterator[Finding]:
    """Compare a mapping with its service in FulcrumCore. The mapping's VM is proven to be gone."""
    if facts.is_service_deleted_or_unknown(mapping.service_id):
        # VM_WITHOUT_SERVICE means that FulcrumCore has no service for a VM or for a mapping. If neither the VM nor the
        # service of an active mapping exists, the kind is VM_GONE.
        kind = DriftKind.VM_GONE if mapping.state == MappingState.ACTIVE else DriftKind.VM_WITHOUT_SERVICE
        yield _finding_about_mapping(mapping, kind, "neither the VM nor the service exists", repair=Repair.FORGET)
    elif mapping.should_have_vm:
        text = "the VM no longer exists"
        yield _finding_about_mapping(mapping, DriftKind.VM_GONE, text, repair=Repair.MARK_VM_LOST)


def _compare_mapping_with_vm(mapping: MappingFacts, guest: GuestFacts, facts: Facts) -> Iterator[Finding]:
    """Compare a mapping with its VM and with its service in FulcrumCore. The VM has the marker of the service.

    MAPPING_UNREPORTED means that the result of the service's create or delete did not reach FulcrumCore.
    """
    if mapping.should_have_vm and mapping.node != guest.node:
        text = f"the VM moved from {mapping.node or 'an unknown node'} to {guest.node}"
        yield _finding_about_mapping(mapping, DriftKind.VM_MOVED, text, node=guest.node, repair=Repair.CORRECT_NODE)
    if mapping.should_have_vm and mapping.name != guest.name:
        hint = "restore its name in Proxmox, or accept the new name (`smith mappings adopt`)"
        text = f"the VM's name is {guest.name}, not {mapping.name}, so every action for the service is refused: {hint}"
        yield _finding_about_mapping(mapping, DriftKind.VM_RENAMED, text, node=guest.node)
    service = facts.services_by_id.get(mapping.service_id)
    if mapping.state == MappingState.PENDING_DELETION:
        if service is not None and not service.is_deleted:
            hint = "repeat the delete in FulcrumCore, or keep the VM (`smith mappings recall`)"
            text = f"the VM is pending deletion, but its service has the status {service.status} in FulcrumCore: {hint}"
            yield _finding_about_mapping(mapping, DriftKind.MAPPING_UNREPORTED, text, node=guest.node)
    elif service is None or service.is_deleted:
        yield _finding_about_mapping(
            mapping, DriftKind.VM_WITHOUT_SERVICE, _no_service_text(service, guest), node=guest.node
        )
    elif mapping.state == MappingState.ACTIVE and service.instance_vmid != mapping.vmid:
        reported_id = f"the instance id {service.instance_id}" if service.instance_id else "no instance id"
        hint = "repeat the create in FulcrumCore to keep this VM, or repeat the delete to delete this VM"
        text = f"the service's VM is {mapping.vmid}, but FulcrumCore has {reported_id} for the service: {hint}"
        yield _finding_about_mapping(mapping, DriftKind.MAPPING_UNREPORTED, text, node=guest.node)
    elif service.id not in facts.services_with_recently_ended_job:  # after a job, Proxmox's list may be old
        yield from _compare_power(mapping, guest, service)


def _compare_power(mapping: MappingFacts, guest: GuestFacts, service: ServiceFacts) -> Iterator[Finding]:
    """Yield a finding if the VM is running and its service has the status of a stopped VM, or the other way round."""
    # A value is None if it is unknown.
    if None in (service.is_running, guest.is_running) or service.is_running == guest.is_running:
        return
    power, action, opposite_action = ("running", "start", "stop") if guest.is_running else ("stopped", "stop", "start")
    hint = f"request the action {action} in FulcrumCore, or {opposite_action} the VM in Proxmox"
    text = f"the VM is {power}, but its service has the status {service.status} in FulcrumCore: {hint}"
    yield _finding_about_mapping(mapping, DriftKind.POWER_DIFFERS, text, node=guest.node)


def _finding_about_mapping(
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
    """Yield a finding if a guest has the marker of one service, but is not the VM in the service's mapping.

    UNMAPPED_VM means that no mapping names the guest. The service may have a mapping to another VM.
    """
    if guest.is_template or len(guest.markers) != 1:
        # Only a guest with exactly one marker can be the VM of a service. A template cannot be the VM of a service: its
        # marker is a copy from the VM from which it was made.
        return
    (service_id,) = guest.markers
    if facts.is_of_other_owner(guest):
        # Another agent or another FulcrumCore manages the guest, or a mapping says that the service's VM is on another
        # Proxmox cluster.
        return
    mapping = facts.mappings_by_service.get(service_id)
    if mapping and mapping.may_have_vm and mapping.vmid == guest.vmid:
        return  # `_compare_mapping` has compared this guest with its mapping
    repair = None
    if mapping and mapping.may_have_vm:
        kind = DriftKind.UNMAPPED_VM
        hint = "if this VM is a copy, remove the marker from its notes"
        text = f"the VM has the marker of a service, but the service's VM is {mapping.vmid}: {hint}"
    elif facts.is_service_deleted_or_unknown(service_id):
        kind, text = DriftKind.VM_WITHOUT_SERVICE, _no_service_text(facts.services_by_id.get(service_id), guest)
    elif problem := _adoption_problem(guest, service_id, facts):
        kind, text = DriftKind.UNMAPPED_VM, problem
    else:
        kind, text, repair = DriftKind.UNMAPPED_VM, "the VM has the marker of a service, but no mapping", Repair.ADOPT
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


def _no_service_text(service: ServiceFacts | None, guest: GuestFacts) -> str:
    """Return the text of a finding about a VM whose service is deleted or unknown in FulcrumCore."""
    if service is None and not guest.agent_id:
        # An earlier version of Agent Smith wrote no agent id into the VM's notes, so the VM may belong to any agent.
        hint = "delete the VM in Proxmox only if it is not needed and belongs to no other FulcrumCore"
        return f"the VM's service is unknown in FulcrumCore: {hint}"
    status = "deleted" if service else "unknown"
    return f"the VM's service is {status} in FulcrumCore: delete the VM in Proxmox if the VM is not needed"


def _adoption_problem(guest: GuestFacts, service_id: str, facts: Facts) -> str:
    """Return why a guest with the service's marker cannot be mapped to the service, or '' when it can."""
    marked_guests = [other_guest for other_guest in facts.guests if other_guest.has_only_marker_of(service_id)]
    if len(marked_guests) > 1:
        return "more than one VM has this service's marker: keep the marker on the right VM, remove it from the others"
    for mapping in facts.mappings:
        if mapping.vmid == guest.vmid and mapping.service_id != service_id:
            hint = "first remove this mapping (`smith mappings forget`)"
            return f"the VMID is mapped to service {mapping.service_id}: {hint}"
    return ""


def _compare_service(service: ServiceFacts, facts: Facts) -> Iterator[Finding]:
    """Yield a finding if a service should have a VM, but has neither a mapping nor a guest with its marker."""
    mapping = facts.mappings_by_service.get(service.id)
    vmid = service.instance_vmid
    # `service.should_have_vm`: the service has an instance id, and a status that implies a VM.
    if not service.should_have_vm or vmid is None or service.id in facts.services_on_other_clusters:
        return
    if (mapping and mapping.may_have_vm) or any(service.id in guest.markers for guest in facts.guests):
        return  # `_compare_mapping` or `_compare_marked_guest` has compared this service
    occupant = facts.guests_by_vmid.get(vmid)
    if occupant is None and vmid not in facts.vmids_without_guest:
        return  # a guest that could not be read may have this VMID
    vm_text = f"VMID {vmid} belongs to {occupant.summary}" if occupant else f"VM {vmid} does not exist"
    yield Finding(
        kind=DriftKind.SERVICE_WITHOUT_VM,
        service_id=service.id,
        vmid=vmid,
        text=f"the service has the status {service.status}, but {vm_text}: delete the service, or restore its VM",
        mapping=mapping,
    )
