"""`smith jobs`: lists and shows the jobs that FulcrumCore sent, and retries or cancels one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli import artifacts
from executor.cli.arguments import AsJson, CommandFailed, Reference, UnknownReference, confirm
from executor.cli.help_text import examples
from executor.cli.job_rows import details, name_of, run_fields, summary
from executor.cli.lookup import find_job, find_service_id
from executor.cli.output import elapsed, short, show_json, show_outcome, show_text
from executor.cli.store import reading_store, writing_store
from executor.cli.tables import show_document, show_fields, show_heading, show_rows
from executor.database import audit, job_queue, queries
from executor.database.tables import Job, Run, utc_now
from executor.model import JobStatus

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


COLUMNS = {
    "id": "ID",
    "fulcrum": "FULCRUM",
    "action": "ACTION",
    "status": "STATUS",
    "service": "SERVICE",
    "attempt": "TRY",
    "age": "AGE",
    "report_state": "REPORT",
    "error": "ERROR",
}
RUN_COLUMNS = {
    "attempt": "TRY",
    "ident": "RUN",
    "status": "STATUS",
    "rc": "RC",
    "started_at": "STARTED",
    "ended_at": "ENDED",
    "reason": "REASON",
}
EVENT_COLUMNS = {
    "time": "TIME",
    "outcome": "OUTCOME",
    "task": "TASK",
    "duration_s": "SECONDS",
    "message": "MESSAGE",
}
#: The maximum length of an error message in the list of jobs.
SHOWN_ERROR_LENGTH = 80


@examples(
    "smith jobs list",
    "smith jobs list --status failed --status pending --action create",
    "smith jobs list --unreported --json",
)
def list_jobs(  # noqa: PLR0913, PLR0917 (each parameter is a filter; typer passes all by name)
    status: Annotated[list[JobStatus] | None, typer.Option("--status", help="Only these; may be repeated.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this action.")] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="Only this service: its id, or the beginning.")
    ] = None,
    unreported: Annotated[
        bool, typer.Option("--unreported", help="Only ended jobs that FulcrumCore has not acknowledged.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most this many, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with reading_store() as store:
        found = queries.list_jobs(
            store.session,
            statuses=status or (),
            action=action,
            service_id=find_service_id(store.session, service) if service else None,
            unreported=unreported,
            limit=limit,
        )
    if as_json:
        show_json([summary(job) for job in found])
        return
    now = utc_now()
    rows = [summary(job) | _table_row(job) | {"age": elapsed(job.received_at, now)} for job in found]
    show_rows(rows, COLUMNS, if_empty="no jobs match")


@examples(
    "smith jobs show 17",
    "smith jobs show 4f1c2b --json",
)
def show_job(reference: Reference, as_json: AsJson = False) -> None:
    """Show one job with its times, runs, properties and result."""
    with reading_store() as store:
        job = find_job(store.session, reference)
        runs = queries.runs_of(store.session, job.id)
    fields = details(job) | {"runs": [run_fields(run) for run in runs]}
    if as_json:
        show_json(fields)
        return
    show_fields({name: value for name, value in fields.items() if name not in ("runs", "params", "service", "result")})
    if runs:
        show_heading("Runs")
        show_rows([run_fields(run) for run in runs], RUN_COLUMNS, if_empty="")
    for name in ("params", "service", "result"):
        if fields[name]:
            show_heading(name.capitalize())
            show_document(fields[name])


@examples(
    "smith jobs log 17                          what the newest run printed",
    "smith jobs log 17 --run create-0c5d0f3a    what an earlier run printed (smith jobs show 17 lists the runs)",
    "smith jobs log 17 --events                 its Ansible tasks, with times",
)
def show_log(
    reference: Reference,
    run: Annotated[str | None, typer.Option("--run", metavar="IDENT", help="This run instead of the newest.")] = None,
    events: Annotated[bool, typer.Option("--events", help="Show each Ansible task with outcome and time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a job's playbook printed."""
    with reading_store() as store:
        chosen = _choose_run(store.session, find_job(store.session, reference), run)
        folder = artifacts.folder_of(chosen, store.settings)
    if events:
        rows = artifacts.read_events(folder)
        if as_json:
            show_json(rows)
        else:
            show_rows(rows, EVENT_COLUMNS, if_empty="the run has no task events yet")
        return
    text = artifacts.read_stdout(folder)
    if as_json:
        show_json({"run": chosen.ident, "stdout": text})
    else:
        show_text(text.rstrip("\n"))


