"""Finds a mapping, refuses to change it while a job of the service runs, and writes the change into the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executor.cli.arguments import CommandFailed, UnusableReference
from executor.database import audit, mappings, queries
from executor.database.tables import Mapping
from executor.model import JobStatus, MappingState

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


def refuse_empty_reference(reference: str) -> None:
    """Raise UnusableReference if the operator's reference to a mapping is empty."""
    if not reference.strip():
        raise UnusableReference("an empty reference matches no mapping: `smith mappings list` shows the mappings")


def find_mapping(session: Session, reference: str) -> Mapping:
    """Return the mapping that matches the reference and is not deleted.

    A reference is a VMID, a VM's name, or the beginning of a service's id. Raises UnusableReference unless exactly one
    mapping matches.
    """
    refuse_empty_reference(reference)
    matches = [row for row in mappings.find(session, reference) if row.state != MappingState.DELETED]
    if not matches:
        raise UnusableReference(f"no mapping matches {reference}: `smith mappings list` shows the mappings")
    if len(matches) > 1:
        raise UnusableReference(f"more than one mapping matches {reference}: {', '.join(row.name for row in matches)}")
    return matches[0]


def refuse_while_job_runs(session: Session, service_id: str) -> None:
    """Raise CommandFailed when a worker processes a job of the service."""
    jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=service_id, limit=1)
    if jobs:
        raise CommandFailed(f"job {jobs[0].id} of this service is running: wait for its end, or cancel it first")


def record_change(session: Session, verb: str, row: Mapping, before: dict[str, Any] | None, reason: str) -> None:
    """Write the change of the mapping `row` into the audit.

    `verb` names the change, for example adopt. `before` has the mapping's columns before the change, or is None if the
    change has created the mapping.
    """
    session.flush()
    session.refresh(row)
    after = audit.column_values(row, audit.MAPPING_COLUMNS)
    audit.record(
        session,
        who=audit.operator_name(),
        verb=verb,
        subject_kind="mapping",
        subject_id=row.service_id,
        before=before,
        after=after,
        reason=reason,
    )
