"""Step 4 of a job's processing (ARCHITECTURE.md): finds the mapping of a service's VM, or reserves a VMID for a new VM.

A mapping says which VM serves which service. A reservation is a mapping whose VM is not created yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import delivered_properties, is_local, service_id, vm_name
from executor.database import mappings
from executor.database.engine import reading, transaction
from executor.database.tables import Job, Mapping
from executor.errors import ErrorCode, JobError
from executor.log import get_logger
from executor.model import MappingState
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import VmRow
from executor.runs.vm_properties import read_properties
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reservations:
    """Finds or creates the mapping of the VM that a job changes."""

    engine: Engine
    proxmox: ProxmoxReader
    settings: Settings
    cluster: str

    def mapping_of(self, job: Job) -> Mapping | None:
        """Return the mapping of the service's VM. For a create without a mapping, reserve a VMID.

        Returns None for a delete whose VM does not exist. Raises JobError.
        """
        with reading(self.engine) as session:
            mapping = mappings.current(session, service_id(job))
        if is_local(job):  # a local job only deletes a VM whose grace period has ended
            if mapping is None or mapping.state != MappingState.PENDING_DELETION:
                raise JobError(ErrorCode.CANCELLED, "the scheduled deletion was cancelled")
            return mapping
        if mapping := mapping or self._find_unmapped(job):
            return mapping
        if job.action == "create":
            return self._reserve(job)
        self._require_that_vm_would_be_visible()
        if job.action == "delete":
            return None
        raise JobError(ErrorCode.VM_NOT_FOUND, f"{job.action} needs a VM, and no VM has this service's marker")

    def _find_unmapped(self, job: Job) -> Mapping | None:
        """Search Proxmox for a VM that has the marker of this service but no mapping; return a new mapping for the VM.

        The marker is a text with the service's id in the VM's description. The mapping is missing when the database was
        lost. The last nine characters of a VM's name are a dash and the first eight digits of the service's id.
        """
        service, rows = service_id(job), self.proxmox.vms()
        vm = self.proxmox.find_by_marker(rows, service, name_suffix=mappings.vm_name("", service)[-9:])
        if vm is None:
            return self._find_partial_clone(job, rows) if job.action in ("create", "delete") else None
        log.warning("vm_found_by_marker", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            mapping = mappings.insert_active(
                session,
                service_id=service,
                cluster=self.cluster,
                vmid=vm.vmid,
                name=vm.name,
                node=vm.node,
                kind=vm.kind,
            )
        if mapping is None:
            raise JobError(
                ErrorCode.VM_IDENTITY_MISMATCH, f"VM {vm.vmid} has the marker but is mapped to another service"
            )
        return mapping

    def _find_partial_clone(self, job: Job, rows: Sequence[VmRow]) -> Mapping | None:
        """Search Proxmox for a clone that an interrupted create left without a marker; reserve its VMID.

        This search is needed only after the loss of the database. It accepts only a VM with the exact name that a
        create would give to it, and with a VMID of the configured range.
        """
        low, high = self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max
        vm = self.proxmox.find_partial_clone(rows, vm_name(job), range(low, high + 1))
        if vm is None:
            return None
        log.warning("partial_clone_found", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            return mappings.reserve(
                session, service_id=service_id(job), cluster=self.cluster, vmid=vm.vmid, name=vm.name, kind=vm.kind
            )

    def _require_that_vm_would_be_visible(self) -> None:
        """Raise JobError unless Proxmox would list the VM if it existed.

        Without quorum, or without VM.Audit on /vms for the agent's token, the list may lack existing VMs.
        """
        if not self.proxmox.is_quorate():
            raise JobError(ErrorCode.PVE_NO_QUORUM, "the cluster has no quorum: nothing can be concluded")
        if not self.proxmox.may_see_all_vms():
            raise JobError(ErrorCode.PVE_PERMISSION, "the token lacks VM.Audit on /vms: nothing can be concluded")

    def _reserve(self, job: Job) -> Mapping:
        """Reserve a VMID that the cluster does not use; return its mapping.

        Another thread may have added a mapping of the service meanwhile; then that mapping is returned.
        """
        kind = read_properties(delivered_properties(job)).kind
        used_vmids: set[int] = set()
        while True:
            vmid = self._pick_vmid(used_vmids)
            if not self.proxmox.is_vmid_free(vmid):
                used_vmids.add(vmid)
                continue
            service = service_id(job)
            with transaction(self.engine) as session:
                mapping = mappings.reserve(
                    session, service_id=service, cluster=self.cluster, vmid=vmid, name=vm_name(job), kind=kind
                ) or mappings.current(session, service)
            if mapping is not None:
                log.info("vmid_reserved", vmid=mapping.vmid)
                crash_points.reached("vmid_reserved", job.service_id)
                return mapping

    def _pick_vmid(self, used_vmids: set[int]) -> int:
        """Return a random VMID of the range that is neither mapped, nor in quarantine, nor in `used_vmids`."""
        low, high = self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max
        with transaction(self.engine) as session:
            return mappings.pick_vmid(
                session,
                (self.cluster, low, high),
                quarantine_s=self.settings.smith_vmid_quarantine_s,
                taken=used_vmids,
            )
