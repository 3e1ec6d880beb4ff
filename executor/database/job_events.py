"""Stores unusual events of jobs: an attempt that failed, a lost lease, a report that was not accepted.

Each claim of a job starts an attempt. Most jobs have no unusual event: the times in the rows of the job and of its runs
describe such a job completely. An event that is repeated, such as a failed report during an outage, is one row with a
count. The events of a job are deleted with the job.

No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from executor.database.tables.jobs import Job, JobEvent
from executor.database.times import utc_now
from executor.model import JobEventKind
from executor.redaction import redactor

#: The maximum number of events that are kept for one job. If a job has more, its oldest events are deleted.
MAX_EVENTS_PER_JOB = 50
#: A longer text is cut to this length.
MAX_TEXT_LENGTH = 1000


def add_event(session: Session, job_id: int, kind: JobEventKind, text: str) -> None:
    """Add an event to a job. If the job's newest event has the same kind and text, add 1 to its count instead."""
    printable_text = "".join(char if char.isprintable() else " " for char in redactor.redact(text))[:MAX_TEXT_LENGTH]
    now = utc_now()
    newest_event = session.scalar(
        select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id.desc()).limit(1)
    )
    if newest_event is not None and (newest_event.kind, newest_event.text) == (kind, printable_text):
        newest_event.count += 1
        newest_event.last_at = now
        return
    attempt = session.scalar(select(Job.attempt).where(Job.id == job_id)) or 0
    session.add(
        JobEvent(job_id=job_id, kind=kind, text=printable_text, attempt=attempt, count=1, first_at=now, last_at=now)
    )
    session.flush()
    if newest_event is not None:
        _delete_oldest_events(session, job_id)


def _delete_oldest_events(session: Session, job_id: int) -> None:
    """Delete the oldest events of a job that has more than MAX_EVENTS_PER_JOB."""
    count = session.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.job_id == job_id)) or 0
    if count <= MAX_EVENTS_PER_JOB:
        return
    ids_oldest_first = select(JobEvent.id).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
    ids = session.scalars(ids_oldest_first.limit(count - MAX_EVENTS_PER_JOB)).all()
    session.execute(delete(JobEvent).where(JobEvent.id.in_(ids)))


def delete_events_of_jobs(session: Session, job_ids: Collection[int]) -> None:
    """Delete all events of these jobs."""
    session.execute(delete(JobEvent).where(JobEvent.job_id.in_(job_ids)))
