"""`smith jobs retry` and `smith jobs cancel`: change one job, and write the change into the audit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.arguments import AsJson, CommandFailed, JobReference, confirm
from executor.cli.help_text import examples
from executor.cli.lookup import find_job
from executor.cli.output import show_outcome
from executor.cli.store import reading_store, writing_store
from executor.database import audit, job_queue, nodes, queries
from executor.database.tables import Job, utc_now
from executor.model import SETTLED_STATES, JobStatus
from executor.settings.settings import Settings
from executor.views.agent_liveness import is_alive
from executor.views.job_rows import job_label
from executor.views.text import sanitized

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


@examples(
    "smith jobs retry 17    skip the wait before its next attempt or report",
)
def retry(reference: JobReference, as_json: AsJson = False) -> None:
    """Skip a job's wait before its next attempt or its next report.

    The result of an ended job is sent to FulcrumCore again. A job that another executor with this agent's token has
    claimed is continued here: stop the other executor first.
    """
    with writing_store() as store:
        job = find_job(store.session, reference)
        label, status, was_reported = job_label(job), job.status, job.report_state in SETTLED_STATES
        repeat_text = _repeat_text(job, store.settings)
        with _auditing(store.session, job.id, "retry") as change:
            # The value is "attempt", "report", or "" if the job waits for neither of them.
            skipped_wait_before = job_queue.retry_now(store.session, job.id)
            change.was_made = bool(skipped_wait_before)
    if not skipped_wait_before:
        raise CommandFailed(_no_retry_text(label, status, repeat_text))
    effects = {
        "attempt": "its next attempt is due now; a running agent starts the attempt within seconds",
        "report": "its report to FulcrumCore is due now; a running agent sends the report within seconds",
    }
    text = f"{label}: {effects[skipped_wait_before]}"
    if was_reported and skipped_wait_before == "report" and status == JobStatus.FAILED:
        text += f". FulcrumCore had this result; to repeat the action: {repeat_text}"
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, hastened=skipped_wait_before)


@examples(
    "smith jobs cancel 17          asks first",
    "smith jobs cancel 17 --yes    for scripts",
)
def cancel(
    reference: JobReference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """End a job as CANCELLED.

    A running playbook is stopped; its changes so far stay.
    """
    with reading_store() as store:
        job = find_job(store.session, reference)
        agents = nodes.not_stopped(store.session)
        has_agent = any(is_alive(node, utc_now(), store.settings.smith_lease_s) for node in agents)
    if job.status not in (JobStatus.PENDING, JobStatus.PROCESSING):
        raise CommandFailed(f"{job_label(job)} has ended already: it is {job.status}")
    confirm(f"Cancel {job_label(job)}, which is {job.status}?", yes=yes)
    # The transaction is opened after the confirmation, so that no transaction is open while the operator answers.
    with writing_store() as store, _auditing(store.session, job.id, "cancel", reason) as change:
        status = job_queue.request_cancel(store.session, job.id)  # None means that the job had ended already.
        change.was_made = status is not None
    if status is None:
        raise CommandFailed(f"{job_label(job)} has ended in the meantime")
    # A pending job ends at once: it is failed, with the error code CANCELLED. A running job is still processing.
    has_ended = status is JobStatus.FAILED
    if has_ended:
        text = f"{job_label(job)} is cancelled; its report to FulcrumCore is due"
    elif not has_agent:
        text = f"{job_label(job)} has a cancel request; no agent is running, so it ends when one runs again"
    else:
        text = f"{job_label(job)} has a cancel request; its agent stops the playbook within seconds"
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, status=status, has_ended=has_ended)


@dataclass
class _AuditedChange:
    """The change of a job that the `with` block of `_auditing` may make."""

    #: Whether the block has changed the job. The block sets it. If it is False, nothing is written into the audit.
    was_made: bool = False


@contextmanager
def _auditing(session: Session, job_id: int, verb: str, reason: str = "") -> Iterator[_AuditedChange]:
    """After the `with` block, write the block's change of the job into the audit, in the transaction of the session."""
    change = _AuditedChange()
    job = queries.get_one_job(session, job_id)
    before = audit.column_values(job, audit.JOB_COLUMNS)
    yield change
    if change.was_made:
        session.refresh(job)
        after = audit.column_values(job, audit.JOB_COLUMNS)
        audit.record(
            session,
            who=audit.operator_name(),
            verb=verb,
            subject_kind="job",
            subject_id=job.fulcrum_id,
            before=before,
            after=after,
            reason=reason,
        )


def _repeat_text(job: Job, settings: Settings) -> str:
    """Return how the owner of the service repeats the action: FulcrumCore creates a new job, this agent cannot."""
    url = f"{settings.fulcrum_api_url or 'https://FULCRUM_API_URL'}/api/v1/services/{job.service_id}"
    login = '-H "Authorization: Bearer $TOKEN"'
    if job.action == "update":
        return f"curl -X PATCH {login} -d '{{\"properties\": …}}' {url} (with a token of its owner)"
    return sanitized(f"curl -X POST {login} {url}/{job.action} (with a token of its owner)")


def _no_retry_text(label: str, status: str, repeat_text: str) -> str:
    """Return the error text for a job that waits neither for an attempt nor for a report."""
    if status == JobStatus.PROCESSING:
        return f"nothing to retry: {label} is running (`smith jobs log` shows its output)"
    return (
        f"nothing to retry: {label} is {status}, and FulcrumCore does not expect its result; "
        f"repeat the action in FulcrumCore, which then creates a new job: {repeat_text}"
    )
