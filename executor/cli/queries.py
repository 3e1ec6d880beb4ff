"""Questions that only the command line asks. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from executor.database.engine import Job, Node, Run

#: More candidates than this are not worth naming.
CANDIDATES = 6


def recent_runs(session: Session, limit: int) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs of all jobs, each with its job."""
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    return [(run, job) for run, job in session.execute(stmt)]


def recent_nodes(session: Session, limit: int) -> Sequence[Node]:
    """Return the starts of agents, the last seen first."""
    return session.scalars(select(Node).order_by(Node.seen_at.desc(), Node.id).limit(limit)).all()


def jobs_beginning(session: Session, beginning: str) -> Sequence[str]:
    """Return FulcrumCore's ids that begin so."""
    begins = Job.fulcrum_id.startswith(beginning.lower(), autoescape=True)
    return session.scalars(select(Job.fulcrum_id).where(begins).order_by(Job.id.desc()).limit(CANDIDATES)).all()


def services_beginning(session: Session, beginning: str) -> Sequence[str]:
    """Return the ids of services with jobs that begin so."""
    begins = Job.service_id.startswith(beginning.lower(), autoescape=True)
    found = select(Job.service_id).where(begins).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(found.limit(CANDIDATES)) if service_id]
