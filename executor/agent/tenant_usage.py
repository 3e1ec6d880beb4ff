"""Reserves what a job adds to the usage of its tenant, before the job changes anything.

A tenant is a customer (a consumer in FulcrumCore). The usage of a tenant is the number and the sizes of its VMs, and
the numbers of their snapshots and backups. The limits of a tenant are SMITH_TENANT_MAX_*. The reservation is a part of
step 4 of a job's processing (ARCHITECTURE.md). A mapping says which VM serves which service; its row also stores
the usage of the VM.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.agent.job_fields import properties_with_vault_references
from executor.database import job_queue, usage
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.usage import Amounts, TenantLimitReached
from executor.errors import JobError
from executor.log import get_logger
from executor.model import GuestKind, MappingState
from executor.proxmox.client import ProxmoxReader
from executor.runs.vm_properties import VmProperties, read_properties
from executor.settings.settings import Settings
from executor.shared import guest_disks

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: The actions that may add something to the usage of a tenant.
ACTIONS_THAT_ADD_USAGE = frozenset({"create", "update", "resize", "snapshot", "backup"})


@dataclass(frozen=True, kw_only=True)
class TenantUsage:
    """Reserves what jobs add to the usage of their tenants. Several threads may use one object."""

    engine: Engine
    proxmox: ProxmoxReader
    settings: Settings

    def reserve_for_new_vm(self, session: Session, job: Job) -> None:
        """Reserve one VM and its cores, memory and disks for the tenant. Raises TenantLimitReached.

        `session` is the transaction that also reserves the VMID.
        """
        # The sizes do not depend on secrets, so references to secrets in FulcrumCore's vault are not replaced.
        vm = read_properties(properties_with_vault_references(job))
        amounts = _amounts_of_vm(vm, config_at_proxmox={})  # a new VM has no configuration yet
        usage.reserve(session, job_queue.lease_of(job), job.tenant_id, amounts, usage.tenant_limits(self.settings))

    def reserve_for_vm(self, job: Job, mapping: Mapping) -> None:
        """Reserve what the job adds to the usage of the mapping's VM. Raises TenantLimitReached.

        The job may be a create whose earlier attempt has reserved the VMID. Then the mapping exists, but the VM may not
        exist yet.

        When the limit of snapshots or backups is reached, the tenant's snapshots or backups are counted at Proxmox,
        because some may have been removed in Proxmox.
        """
        if job.action not in ACTIONS_THAT_ADD_USAGE:
            self._store_missing_tenant(job, mapping)
            return
        growth, sizes_before_job = self._growth(job, mapping), _sizes_before_job(job)
        try:
            self._reserve_growth(job, mapping, growth, sizes_before_job)
        except TenantLimitReached as error:
            if error.resource not in ("snapshots", "backups") or not self._recount_at_proxmox(
                job.tenant_id, error.resource
            ):
                raise
            self._reserve_growth(job, mapping, growth, sizes_before_job)

    def _store_missing_tenant(self, job: Job, mapping: Mapping) -> None:
        """If the tenant of a VM is not stored yet, store the tenant and the VM's missing sizes.

        The tenant is not stored if an earlier version of Agent Smith made the VM, or if the VM was adopted.
        """
        if job.tenant_id and mapping.tenant_id is None:
            with transaction(self.engine) as session:
                usage.store_tenant_and_sizes(session, mapping, job.tenant_id, _sizes_before_job(job))

    def _reserve_growth(self, job: Job, mapping: Mapping, growth: Amounts, sizes_before_job: Amounts | None) -> None:
        with transaction(self.engine) as session:
            # Sizes that are already stored are not overwritten.
            usage.store_tenant_and_sizes(session, mapping, job.tenant_id, sizes_before_job)
            usage.reserve(session, job_queue.lease_of(job), job.tenant_id, growth, usage.tenant_limits(self.settings))

    def _growth(self, job: Job, mapping: Mapping) -> Amounts:
        """Return what the job adds to the recorded usage of the VM."""
        if job.action == "snapshot":
            return Amounts(snapshots=1)
        if job.action == "backup":
            return Amounts(backups=1)
        usage_before_job = usage.usage_of_mapping(mapping)
        # A VM has no stored sizes if it was adopted, or made by an earlier version of Agent Smith. Then the sizes in
        # the service's properties before the job are used.
        if mapping.state == MappingState.ACTIVE and not mapping.cores and (sizes := _sizes_before_job(job)):
            usage_before_job = sizes
        try:
            vm = read_properties(properties_with_vault_references(job))
        except JobError:
            if job.action != "resize":
                raise
            return Amounts()  # a provider's own playbook for `resize` may use properties that we cannot read
        return _amounts_of_vm(vm, config_at_proxmox=self._vm_config(mapping)).growth_from(usage_before_job)

    def _vm_config(self, mapping: Mapping) -> MappingType[str, Any]:
        """Return the VM's configuration at Proxmox; {} if no limit depends on disks, or the VM does not exist."""
        if not self.settings.smith_tenant_max_disk_gib or mapping.state != MappingState.ACTIVE:
            return {}
        row = next((row for row in self.proxmox.vms() if row.vmid == mapping.vmid), None)
        return self.proxmox.vm_config(row.node, row.vmid, kind=row.kind) if row else {}

    def _recount_at_proxmox(self, tenant_id: str | None, column: str) -> bool:
        """Count the tenant's snapshots or backups at Proxmox. Return True if this has lowered a stored count.

        `column` is the column to correct: "snapshots" or "backups".
        """
        with read_only_session(self.engine) as session:
            mappings = usage.mappings_with_snapshots_or_backups(session, tenant_id, column)
        lower_counts: dict[int, int] = {}
        try:
            for mapping in mappings:
                count = self._count_at_proxmox(mapping, column)
                if count < getattr(mapping, column):
                    lower_counts[mapping.id] = count
        except JobError as error:
            log.warning("tenant_usage_not_counted", tenant_id=tenant_id, counted=column, reason=str(error))
        with transaction(self.engine) as session:
            for mapping_id, count in lower_counts.items():
                usage.lower_snapshot_or_backup_count(session, mapping_id, column, count)
        return bool(lower_counts)

    def _count_at_proxmox(self, mapping: Mapping, column: str) -> int:
        """Return how many snapshots or backups a VM has at Proxmox. Raises JobError."""
        node = mapping.node or ""
        if column == "snapshots":
            return self.proxmox.snapshot_count(node, mapping.vmid, kind=mapping.kind)
        backup_archives = self.proxmox.archives(node, self.settings.proxmox_backup_storage)
        return sum(archive.vmid == mapping.vmid for archive in backup_archives)


