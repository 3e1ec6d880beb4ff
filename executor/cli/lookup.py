"""Finds the job or service that an operator's reference names.

A reference is our job number, FulcrumCore's id of the job or service, or the beginning of this id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.cli.arguments import UnknownReference
from executor.database import queries
from executor.database.tables import Job

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


def find_job(session: Session, reference: str) -> Job:
    """Return the job that the reference names. Raises UnknownReference unless exactly one job matches."""
    if not (reference := reference.strip()):
        raise UnknownReference("an empty reference matches no job: `smith jobs list` shows them")
    if (job := queries.find_job(session, reference)) is not None:
        return job
    candidates = queries.fulcrum_ids_with_prefix(session, reference)
    if len(candidates) > 1:
        raise UnknownReference(f"more than one job begins with {reference}: {', '.join(candidates)}")
    raise UnknownReference(
        f"there is no job {reference}: use our job number, FulcrumCore's id or its beginning (see `smith jobs list`)"
    )


def find_service_id(session: Session, beginning: str) -> str:
    """Return the service id that begins with this text. Raises UnknownReference unless exactly one id matches.

    Only the services for which a job is in the database are known.
    """
    found = queries.service_ids_with_prefix(session, beginning)
    if len(found) > 1:
        raise UnknownReference(f"more than one service begins with {beginning}: {', '.join(found)}")
    if not found:
        raise UnknownReference(f"no job is for a service whose id begins with {beginning}")
    return found[0]
