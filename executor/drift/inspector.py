"""Collects the facts of a drift check from the database, Proxmox and FulcrumCore, and compares them.

Drift is a difference between the mappings in the database, the guests in Proxmox and the services in FulcrumCore. A
mapping says which VM serves which service. A guest is a VM or a container. The check changes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from executor.database import queries
from executor.database.engine import read_only_session
from executor.database.times import utc_now
from executor.drift import rows
from executor.drift.compare import compare
from executor.drift.facts import ClusterState, Facts, Finding, GuestFacts, MappingFacts, ServiceFacts
from executor.drift.inconclusive import why_fulcrum_is_inconclusive, why_proxmox_is_inconclusive
from executor.drift.volumes import volumes_that_may_exist
from executor.errors import JobError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import ListedService
from executor.model import GuestKind
from executor.proxmox.client import SMITH_TAG, ProxmoxReader
from executor.proxmox.rows import VmRow
from executor.shared.error_codes import ErrorCode
from executor.shared.marker import agent_id_in, marker_values_in

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: Matches the end of the name of each VM that the agent creates: a dash and the first eight digits of the service id.
NAME_SUFFIX = re.compile(r"-[0-9a-f]{8}\Z")
#: Number of searches for a VM. The check treats a VM as gone only if no search has found it.
SEARCH_COUNT = 2
#: The wait between two searches.
SEARCH_INTERVAL_S = 2.0
#: A job is recent if it has ended less than this time ago. If a service has a recent job, the check does not compare
#: whether the service's VM is running. Proxmox's list of guests shows the start or stop of a guest up to about ten
#: seconds late, and even later if the node is busy.
MAX_RECENT_JOB_AGE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class DriftCheckOutcome:
    """The result of one drift check: the findings, or the reason why the check is inconclusive.

    A check is inconclusive if it cannot rely on the answers of Proxmox or FulcrumCore.
    """

    findings: tuple[Finding, ...] = ()
    inconclusive_reason: str = ""
    mapping_count: int = 0  #: number of mappings of this cluster that are not deleted
    #: Number of guests of other owners. The check ignores a guest of another owner: the guest has a marker, and belongs
    #: to another agent or another FulcrumCore, or to a service whose mapping is on another Proxmox cluster.
    other_owner_guest_count: int = 0

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that need an operator's attention."""
        return tuple(finding for finding in self.findings if finding.needs_operator)