@examples(
    "smith jobs retry 17    skip the wait before its next attempt or report",
)
def retry(reference: Reference, as_json: AsJson = False) -> None:
    """Skip a job's wait before its next attempt or its next report."""
    with writing_store() as store:
        job = find_job(store.session, reference)
        name, status = name_of(job), job.status
        with _audited(store.session, job.id, "retry") as entry:
            skipped = job_queue.retry_now(store.session, job.id)
            entry.is_done = bool(skipped)
    if not skipped:
        raise CommandFailed(_why_no_retry(name, status))
    effects = {"attempt": "its next attempt is due now", "report": "its report to FulcrumCore is due now"}
    text = f"{name}: {effects[skipped]}; a running agent starts it within seconds"
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, hastened=skipped)


@examples(
    "smith jobs cancel 17          asks first",
    "smith jobs cancel 17 --yes    for scripts",
)
def cancel(
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """End a job as CANCELLED.

    A running playbook is stopped; its changes so far stay.
    """
    with reading_store() as store:
        job = find_job(store.session, reference)
    if job.status not in (JobStatus.PENDING, JobStatus.PROCESSING):
        raise CommandFailed(f"{name_of(job)} has ended already: it is {job.status}")
    confirm(f"Cancel {name_of(job)}, which is {job.status}?", yes=yes)
    # The transaction is opened after the confirmation, so that none is open while the operator answers.
    with writing_store() as store, _audited(store.session, job.id, "cancel", reason) as entry:
        status = job_queue.request_cancel(store.session, job.id)
        entry.is_done = status is not None
    if status is None:
        raise CommandFailed(f"{name_of(job)} has ended in the meantime")
    has_ended = status is JobStatus.FAILED
    when_ended = "is cancelled; its report to FulcrumCore is due"
    when_running = "gets a cancel request; the agent that runs it stops its playbook within seconds"
    text = f"{name_of(job)} {when_ended if has_ended else when_running}"
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, status=status, has_ended=has_ended)


@dataclass
class _AuditEntry:
    """The object with which the block of `_audited` tells whether it has changed the job."""

    #: Whether the block has changed the job.
    is_done: bool = False


@contextmanager
def _audited(session: Session, job_id: int, verb: str, reason: str = "") -> Iterator[_AuditEntry]:
    """Write the job's change by the block into the audit, in the transaction of the session.

    The block sets `is_done` if it has changed the job. Otherwise nothing is written.
    """
    job, entry = queries.get_one_job(session, job_id), _AuditEntry()
    before = audit.facts_of(job, audit.JOB_COLUMNS)
    yield entry
    if entry.is_done:
        session.refresh(job)
        after = audit.facts_of(job, audit.JOB_COLUMNS)
        who, subject = audit.operator_name(), job.fulcrum_id
        audit.record(
            session, who=who, verb=verb, kind="job", subject=subject, before=before, after=after, reason=reason
        )


def _choose_run(session: Session, job: Job, ident: str | None) -> Run:
    """Return the job's run with this ident, or its newest run if `ident` is None. Raises UnknownReference."""
    runs = queries.runs_of(session, job.id)
    if not runs:
        raise UnknownReference(f"{name_of(job)} has not run yet: it is {job.status}")
    if ident is None:
        return runs[-1]
    for run in runs:
        if run.ident == ident:
            return run
    raise UnknownReference(f"{name_of(job)} has no run {ident}; it has: {', '.join(run.ident for run in runs)}")


def _why_no_retry(name: str, status: str) -> str:
    """Return the error text for a job that waits neither for an attempt nor for a report."""
    if status == JobStatus.PROCESSING:
        return f"nothing to retry: {name} is running (`smith jobs log` shows its output)"
    return (
        f"nothing to retry: {name} is {status} and FulcrumCore has this result; "
        "repeat the action in FulcrumCore, which creates a new job"
    )


def _table_row(job: Job) -> dict[str, Any]:
    """Return the columns of the list that are shortened forms of the job's columns."""
    message = job.error_message or ""
    shortened = message[:SHOWN_ERROR_LENGTH] + ("…" if len(message) > SHOWN_ERROR_LENGTH else "")
    return {"fulcrum": short(job.fulcrum_id), "service": short(job.service_id), "error": shortened}