def _sizes_before_job(job: Job) -> Amounts | None:
    """Return the sizes in the properties that the service has before the job.

    Return None for a create, and if the properties are missing or invalid.
    """
    properties = (job.service or {}).get("properties")
    if not isinstance(properties, dict) or job.action == "create":
        return None
    try:
        return _amounts_of_vm(read_properties(properties), config_at_proxmox={})
    except JobError:
        return None


def _amounts_of_vm(vm: VmProperties, *, config_at_proxmox: MappingType[str, Any]) -> Amounts:
    """Return what a VM with these properties uses. `config_at_proxmox` is {} if the configuration is not known."""
    disk_gib = _disk_gib(vm, config_at_proxmox)
    return Amounts(vms=1, cores=vm.total_cores, memory_mib=vm.memory_mib, disk_gib=disk_gib)


def _disk_gib(vm: VmProperties, config: MappingType[str, Any]) -> int:
    """Return the total size in GiB of the disks of a VM with these properties.

    An existing disk that the properties do not name is kept, so it counts, too. `diskGb` is the size of the first disk,
    which is the boot disk. Without a configuration, the name of the first disk is unknown, so each size in `disks`
    counts in addition to `diskGb`.
    """
    if vm.kind is GuestKind.LXC:
        return vm.disk_gib
    # -(-a // b) is a / b, rounded up.
    existing_gib = {
        name: -(-disk["bytes"] // guest_disks.GIB) for name, disk in guest_disks.disks_of(dict(config)).items()
    }
    first_disk = guest_disks.boot_disk(dict(config)) or "first"
    requested_gib = {first_disk: vm.disk_gib}
    for disk in vm.disks:  # `disk.disk` is the name of the disk, such as scsi1
        requested_gib[disk.disk] = max(requested_gib.get(disk.disk, 0), disk.size_gib or 0)
    return sum(
        max(existing_gib.get(name, 0), requested_gib.get(name, 0))
        for name in existing_gib.keys() | requested_gib.keys()
    )
