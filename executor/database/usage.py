"""Counts the resources that a tenant's VMs use. Reserves the resources that a job adds, within the tenant's limits.

A tenant is the participant in FulcrumCore that uses a service. The row of a mapping contains the amounts that the
mapping's VM uses, and the row of a job contains the amounts that the job has reserved. Reserved amounts count only
until the job ends. No function commits: the caller opens and commits the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, update
from sqlalchemy.orm import Session

from executor.database import job_queue
from executor.database.job_queue import Lease
from executor.database.literals import DELETED_LITERAL, PENDING_LITERAL, PROCESSING_LITERAL
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.errors import JobError
from executor.model import MappingState
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

#: The first key of the PostgreSQL advisory lock of a tenant; the second key is a hash of the tenant's id. The value is
#: the ASCII text "SMIU".
TENANT_LOCK_KEY = 0x534D4955
#: The texts for the resources in error messages. The keys are the names of the fields of Amounts.
RESOURCE_TEXTS = {
    "vms": "VMs",
    "cores": "cores",
    "memory_mib": "MiB of memory",
    "disk_gib": "GiB of disk space",
    "snapshots": "snapshots",
    "backups": "backups",
}
#: The columns of a mapping that contain the amounts that its VM uses.
MAPPING_COLUMNS = ("cores", "memory_mib", "disk_gib", "snapshots", "backups")


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """One amount for each counted resource: for example what a VM uses, or the limits of a tenant."""

    vms: int = 0
    cores: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    snapshots: int = 0
    backups: int = 0

    def growth_from(self, old_amounts: Amounts) -> Amounts:
        """Return by how much each amount is larger than in `old_amounts`; 0 for an amount that is not larger."""
        growth = {
            field.name: max(getattr(self, field.name) - getattr(old_amounts, field.name), 0) for field in fields(self)
        }
        return Amounts(**growth)


class TenantLimitReached(JobError):
    """A request would exceed a limit of its tenant. `resource` is the name of a field of Amounts."""

    def __init__(self, resource: str, *, limit: int, used: int, requested: int) -> None:
        text = f"the limit of {limit} {RESOURCE_TEXTS[resource]} is reached"
        numbers_text = f"{used} in use or reserved, {requested} more requested"
        super().__init__(ErrorCode.CAPACITY, text, f"{text}: {numbers_text} (SMITH_TENANT_MAX_{resource.upper()})")
        self.resource = resource


def tenant_limits(settings: Settings) -> Amounts:
    """Return the limits of each tenant; 0 means no limit."""
    return Amounts(**{name: getattr(settings, f"smith_tenant_max_{name}") for name in RESOURCE_TEXTS})


def usage_of_mapping(mapping: Mapping) -> Amounts:
    """Return what the VM of a mapping uses.

    A mapping that is active or pending deletion always counts as one VM. A mapping in another state counts as one VM
    only if its row contains the VM's sizes (cores, memory, disk). For example, a failed create job stores the sizes if
    the VM may exist.
    """
    counts_as_vm = mapping.cores > 0 or mapping.state in (MappingState.ACTIVE, MappingState.PENDING_DELETION)
    return Amounts(vms=int(counts_as_vm), **{name: getattr(mapping, name) for name in MAPPING_COLUMNS})


def reserve(session: Session, lease: Lease, tenant_id: str | None, growth: Amounts, limits: Amounts) -> None:
    """Reserve for a job the amounts `growth`, which the job adds to its tenant's usage. Raises TenantLimitReached.

    All jobs without a tenant count as jobs of one tenant. Only one transaction at a time reserves for a tenant, so that
    two jobs cannot together exceed a limit.
    """
    if session.get_bind().dialect.name == "postgresql":  # SQLite allows only one writer at a time
        session.execute(select(func.pg_advisory_xact_lock(TENANT_LOCK_KEY, func.hashtext(tenant_id or ""))))
    limited_names = [name for name in RESOURCE_TEXTS if getattr(limits, name) and getattr(growth, name)]
    if limited_names:
        # What this job reserved in an earlier attempt does not count: `store_reserved_amounts` below replaces it.
        used_amounts = used_and_reserved_amounts(session, tenant_id, except_job_id=lease.job_id)
        for name in limited_names:
            numbers = {
                "limit": getattr(limits, name),
                "used": getattr(used_amounts, name),
                "requested": getattr(growth, name),
            }
            if numbers["used"] + numbers["requested"] > numbers["limit"]:
                raise TenantLimitReached(name, **numbers)
    job_queue.store_reserved_amounts(session, lease, asdict(growth))


def used_and_reserved_amounts(session: Session, tenant_id: str | None, *, except_job_id: int = 0) -> Amounts:
    """Return what the VMs of a tenant use, plus what the tenant's open jobs have reserved.

    The job with the id `except_job_id` is left out. No job has the id 0.
    """
    counts_as_vm = (Mapping.cores > 0) | Mapping.state.in_((MappingState.ACTIVE, MappingState.PENDING_DELETION))
    sums_of_mappings = select(
        func.coalesce(func.sum(case((counts_as_vm, 1), else_=0)), 0),
        *(func.coalesce(func.sum(getattr(Mapping, name)), 0) for name in MAPPING_COLUMNS),
    ).where(*_conditions_of_counted_mappings(tenant_id))
    columns = [getattr(Job, f"reserved_{name}") for name in RESOURCE_TEXTS]
    # A name with _LITERAL is a state as SQL text, not as a parameter. SQLite needs the text to use a partial index.
    is_open = Job.status.in_((PENDING_LITERAL, PROCESSING_LITERAL))
    sums_of_jobs = select(*(func.coalesce(func.sum(column), 0) for column in columns)).where(
        is_open, _has_tenant(Job.tenant_id, tenant_id), Job.id != except_job_id
    )
    used_sums, reserved_sums = session.execute(sums_of_mappings).one(), session.execute(sums_of_jobs).one()
    return Amounts(
        **{name: int(used_sums[index]) + int(reserved_sums[index]) for index, name in enumerate(RESOURCE_TEXTS)}
    )


def mappings_with_snapshots_or_backups(session: Session, tenant_id: str | None, column: str) -> Sequence[Mapping]:
    """Return the tenant's mappings whose VM has snapshots (if `column` is "snapshots"), or backups (if "backups").

    Deleted mappings are left out, and so are mappings whose VM does not exist any more (state VM_LOST).
    """
    stmt = select(Mapping).where(*_conditions_of_counted_mappings(tenant_id), getattr(Mapping, column) > 0)
    return session.scalars(stmt.order_by(Mapping.id)).all()


def lower_snapshot_or_backup_count(session: Session, mapping_id: int, column: str, count: int) -> None:
    """Lower the stored number of a VM's snapshots or backups to `count`, the number that exists in Proxmox."""
    stmt = update(Mapping).where(Mapping.id == mapping_id, getattr(Mapping, column) > count)
    session.execute(stmt.values({column: count}))


