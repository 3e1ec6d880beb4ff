"""Makes changes that operators request with commands or web pages. Adds the audit entry in the same transaction.

No function of this module commits: the caller commits the transaction.

The scope of a pause is the text "all" (all agent processes that use the database, here called all agents) or a text
that identifies one agent process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from executor.database import agent_queries, audit, job_queue, pause_scopes, pauses, reopening
from executor.database.tables.agents import AgentProcessRow, Pause
from executor.database.tables.jobs import Job
from executor.model import JobStatus


def retry_job(session: Session, job_id: int, *, who: str) -> str:
    """Change a job so that its next attempt, or the report of its result, is due now.

    Returns "attempt" or "report". Returns "" if nothing was changed, for example because the job is processing.
    """
    with _auditing_job(session, job_id, who=who, verb="retry") as change:
        what_is_due_now = reopening.retry_now(session, job_id)
        change.was_made = bool(what_is_due_now)
    return what_is_due_now


def cancel_job(session: Session, job_id: int, *, who: str, reason: str) -> JobStatus | None:
    """Cancel a pending job at once. For a processing job, store a request to cancel the job.

    The agent process that runs the job reads the request later. Return the job's status after this
    call. If the job had ended already, return None and change nothing.
    """
    with _auditing_job(session, job_id, who=who, verb="cancel", reason=reason) as change:
        status = job_queue.cancel_or_request_cancel(session, job_id)
        change.was_made = status is not None
    return status


def pause_agents(session: Session, *, who: str, reason: str) -> bool:
    """Pause all agents. Return False, and change nothing, if all agents are paused already."""
    return _pause(session, pause_scopes.ALL_AGENTS, who=who, verb="pause", reason=reason)


def resume_agents(session: Session, *, who: str) -> Pause | None:
    """End the pause of all agents. Return the ended pause, or None if there was none."""
    return _resume(session, pause_scopes.ALL_AGENTS, who=who)


def pause_agent_process(session: Session, process: AgentProcessRow, *, who: str, reason: str) -> bool:
    """Pause one agent process (`smith nodes drain`): it claims no more jobs. Return False if it is paused already."""
    return _pause(session, pause_scopes.scope_of_agent_process(process), who=who, verb="drain", reason=reason)


def resume_agent_process(session: Session, process: AgentProcessRow, *, who: str) -> Pause | None:
    """End the pause of one agent process: it claims jobs again. Return the ended pause, or None if there was none."""
    return _resume(session, pause_scopes.scope_of_agent_process(process), who=who)


def _pause(session: Session, scope: str, *, who: str, verb: str, reason: str) -> bool:
    if not pauses.start(session, who=who, reason=reason, scope=scope):
        return False
    new_pause = agent_queries.find_pause(session, scope)
    if new_pause is not None:
        _audit_pause(session, new_pause, who=who, verb=verb, after=_pause_values(new_pause), reason=reason)
    return True


def _resume(session: Session, scope: str, *, who: str) -> Pause | None:
    ended_pause = pauses.end(session, scope)
    if ended_pause is not None:
        _audit_pause(session, ended_pause, who=who, verb="resume", before=_pause_values(ended_pause))
    return ended_pause


def _audit_pause(session: Session, pause: Pause, *, who: str, verb: str, **values: Any) -> None:
    # The subject kind "agents" is stored for a pause of one agent process, too.
    audit.add_entry(session, who=who, verb=verb, subject_kind="agents", subject_id=pause.scope, **values)


def _pause_values(pause: Pause) -> dict[str, Any] | None:
    return audit.column_values(pause, ("since", "who", "reason"))


@dataclass
class _AuditedChange:
    """The change of a job that the `with` block of `_auditing_job` may make."""

    #: The block sets this to True if the block has changed the job. Otherwise, no audit entry is added.
    was_made: bool = False


@contextmanager
def _auditing_job(session: Session, job_id: int, *, who: str, verb: str, reason: str = "") -> Iterator[_AuditedChange]:
    """After the `with` block, add an audit entry about the block's change of the job, in the same transaction."""
    change = _AuditedChange()
    job = session.get_one(Job, job_id)
    before = audit.column_values(job, audit.JOB_COLUMNS)
    yield change
    if change.was_made:
        session.refresh(job)
        audit.add_entry(
            session,
            who=who,
            verb=verb,
            subject_kind="job",
            subject_id=job.fulcrum_id,
            before=before,
            after=audit.column_values(job, audit.JOB_COLUMNS),
            reason=reason,
        )
