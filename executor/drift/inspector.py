"""Collects the facts of a drift check from the database, Proxmox and FulcrumCore, and compares them.

The check changes nothing in these three systems.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executor.database.engine import reading
from executor.drift import rows
from executor.drift.compare import compare, inconclusive_reason, inconclusive_reason_of_fulcrum
from executor.drift.facts import ClusterState, Facts, Finding, GuestFacts, MappingFacts, ServiceFacts
from executor.errors import ErrorCode, FulcrumAuthFailing, FulcrumRefused, JobError
from executor.fulcrum.client import FulcrumClient
from executor.model import GuestKind
from executor.proxmox.client import MARKER_LINE, TAG, ProxmoxReader
from executor.proxmox.rows import VmRow

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: The end of the name of each VM that the agent creates: a dash and the first eight digits of the service id.
NAME_SUFFIX = re.compile(r"-[0-9a-f]{8}\Z")
#: A VM is treated as gone only if two searches do not find it. This time passes between the two searches.
SEARCH_INTERVAL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one check: the findings, or the reason why the check is inconclusive."""

    findings: tuple[Finding, ...] = ()
    inconclusive_reason: str = ""
    mapping_count: int = 0

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that need an operator's attention."""
        return tuple(finding for finding in self.findings if finding.needs_attention)


