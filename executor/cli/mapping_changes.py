"""Contains what all commands that change a mapping need: find the mapping, refuse while a job runs, write the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executor.cli.arguments import CommandFailed, UnknownReference
from executor.database import audit, mappings, queries
from executor.database.tables import Mapping
from executor.model import JobStatus, MappingState

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


def find_mapping(session: Session, reference: str) -> Mapping:
    """Return the one mapping that the reference matches and that is not deleted. Raises UnknownReference."""
    found = [row for row in mappings.find(session, reference) if row.state != MappingState.DELETED]
    if not found:
        raise UnknownReference(f"no VM is mapped for {reference}: `smith mappings list` shows them")
    if len(found) > 1:
        raise UnknownReference(f"more than one mapping matches {reference}: {', '.join(row.name for row in found)}")
    return found[0]


def refuse_while_job_runs(session: Session, service_id: str) -> None:
    """Raise CommandFailed when a worker processes a job of the service."""
    jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=service_id, limit=1)
    if jobs:
        raise CommandFailed(f"job {jobs[0].id} of this service is running: wait for its end, or cancel it first")


def record_change(session: Session, verb: str, row: Mapping, before: dict[str, Any] | None, reason: str) -> None:
    """Write the change of the mapping `row` into the audit. `before` has its columns before the change.

    `verb` is what the operator did, for example adopt. `before` is None if the change has created the mapping.
    """
    session.flush()
    session.refresh(row)
    after = audit.facts_of(row, audit.MAPPING_COLUMNS)
    who, subject = audit.operator_name(), row.service_id
    audit.record(
        session, who=who, verb=verb, kind="mapping", subject=subject, before=before, after=after, reason=reason
    )
