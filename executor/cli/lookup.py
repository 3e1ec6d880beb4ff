"""Finds the job or service to which an operator refers.

A reference to a job is the number of its row in our database, or FulcrumCore's id of the job, or the beginning of this
id. A reference to a service is the service's id, or the beginning of this id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.cli.arguments import UnusableArgument
from executor.database import queries

if TYPE_CHECKING:  # Used only in annotations. The import of SQLAlchemy's ORM is slow.
    from executor.database.core_tables import Reader  # a Connection or a Session
    from executor.database.tables.jobs import Job


def find_job(reader: Reader, reference: str) -> Job:
    """Return the job that matches the reference. Raises UnusableArgument unless exactly one job matches."""
    reference = reference.strip()
    if not reference:
        raise UnusableArgument("an empty reference matches no job: `smith jobs list` shows the jobs")
    job = queries.find_job(reader, reference)  # None unless exactly one job matches the number, the id or its beginning
    if job is not None:
        return job
    candidates = queries.fulcrum_ids_with_prefix(reader, reference)
    if len(candidates) > 1:
        raise UnusableArgument(f"the ids of more than one job begin with {reference}: {', '.join(candidates)}")
    raise UnusableArgument(
        f"there is no job {reference}: use the job's number, its id in FulcrumCore, or the beginning of this id "
        "(see `smith jobs list`)"
    )


def find_service_id(reader: Reader, id_prefix: str) -> str:
    """Return the service id that begins with `id_prefix`. Raises UnusableArgument unless exactly one id matches.

    Only services that have a job in the database are searched.
    """
    service_ids = queries.service_ids_with_prefix(reader, id_prefix)
    if len(service_ids) > 1:
        raise UnusableArgument(f"more than one service id begins with {id_prefix}: {', '.join(service_ids)}")
    if not service_ids:
        raise UnusableArgument(f"no job has a service whose id begins with {id_prefix}")
    return service_ids[0]
