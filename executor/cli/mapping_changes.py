"""Functions for commands that change a mapping: find it, refuse a change during a run, and write an audit entry.

A mapping is a row of the database that assigns a VMID to a service of FulcrumCore. A manual run is a playbook run
that an operator has started, for example with `smith play`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executor.cli.arguments import CommandFailed, UnusableArgument, refuse_empty_mapping_reference
from executor.cli.service_lock import describe_manual_run, describe_running_job
from executor.database import audit, manual_runs, mapping_queries, mappings, queries
from executor.model import JobStatus, MappingState

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session

    from executor.database.tables.mappings import Mapping


def find_mapping(session: Session, reference: str) -> Mapping:
    """Return the mapping that matches the reference and is not deleted.

    A reference is a VMID, a VM's name, or the beginning of a service's id. Raises UnusableArgument unless exactly one
    mapping matches.
    """
    refuse_empty_mapping_reference(reference)
    matches = [
        row
        for row in mapping_queries.find_mappings_by_vm_or_service(session, reference)
        if row.state != MappingState.DELETED
    ]
    if not matches:
        raise UnusableArgument(f"no mapping matches {reference}: `smith mappings list` shows the mappings")
    if len(matches) > 1:
        names = ", ".join(f"{row.name} (VMID {row.vmid})" for row in matches)
        raise UnusableArgument(f"more than one mapping matches {reference}: {names}. Use the VMID")
    return mappings.get_one(session, matches[0].id)


def require_no_running_playbook(session: Session, service_id: str) -> None:
    """Raise CommandFailed if a job of the service is running, or if an operator runs a playbook for the service."""
    jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_ids=[service_id], limit=1)
    if jobs:
        raise CommandFailed(describe_running_job(jobs[0]))
    manual_run = manual_runs.run_in_progress(session, service_id)
    if manual_run is not None:
        raise CommandFailed(describe_manual_run(manual_run))


def record_change(
    session: Session, verb: str, mapping: Mapping, columns_before: dict[str, Any] | None, reason: str
) -> None:
    """Write an audit entry about the change of a mapping.

    `verb` names the change, for example `adopt`. `columns_before` has the values of the mapping's columns before the
    change, by column name. It is None if the change has created the mapping.
    """
    session.flush()
    session.refresh(mapping)
    columns_after = audit.column_values(mapping, audit.MAPPING_COLUMNS)
    audit.add_entry(
        session,
        who=audit.operator_name(),
        verb=verb,
        subject_kind="mapping",
        subject_id=mapping.service_id,
        before=columns_before,
        after=columns_after,
        reason=reason,
    )