@dataclass(kw_only=True)
class Inspector:
    """Checks one cluster for drift."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    cluster: str
    wait: Callable[[float], Any] = time.sleep
    #: Ids of services that FulcrumCore assigned to other agents. An assignment never changes, so each of these services
    #: is requested from FulcrumCore only once.
    _known_foreign_services: set[str] = field(default_factory=set)

    def check(self, agent_id: str, *, believe_list: bool = False) -> Outcome:
        """Collect the facts of this agent's services and compare them. For `believe_list` see `inconclusive_reason`.

        The mappings are read before and after the requests to Proxmox and FulcrumCore. A service whose mapping changed
        in between counts as busy. Raises FulcrumUnavailable, or JobError for an error of Proxmox.
        """
        with reading(self.engine) as session:
            before = rows.read(session, self.cluster)
        cluster, vm_rows = self._cluster_state()
        idle_mappings = [mapping for mapping in before.mappings if mapping.service_id not in before.busy_services]
        if reason := inconclusive_reason(cluster, idle_mappings, believe_list=believe_list):
            return Outcome(inconclusive_reason=reason, mapping_count=len(before.mappings))
        services = [_service_facts(service) for service in self.fulcrum.services(agent_id)]
        if reason := inconclusive_reason_of_fulcrum(idle_mappings, services):
            return Outcome(inconclusive_reason=reason, mapping_count=len(before.mappings))
        guests, empty_vmids = self._guests(before.mappings, services, vm_rows)
        foreign = self._foreign_services(guests, before.mappings, services, agent_id)
        with reading(self.engine) as session:
            after = rows.read(session, self.cluster)
        facts = Facts(
            mappings=after.mappings,
            guests=guests,
            empty_vmids=empty_vmids,
            services=services,
            busy_services=before.busy_services | after.busy_services | after.changed_since(before),
            foreign_services=before.foreign_services | after.foreign_services | foreign,
        )
        return Outcome(findings=compare(facts), mapping_count=len(after.mappings))

    # --- Proxmox --------------------------------------------------------------------------------------------------

    def _cluster_state(self) -> tuple[ClusterState, list[VmRow]]:
        is_quorate = self.proxmox.is_quorate()
        may_see_all_vms = is_quorate and self.proxmox.may_see_all_vms()
        if not may_see_all_vms:  # lists of nodes and VMs could not be relied on
            return ClusterState(is_quorate=is_quorate, may_see_all_vms=False), []
        offline = frozenset(node.name for node in self.proxmox.nodes() if not node.is_online)
        vm_rows = self.proxmox.vms()
        listed = {row.vmid: row.node for row in vm_rows}
        return ClusterState(is_quorate=True, may_see_all_vms=True, offline_nodes=offline, listed=listed), vm_rows

    def _guests(
        self, mappings: Sequence[MappingFacts], services: Sequence[ServiceFacts], vm_rows: Sequence[VmRow]
    ) -> tuple[list[GuestFacts], frozenset[int]]:
        """Return the guests to compare, and those expected VMIDs of which it is proven that no guest has them.

        An expected VMID is one that a mapping or the instance id of a service names.
        """
        instance_vmids = [service.instance_vmid for service in services if service.should_have_vm]
        expected = {mapping.vmid for mapping in mappings} | {vmid for vmid in instance_vmids if vmid is not None}
        candidates = [row for row in vm_rows if row.vmid in expected or _may_be_ours(row)]
        read = [self._read_guest(row.node, row.vmid, (GuestKind(row.kind),)) for row in candidates]
        guests = [guest for guest in read if guest is not None]
        missing = expected - {guest.vmid for guest in guests}
        unlisted, empty_vmids = self._search(missing) if missing else ([], frozenset())
        return guests + unlisted, empty_vmids

    def _search(self, missing: set[int]) -> tuple[list[GuestFacts], frozenset[int]]:
        """Search every online node twice for guests with these VMIDs.

        Proxmox's list may lack a guest, because the list is not always up to date and the token may not see every
        guest. Returns the guests that were found, and the VMIDs of which it is proven that no guest has them. If
        neither is true of a VMID, neither result contains it.
        """
        found: dict[int, GuestFacts] = {}
        for turn in range(2):
            if turn:
                self.wait(SEARCH_INTERVAL_S)
            nodes = [node.name for node in self.proxmox.nodes() if node.is_online]
            guests = [self._search_nodes(vmid, nodes) for vmid in sorted(missing - found.keys())]
            found |= {guest.vmid: guest for guest in guests if guest is not None}
        empty = {vmid for vmid in missing - found.keys() if self.proxmox.is_vmid_free(vmid)}
        is_quorate = self.proxmox.is_quorate()  # without quorum, the search proves nothing
        return list(found.values()), frozenset(empty) if is_quorate else frozenset()

    def _search_nodes(self, vmid: int, nodes: Iterable[str]) -> GuestFacts | None:
        results = (self._read_guest(node, vmid, tuple(GuestKind)) for node in nodes)
        return next((guest for guest in results if guest is not None), None)

    def _read_guest(self, node: str, vmid: int, kinds: Sequence[GuestKind]) -> GuestFacts | None:
        """Return the guest with this VMID if it has one of these kinds.

        Returns None if the node has no such guest, or if the token may not read its configuration.
        """
        results = (self._read_config(node, vmid, kind) for kind in kinds)
        return next((guest for guest in results if guest is not None), None)

    def _read_config(self, node: str, vmid: int, kind: GuestKind) -> GuestFacts | None:
        try:
            config = self.proxmox.vm_config(node, vmid, kind=kind)
        except JobError as error:
            if error.code in (ErrorCode.VM_NOT_FOUND, ErrorCode.PVE_PERMISSION):
                return None
            raise
        return GuestFacts(
            vmid=vmid,
            node=node,
            kind=kind,
            name=str(config.get("name") or config.get("hostname") or ""),
            markers=frozenset(uid.lower() for uid in MARKER_LINE.findall(str(config.get("description") or ""))),
            is_template=str(config.get("template") or "0") == "1",
        )

    # --- FulcrumCore ----------------------------------------------------------------------------------------------

    def _foreign_services(
        self,
        guests: Sequence[GuestFacts],
        mappings: Sequence[MappingFacts],
        services: Sequence[ServiceFacts],
        agent_id: str,
    ) -> frozenset[str]:
        """Return the services of other agents whose ids are in the markers of these guests."""
        ours = {mapping.service_id for mapping in mappings} | {service.id for service in services}
        unknown = {marker for guest in guests for marker in guest.markers} - ours
        unchecked = unknown - self._known_foreign_services
        self._known_foreign_services |= {service for service in unchecked if self._is_foreign(service, agent_id)}
        return frozenset(unknown & self._known_foreign_services)

    def _is_foreign(self, service_id: str, agent_id: str) -> bool:
        """Return whether FulcrumCore assigned the service to another agent; False if FulcrumCore does not know it."""
        try:
            return self.fulcrum.get_service(service_id).agent_id != agent_id
        except FulcrumAuthFailing:
            # FulcrumCore answers 403 for an unknown service, but also for an invalid token. With an invalid token,
            # `get_self` raises, too.
            self.fulcrum.get_self()
            return False
        except FulcrumRefused:
            return False


def _may_be_ours(row: VmRow) -> bool:
    """Return whether a guest may have a marker. Reading the marker itself would cost one request for each guest."""
    return not row.is_template and (TAG in row.tags or bool(NAME_SUFFIX.search(row.name)))


def _service_facts(service: Any) -> ServiceFacts:
    return ServiceFacts(id=service.id, status=service.status or "", instance_id=service.agent_instance_id or "")
