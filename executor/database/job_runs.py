"""Stores the runs of jobs: their start, what they have done so far, and their end. No function commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from executor.database.job_queue import Lease, write_with_lease
from executor.database.tables.jobs import Job, Run
from executor.database.times import utc_now


def store_run_start(session: Session, lease: Lease, *, run_ident: str, playbook: str) -> None:
    """Store a run before it starts. So the agent can find the run's processes and artifacts after a restart.

    The job's column `is_waiting` becomes False. It is True while the job's owner waits for an answer of Proxmox or
    for a clone slot (the permission to run one clone).
    """
    now = utc_now()
    write_with_lease(session, lease, started_at=now, run_ident=run_ident, is_waiting=False)
    attempt = session.scalar(select(Job.attempt).where(Job.id == lease.job_id)) or 0
    # The column `node` contains the id of the agent process that runs the playbook. It is not a Proxmox node.
    columns = {"attempt": attempt, "playbook": playbook, "started_at": now, "node": lease.owner}
    session.add(Run(job_id=lease.job_id, ident=run_ident, **columns))


def store_run_end(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    run_ident: str,
    *,
    status: str,
    rc: int | None,
    reason: str,
    folder: str,
    upids: list[str],
    story: dict[str, Any] | None = None,
) -> None:
    """Store how a run ended: its status, return code, error message, artifacts folder, and ids of its Proxmox tasks.

    `story` is a summary of what the run did (`executor.runs.story`). If it is None, the stored summary does not change.

    The function needs no lease, because no decision depends on these values. So an agent process may call it after its
    lease of the job has become invalid.
    """
    columns = {"ended_at": utc_now(), "status": status, "rc": rc, "reason": reason, "folder": folder, "upids": upids}
    if story is not None:
        columns["story"] = story
    session.execute(update(Run).where(Run.ident == run_ident).values(**columns))


def store_run_story(session: Session, run_ident: str, story: dict[str, Any]) -> None:
    """Store the summary of what a run has done so far (`executor.runs.story`), unless the run has ended."""
    session.execute(update(Run).where(Run.ident == run_ident, Run.ended_at.is_(None)).values(story=story))