def store_tenant_and_sizes(session: Session, mapping: Mapping, tenant_id: str | None, sizes: Amounts | None) -> None:
    """Store the tenant of a mapping. If the mapping is active and has no sizes yet, store its VM's `sizes`, too."""
    values: dict[str, Any] = {"tenant_id": tenant_id} if tenant_id else {}
    if sizes is not None and mapping.state == MappingState.ACTIVE and not mapping.cores:
        values |= {name: getattr(sizes, name) for name in ("cores", "memory_mib", "disk_gib")}
    if values:
        stmt = update(Mapping).where(Mapping.id == mapping.id, Mapping.state != DELETED_LITERAL)
        session.execute(stmt.values(values))


def add_reserved_amounts(session: Session, job_id: int, mapping_id: int) -> None:
    """Increase the stored amounts of the mapping's VM by the amounts that the job `job_id` has reserved."""
    columns = [getattr(Job, f"reserved_{name}") for name in MAPPING_COLUMNS]
    reserved_amounts = dict(
        zip(MAPPING_COLUMNS, session.execute(select(*columns).where(Job.id == job_id)).one(), strict=True)
    )
    if any(reserved_amounts.values()):
        new_amounts = {name: getattr(Mapping, name) + amount for name, amount in reserved_amounts.items()}
        stmt = update(Mapping).where(Mapping.id == mapping_id, Mapping.state != DELETED_LITERAL)
        session.execute(stmt.values(new_amounts).execution_options(synchronize_session=False))


def store_actual_sizes(session: Session, mapping_id: int, vm: MappingType[str, Any]) -> None:
    """Store the VM's cores and memory from `vm`, the facts about the VM that a playbook run returned.

    If the VM has snapshots, a stored size is never lowered, because a rollback to a snapshot may restore this size.
    """
    sizes = {name: vm.get(name) for name in ("cores", "memory_mib")}
    values: dict[str, Any] = {}
    for name, size in sizes.items():
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**40:
            column = getattr(Mapping, name)
            values[name] = case(((Mapping.snapshots > 0) & (column > size), column), else_=size)
    if values:
        stmt = update(Mapping).where(Mapping.id == mapping_id, Mapping.state != DELETED_LITERAL)
        session.execute(stmt.values(values).execution_options(synchronize_session=False))


def _conditions_of_counted_mappings(tenant_id: str | None) -> tuple[ColumnElement[bool], ...]:
    is_not_deleted = Mapping.state != DELETED_LITERAL
    return is_not_deleted, Mapping.state != MappingState.VM_LOST, _has_tenant(Mapping.tenant_id, tenant_id)


def _has_tenant(column: Any, tenant_id: str | None) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = column == tenant_id if tenant_id else column.is_(None)
    return condition