@dataclass(kw_only=True)
class DriftInspector:
    """Checks one Proxmox cluster for drift."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    wait: Callable[[float], Any] = time.sleep  #: waits for some seconds; may end early when the agent stops

    def check_drift(self, agent_id: str, *, may_many_vms_be_missing: bool = False) -> DriftCheckOutcome:
        """Collect the facts of this agent's services and compare them.

        `may_many_vms_be_missing` is True when the operator has said that Proxmox's list is right, even if many VMs are
        missing in it.

        The check reports nothing about busy services. A service is busy if it has a pending or processing job, a job
        result that is not yet sent to FulcrumCore, or a run that an operator has started. It is also busy if its
        mapping changes during the check: the mappings are read at the start and at the end.

        Raises FulcrumUnavailable, or JobError for an error of Proxmox.
        """
        recent_jobs_since = utc_now() - MAX_RECENT_JOB_AGE
        with read_only_session(self.engine) as session:
            facts_before = rows.read_database_facts(session, self.cluster)
        mappings = facts_before.mappings
        cluster_state, vm_rows = self._cluster_state()
        # A job may be creating or deleting the VM of a busy service. So only the mappings of the other services show
        # whether Proxmox's and FulcrumCore's lists are complete.
        mappings_of_idle_services = [
            mapping for mapping in mappings if mapping.service_id not in facts_before.busy_services
        ]
        if reason := why_proxmox_is_inconclusive(
            cluster_state, mappings_of_idle_services, may_many_vms_be_missing=may_many_vms_be_missing
        ):
            return DriftCheckOutcome(inconclusive_reason=reason, mapping_count=len(mappings))
        listed_services = list(self.fulcrum.services())
        services = [_service_facts(service) for service in listed_services if service.agent_id == agent_id]
        if reason := why_fulcrum_is_inconclusive(
            mappings_of_idle_services, {service.id for service in listed_services}
        ):
            return DriftCheckOutcome(inconclusive_reason=reason, mapping_count=len(mappings))
        guests, vmids_without_guest = self._read_guests(mappings, services, vm_rows)
        with read_only_session(self.engine) as session:
            facts_after = rows.read_database_facts(session, self.cluster)
            services_with_recently_ended_job = queries.services_of_jobs_ended_since(session, recent_jobs_since)
        changed_services = facts_after.services_changed_since(facts_before)
        facts = Facts(
            mappings=facts_after.mappings,
            guests=guests,
            vmids_without_guest=vmids_without_guest,
            services=services,
            # The volumes that Proxmox could not remove with their VM. Volumes that were removed later are left out.
            volumes_left=[
                volumes_that_may_exist(self.proxmox, volumes_left) for volumes_left in facts_after.volumes_left
            ],
            services_with_recently_ended_job=services_with_recently_ended_job,
            busy_services=facts_before.busy_services | facts_after.busy_services | changed_services,
            # the services whose VM is on another Proxmox cluster, according to the mappings
            services_on_other_clusters=facts_before.services_on_other_clusters | facts_after.services_on_other_clusters,
            other_agent_id_by_service={
                service.id: service.agent_id or ""  # '': FulcrumCore assigns the service to no agent
                for service in listed_services
                if service.agent_id != agent_id
            },
            agent_id=agent_id,
        )
        return DriftCheckOutcome(
            findings=compare(facts),
            mapping_count=len(facts_after.mappings),
            other_owner_guest_count=facts.other_owner_guest_count,
        )

    # --- Proxmox --------------------------------------------------------------------------------------------------

    def _cluster_state(self) -> tuple[ClusterState, list[VmRow]]:
        """Return the state of the cluster, and Proxmox's list of guests.

        If the lists of nodes and guests may be incomplete, they are not requested, and the returned list is empty.
        """
        is_quorate = self.proxmox.is_quorate()
        are_lists_complete = is_quorate and self.proxmox.may_see_all_vms()
        if not are_lists_complete:
            # Without quorum, `may_see_all_vms` is always False: the permission is not read.
            return ClusterState(is_quorate=is_quorate, may_see_all_vms=False), []
        offline_nodes = frozenset(node.name for node in self.proxmox.nodes() if not node.is_online)
        vm_rows = self.proxmox.vms()
        state = ClusterState(
            is_quorate=True,
            may_see_all_vms=True,
            offline_nodes=offline_nodes,
            node_by_vmid={row.vmid: row.node for row in vm_rows},
        )
        return state, vm_rows

    def _read_guests(
        self, mappings: Sequence[MappingFacts], services: Sequence[ServiceFacts], vm_rows: Sequence[VmRow]
    ) -> tuple[list[GuestFacts], frozenset[int]]:
        """Read the guests to compare; return them, and the expected VMIDs that are proven to have no guest.

        A VMID is expected if it is in a mapping, or in the `agent_instance_id` of a service in FulcrumCore.
        """
        # `instance_vmid` is the VMID in the `agent_instance_id`. `should_have_vm` depends on the service's status.
        instance_vmids = [service.instance_vmid for service in services if service.should_have_vm]
        expected_vmids = {mapping.vmid for mapping in mappings} | {vmid for vmid in instance_vmids if vmid is not None}
        rows_to_read = [row for row in vm_rows if row.vmid in expected_vmids or _may_have_marker(row)]
        guests_from_list = []
        for row in rows_to_read:
            if guest := self._read_guest(row.node, row.vmid, GuestKind(row.kind)):
                # The row lacks the guest's status if the node's daemon pvestatd has sent no statistics of the guest.
                guests_from_list.append(
                    replace(guest, is_running=row.status == "running" if row.has_statistics else None)
                )
        vmids_to_search = expected_vmids - {guest.vmid for guest in guests_from_list}
        if not vmids_to_search:
            return guests_from_list, frozenset()
        guests_from_search, vmids_without_guest = self._search_guests(vmids_to_search)
        return guests_from_list + guests_from_search, vmids_without_guest

    def _search_guests(self, vmids: set[int]) -> tuple[list[GuestFacts], frozenset[int]]:
        """Search every online node SEARCH_COUNT times for guests with these VMIDs.

        The search is needed because Proxmox's list of guests is not always up to date. Returns the guests that were
        found, and the VMIDs that are proven to have no guest. A VMID is in neither result if its guest was not found,
        but may exist.
        """
        guests_by_vmid: dict[int, GuestFacts] = {}
        for finished_search_count in range(SEARCH_COUNT):
            if finished_search_count > 0:
                self.wait(SEARCH_INTERVAL_S)
            online_nodes = [node.name for node in self.proxmox.nodes() if node.is_online]
            found_guests = [self._find_guest(vmid, online_nodes) for vmid in sorted(vmids - guests_by_vmid.keys())]
            guests_by_vmid |= {guest.vmid: guest for guest in found_guests if guest is not None}
        missing_vmids = vmids - guests_by_vmid.keys()
        # A permission on the path of a single guest can hide this guest from the token. `is_vmid_free` returns False
        # even if the guest with the VMID is hidden.
        vmids_without_guest = frozenset(vmid for vmid in missing_vmids if self.proxmox.is_vmid_free(vmid))
        is_quorate = self.proxmox.is_quorate()  # without quorum, the search proves nothing
        return list(guests_by_vmid.values()), vmids_without_guest if is_quorate else frozenset()

    def _find_guest(self, vmid: int, nodes: Iterable[str]) -> GuestFacts | None:
        """Search these nodes for the guest with this VMID; return the guest, or None if no node has it."""
        for node in nodes:
            for kind in GuestKind:
                guest = self._read_guest(node, vmid, kind)
                if guest is not None:
                    return guest
        return None

    def _read_guest(self, node: str, vmid: int, kind: GuestKind) -> GuestFacts | None:
        """Read the guest's configuration from the node; return the facts about the guest.

        Returns None if the node has no guest of this kind with this VMID, or if the token may not read its
        configuration.
        """
        try:
            config = self.proxmox.vm_config(node, vmid, kind=kind)
        except JobError as error:
            # PVE_CONFLICT means that this guest is not on this node.
            if error.code in (ErrorCode.PVE_CONFLICT, ErrorCode.PVE_PERMISSION):
                return None
            raise
        description = str(config.get("description") or "")
        return GuestFacts(
            vmid=vmid,
            node=node,
            kind=kind,
            name=str(config.get("name") or config.get("hostname") or ""),
            markers=frozenset(marker_values_in(description)),
            agent_id=agent_id_in(description),
            is_template=str(config.get("template") or "0") == "1",
            lock=str(config.get("lock") or ""),
        )


def _may_have_marker(row: VmRow) -> bool:
    """Return whether a guest may have a marker. The agent gives its VMs its tag and names with NAME_SUFFIX.

    Only the guest's configuration shows whether it has a marker.
    """
    if not row.has_statistics:  # the row lacks the name
        return True
    return not row.is_template and (SMITH_TAG in row.tags or bool(NAME_SUFFIX.search(row.name)))


def _service_facts(service: ListedService) -> ServiceFacts:
    # The statuses of a running service, according to its type in FulcrumCore; None if they are not known.
    running_statuses = service.service_type.running_statuses if service.service_type else None
    return ServiceFacts(
        id=service.id,
        status=service.status or "",
        instance_id=service.agent_instance_id or "",
        is_running=None if running_statuses is None else service.status in running_statuses,
    )
