"""Erases what the database contains about a service that has ended.

A service has ended if it has no VM and no volume of a VM, its jobs and runs have ended, and no report is due.

The rows of the service's jobs, runs and mappings are deleted. So are the rows of the runs that operators started for
the service, and the rows in `secret_references`, which say which secrets of FulcrumCore's vault the service may use.

Audit entries stay, because they prove what was done. Only their values are erased: the columns `before`, `after` and
`reason`, which may contain a customer's names, become NULL. The triggers of the audit table allow only this change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, delete, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from executor.database import audit, busy_services, job_events, manual_runs, secret_references, volumes_left
from executor.database.engine import raise_as_database_error, sqlite_file
from executor.database.statements import execute_and_count
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping
from executor.model import MappingState

#: Maximum number of services that one command erases.
MAX_SERVICES = 10_000


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """What the database contains about one service."""

    service_id: str
    job_ids: Sequence[int]
    runs: Sequence[Run]
    mappings: Sequence[Mapping]
    secret_reference_count: int  #: how many secrets of FulcrumCore's vault the service may use
    manual_run_count: int  #: the number of runs that operators started for the service
    audit_entry_count: int  #: the number of audit entries whose values are not erased yet
    #: The latest time at which a job ended or a mapping was deleted; None if neither has happened.
    ended_at: datetime | None

    @property
    def is_empty(self) -> bool:
        """True if the database contains nothing about the service that can be erased."""
        counts = (self.secret_reference_count, self.manual_run_count, self.audit_entry_count)
        return not (self.job_ids or self.mappings or any(counts))


def services_of_consumer(session: Session, consumer_id: str) -> list[str]:
    """Return the ids of the services whose stored jobs name this consumer. A service without a stored job is not found.

    A consumer is the participant in FulcrumCore that uses a service. This database calls the consumer a tenant.
    """
    stmt = select(Job.service_id).where(Job.tenant_id == consumer_id, Job.service_id.is_not(None)).distinct()
    return [service_id for service_id in session.scalars(stmt.limit(MAX_SERVICES)) if service_id]


def find_stored_data(session: Session, service_id: str) -> StoredData:
    """Return what the database contains about a service."""
    jobs = session.execute(select(Job.id, Job.finished_at).where(Job.service_id == service_id).order_by(Job.id)).all()
    mapping_rows = session.scalars(select(Mapping).where(Mapping.service_id == service_id).order_by(Mapping.id)).all()
    job_ids = [job_id for job_id, _finished_at in jobs]
    end_times = [finished_at for _job_id, finished_at in jobs] + [row.deleted_at for row in mapping_rows]
    entry_count_query = select(func.count()).select_from(AuditEntry).where(_has_values_to_erase(session, service_id))
    return StoredData(
        service_id=service_id,
        job_ids=job_ids,
        runs=session.scalars(select(Run).where(Run.job_id.in_(job_ids)).order_by(Run.id)).all(),
        mappings=mapping_rows,
        secret_reference_count=secret_references.count_rows_of_service(session, service_id),
        manual_run_count=manual_runs.count_rows_of_service(session, service_id),
        audit_entry_count=session.scalar(entry_count_query) or 0,
        ended_at=max((end for end in end_times if end is not None), default=None),
    )


def why_service_has_not_ended(session: Session, data: StoredData) -> str:
    """Return why a service has not ended; '' if it has ended, so that its rows may be deleted."""
    if manual_runs.run_in_progress(session, data.service_id) is not None:
        return "a run that an operator started is in progress"
    if busy_services.find_busy_service_ids(session, data.service_id):
        return "a job has not ended, or its report is due"
    if any(row.state != MappingState.DELETED for row in data.mappings):
        remedy = (
            "delete the service, or run `smith mappings forget`, which marks the mapping as deleted and keeps the VM"
        )
        return f"the service has a mapping, so its VM may exist: {remedy}"
    # The column `note` of a deleted mapping lists the volumes that may have remained after the deletion of the VM.
    left_volume_ids = [
        volume_id
        for row in data.mappings
        if volumes_left.has_volumes_left(row)
        for volume_id in volumes_left.volume_ids_in_note(row)
    ]
    if left_volume_ids:
        remedy = "remove these volumes, then run `smith drift fix`, which deletes the list of them in the mapping"
        return f"volumes of the deleted VM may still exist ({', '.join(left_volume_ids)}): {remedy}"
    return ""


def erase(session: Session, data: StoredData, *, who: str, reason: str) -> None:
    """Delete the rows of a service, erase the values of its audit entries, and add an audit entry about the erasure.

    The caller has checked with `why_service_has_not_ended` in the same transaction that the service has ended.
    """
    erased_entry_count = execute_and_count(
        session,
        update(AuditEntry)
        .where(_has_values_to_erase(session, data.service_id))
        .values(before=None, after=None, reason=None)
        .execution_options(synchronize_session=False),
    )
    session.execute(delete(Run).where(Run.job_id.in_(data.job_ids)))
    job_events.delete_events_of_jobs(session, data.job_ids)
    session.execute(delete(Job).where(Job.id.in_(data.job_ids)))
    session.execute(delete(Mapping).where(Mapping.id.in_([row.id for row in data.mappings])))
    secret_references.delete_rows_of_service(session, data.service_id)
    manual_runs.delete_rows_of_service(session, data.service_id)
    audit.add_entry(
        session,
        who=who,
        verb="erase",
        subject_kind="service",
        subject_id=data.service_id,
        after={
            "jobs": len(data.job_ids),
            "runs": len(data.runs),
            "mappings": len(data.mappings),
            "audit_entries": erased_entry_count,
        },
        reason=reason,
    )


def was_service_erased(session: Session, service_id: str | None) -> bool:
    """Return whether the audit log has an entry about the erasure of this service or, with None, of any service."""
    entry = select(AuditEntry.id).where(AuditEntry.subject_kind == "service", AuditEntry.verb == "erase")
    if service_id is not None:
        entry = entry.where(AuditEntry.subject_id == service_id)
    return session.scalar(entry.limit(1)) is not None


def _has_values_to_erase(session: Session, service_id: str) -> ColumnElement[bool]:
    """Return the SQL condition that an audit entry about this service has values to erase.

    The entry of an earlier erasure keeps its values.
    """
    fulcrum_ids = select(Job.fulcrum_id).where(Job.service_id == service_id)
    is_of_service = or_(
        AuditEntry.subject_id == service_id,
        AuditEntry.subject_id.in_(fulcrum_ids),
        # An entry about a job has the job's `fulcrum_id` as its subject. After the job's row was deleted because of its
        # age, the service's id is only in the entry's columns `before` and `after`.
        AuditEntry.before["service_id"].as_string() == service_id,
        AuditEntry.after["service_id"].as_string() == service_id,
    )
    has_values = or_(AuditEntry.before.is_not(None), AuditEntry.after.is_not(None), AuditEntry.reason.is_not(None))
    return is_of_service & has_values & (AuditEntry.verb != "erase")


def overwrite_deleted_rows(engine: Engine) -> None:
    """Rewrite an SQLite file, so that the file and its WAL no longer contain deleted rows. Writers wait meanwhile.

    For PostgreSQL, this function does nothing, because autovacuum removes deleted rows. Raises DatabaseUnavailable if
    other processes use the file for too long.
    """
    if sqlite_file(engine.url.render_as_string(hide_password=False)) is None:
        return
    with raise_as_database_error(engine), engine.connect() as connection:
        # VACUUM is refused inside a transaction, and SQLAlchemy's connection always begins one.
        connection.rollback()
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None  # noqa: S101 (a connection that is open has a driver's connection)
        driver_connection.execute("VACUUM")
        driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
