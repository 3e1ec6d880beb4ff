"""Step 4 of a job's processing (ARCHITECTURE.md): finds the mapping of a service's VM, or reserves a VMID for a new VM.

A mapping says which VM serves which service. A reservation is a mapping whose VM is not created yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import (
    is_created_by_agent,
    new_vm_name,
    properties_with_vault_references,
    require_service_id,
)
from executor.agent.tenant_usage import TenantUsage
from executor.database import free_vmids, mappings, vm_names
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.errors import JobError
from executor.log import get_logger
from executor.model import MappingState
from executor.proxmox.client import SMITH_TAG, ProxmoxReader
from executor.proxmox.rows import VmRow
from executor.runs.vm_properties import read_properties
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Length of the end of a VM's name: a dash and the first eight hexadecimal digits of the service's id.
NAME_SUFFIX_CHARS = 9


@dataclass(frozen=True, kw_only=True)
class FoundMapping:
    """The mapping that was found or reserved for a job."""

    mapping: Mapping | None = None  #: None if the job is a delete and the service has no VM
    #: True if this attempt has reserved the VMID. Then no VM exists for the mapping before the job's run starts.
    is_new_reservation: bool = False


@dataclass(frozen=True, kw_only=True)
class MappingFinder:
    """Finds the mapping of the VM that a job changes. Reserves a VMID for a VM that does not exist yet."""

    engine: Engine
    proxmox: ProxmoxReader
    settings: Settings
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    tenant_usage: TenantUsage  #: counts and limits what each tenant (customer) uses

    def find_or_reserve_mapping(self, job: Job) -> FoundMapping:
        """Return the mapping of the service's VM. For a create without a mapping, reserve a VMID. Raises JobError.

        What the job adds (a VM, its size, snapshots, backups) is counted in the tenant's usage. Raises
        TenantLimitReached if the usage would exceed a limit.
        """
        with read_only_session(self.engine) as session:
            mapping = mappings.find_current_mapping(session, require_service_id(job))
        if is_created_by_agent(job):  # the agent itself created the job, to delete a VM whose grace period has ended
            if mapping is None or mapping.state != MappingState.PENDING_DELETION:
                raise JobError(ErrorCode.CANCELLED, "the scheduled deletion was cancelled")
            return FoundMapping(mapping=mapping)
        mapping = mapping or self._map_existing_vm(job)
        if mapping is not None:
            self.tenant_usage.reserve_for_vm(job, mapping)
            return FoundMapping(mapping=mapping)
        if job.action == "create":
            return self._reserve_vmid(job)
        self._require_complete_vm_list()
        if job.action == "delete":
            return FoundMapping()
        raise JobError(
            ErrorCode.VM_NOT_FOUND, f"{job.action} needs a VM, but no VM in Proxmox has this service's marker"
        )

    def _map_existing_vm(self, job: Job) -> Mapping | None:
        """Search Proxmox for an unmapped VM of this service, and map it. Return the mapping, or None if no VM is found.

        A VM of the service has the service's marker, a text with the service's id in the VM's description. Such a
        VM lacks a mapping if the database was lost.
        """
        service_id, vm_rows = require_service_id(job), self._vms_with_names()
        # The suffix of a VM's name depends only on the service, so the hostname may be empty here.
        name_suffix = vm_names.vm_name("", service_id)[-NAME_SUFFIX_CHARS:]
        # Only the configurations of VMs whose name has this suffix are searched for the marker.
        vm = self.proxmox.find_vm_by_marker(vm_rows, service_id, name_suffix=name_suffix)
        if vm is None:
            return self._map_partial_clone(job, vm_rows) if job.action in ("create", "delete") else None
        log.warning("vm_found_by_marker", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            mapping = mappings.insert_active_mapping(
                session,
                service_id=service_id,
                cluster=self.cluster,
                vmid=vm.vmid,
                name=vm.name,
                node=vm.node,
                kind=vm.kind,
            )
        if mapping is None:
            raise JobError(
                ErrorCode.VM_IDENTITY_MISMATCH,
                f"VM {vm.vmid} has this service's marker, but is mapped to another service",
            )
        return mapping

    def _vms_with_names(self) -> list[VmRow]:
        """Return Proxmox's list of VMs. Names that the list lacks are read from the VMs' configurations.

        Proxmox's list lacks the name of a VM that is being created, and of each VM on a node that sends no statistics.
        A VM without a name is left out if it has a mapping, or if it cannot be a VM of the agent. Raises JobError
        VM_LOCKED, which causes a retry, if a VM has no name in its configuration yet.
        """
        rows = self.proxmox.vms()
        nameless_rows = [row for row in rows if not row.has_statistics or row.is_being_created]
        if not nameless_rows:
            return rows
        with read_only_session(self.engine) as session:
            mapped_vmids = mappings.mapped_vmids(session, self.cluster)
        rows_to_complete = [
            row for row in nameless_rows if row.vmid not in mapped_vmids and self._may_be_vm_of_agent(row)
        ]
        completed_rows = self.proxmox.add_missing_facts(rows_to_complete)  # reads the names from the configurations
        for row in completed_rows:
            if row.is_being_created and not row.name:
                raise JobError(
                    ErrorCode.VM_LOCKED,
                    f"VM {row.vmid} is being created and has no name yet; retry when Proxmox has created the VM",
                )
        return [row for row in rows if row not in nameless_rows] + completed_rows

    def _may_be_vm_of_agent(self, row: VmRow) -> bool:
        """Return whether a VM has the agent's tag or a VMID of the configured range."""
        is_vmid_in_range = self.settings.proxmox_vmid_min <= row.vmid <= self.settings.proxmox_vmid_max
        return is_vmid_in_range or SMITH_TAG in row.tags

    def _map_partial_clone(self, job: Job, vm_rows: Sequence[VmRow]) -> Mapping | None:
        """Search Proxmox for a clone that an interrupted create left without a marker; reserve the VMID of the clone.

        Return the mapping, or None if there is no such clone. This search is needed only after the loss of the
        database. It finds only a VM that has the exact name of a new VM of this service, and a VMID of the configured
        range.
        """
        allowed_vmids = range(self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max + 1)
        vm = self.proxmox.find_partial_clone(vm_rows, new_vm_name(job), allowed_vmids)
        if vm is None:
            return None
        log.warning("partial_clone_found", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            return mappings.reserve(
                session,
                service_id=require_service_id(job),
                cluster=self.cluster,
                vmid=vm.vmid,
                name=vm.name,
                kind=vm.kind,
            )

    def _require_complete_vm_list(self) -> None:
        """Raise JobError when Proxmox's list of VMs may be incomplete.

        The list may lack existing VMs when the cluster has no quorum, or when the agent's token lacks VM.Audit on /vms.
        """
        if not self.proxmox.is_quorate():
            raise JobError(ErrorCode.PVE_NO_QUORUM, "the cluster has no quorum, so the VM may exist but not be listed")
        if not self.proxmox.may_see_all_vms():
            raise JobError(
                ErrorCode.PVE_PERMISSION, "the token lacks VM.Audit on /vms, so the VM may exist but not be listed"
            )

    def _reserve_vmid(self, job: Job) -> FoundMapping:
        """Reserve a VMID that the cluster does not use; return its mapping.

        If another thread has added a mapping of the service meanwhile, return that mapping.
        """
        # The kind (VM or container) is no secret, so references to secrets in FulcrumCore's vault are not resolved.
        guest_kind = read_properties(properties_with_vault_references(job)).kind
        used_vmids: set[int] = set()
        while True:
            vmid = self._pick_vmid(used_vmids)
            if not self.proxmox.is_vmid_free(vmid):
                used_vmids.add(vmid)
                continue
            service_id = require_service_id(job)
            with transaction(self.engine) as session:
                self.tenant_usage.reserve_for_new_vm(session, job)
                mapping = mappings.reserve(
                    session,
                    service_id=service_id,
                    cluster=self.cluster,
                    vmid=vmid,
                    name=new_vm_name(job),
                    kind=guest_kind,
                    tenant_id=job.tenant_id,
                )
                is_new_reservation = mapping is not None
                if mapping is None:
                    # The service or the VMID was mapped meanwhile. If only the VMID was, the loop tries another VMID.
                    mapping = mappings.find_current_mapping(session, service_id)
            if mapping is not None:
                log.info("vmid_reserved", vmid=mapping.vmid)
                crash_points.crash_if_requested("vmid_reserved", job.service_id)  # only tests request a crash
                return FoundMapping(mapping=mapping, is_new_reservation=is_new_reservation)

    def _pick_vmid(self, used_vmids: set[int]) -> int:
        """Return a random VMID of the configured range that is neither mapped nor in `used_vmids`.

        The VMID of a deleted VM is in quarantine for some time. During the quarantine, the VMID is not returned.
        """
        cluster_vmid_range = (self.cluster, self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max)
        with read_only_session(self.engine) as session:  # a unique index refuses a VMID that is mapped after this read
            return free_vmids.pick_vmid(
                session,
                cluster_vmid_range,
                quarantine_s=self.settings.smith_vmid_quarantine_s,
                used_vmids=used_vmids,
            )
