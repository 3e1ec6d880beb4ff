"""`smith jobs`: lists and shows the jobs that FulcrumCore sent, and retries or cancels one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli import artifacts
from executor.cli.arguments import AsJson, CommandFailed, JobReference, UnusableReference, confirm
from executor.cli.help_text import examples
from executor.cli.job_rows import detail_fields, job_label, run_fields, summary_fields
from executor.cli.lookup import find_job, find_service_id
from executor.cli.output import elapsed_text, short_id, show_json, show_outcome, show_text
from executor.cli.store import reading_store, writing_store
from executor.cli.tables import show_document, show_fields, show_heading, show_rows
from executor.database import audit, job_queue, queries
from executor.database.tables import Job, Run, utc_now
from executor.model import JobStatus

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session


#: The columns of the table of jobs: the heading of each column, keyed by the key of its values in a row.
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
#: The columns of the table of a job's runs, in the same form.
RUN_COLUMNS = {
    "attempt": "TRY",
    "ident": "RUN",
    "status": "STATUS",
    "rc": "RC",
    "started_at": "STARTED",
    "ended_at": "ENDED",
    "reason": "REASON",
}
#: The columns of the table of a run's Ansible tasks, in the same form.
EVENT_COLUMNS = {
    "time": "TIME",
    "outcome": "OUTCOME",
    "task": "TASK",
    "duration_s": "SECONDS",
    "message": "MESSAGE",
}
#: The fields of a job that contain a dictionary. `smith jobs show` prints each as JSON under a heading of its own.
DICTIONARY_FIELDS = ("params", "service", "result")
#: The maximum length of an error message in the list of jobs.
MAX_SHOWN_ERROR_LENGTH = 80


@examples(
    "smith jobs list",
    "smith jobs list --status failed --status pending --action create",
    "smith jobs list --unreported --json",
)
def list_jobs(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    status: Annotated[
        list[JobStatus] | None, typer.Option("--status", help="Only jobs with this status; may be repeated.")
    ] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this action.")] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="Only the service whose id begins with this text.")
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
        service_id = find_service_id(store.session, service) if service else None
        jobs = queries.list_jobs(
            store.session,
            statuses=status or (),
            action=action,
            service_id=service_id,
            unreported=unreported,
            limit=limit,
        )
    if as_json:
        show_json([summary_fields(job) for job in jobs])
        return
    now = utc_now()
    rows = [summary_fields(job) | _shortened_fields(job) | {"age": elapsed_text(job.received_at, now)} for job in jobs]
    show_rows(rows, COLUMNS, if_empty="no jobs match")


@examples(
    "smith jobs show 17",
    "smith jobs show 4f1c2b --json",
)
def show_job(reference: JobReference, as_json: AsJson = False) -> None:
    """Show one job with its times, runs, properties and result."""
    with reading_store() as store:
        job = find_job(store.session, reference)
        runs = queries.runs_of_job(store.session, job.id)
    fields = detail_fields(job) | {"runs": [run_fields(run) for run in runs]}
    if as_json:
        show_json(fields)
        return
    show_fields({name: value for name, value in fields.items() if name not in ("runs", *DICTIONARY_FIELDS)})
    if runs:
        show_heading("Runs")
        show_rows([run_fields(run) for run in runs], RUN_COLUMNS, if_empty="")
    for name in DICTIONARY_FIELDS:
        if fields[name]:
            show_heading(name.capitalize())
            show_document(fields[name])


@examples(
    "smith jobs log 17                          what the newest run printed",
    "smith jobs log 17 --run create-0c5d0f3a    what an earlier run printed (smith jobs show 17 lists the runs)",
    "smith jobs log 17 --events                 its Ansible tasks, with times",
)
def show_log(
    reference: JobReference,
    run_ident: Annotated[
        str | None, typer.Option("--run", metavar="IDENT", help="This run instead of the newest.")
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Show each Ansible task with outcome and time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a job's playbook printed."""
    with reading_store() as store:
        job = find_job(store.session, reference)
        selected_run = _select_run(store.session, job, run_ident)
        folder = artifacts.artifacts_folder(selected_run, store.settings)
    if events:
        rows = artifacts.read_events(folder)
        if as_json:
            show_json(rows)
        else:
            show_rows(rows, EVENT_COLUMNS, if_empty="no Ansible task of the run has ended yet")
        return
    text = artifacts.read_stdout(folder)
    if as_json:
        show_json({"run": selected_run.ident, "stdout": text})
    else:
        show_text(text.rstrip("\n"))


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
        label, status = job_label(job), job.status
        with _auditing(store.session, job.id, "retry") as change:
            # The value is "attempt", "report", or "" if the job waits for neither of them.
            skipped_wait_before = job_queue.retry_now(store.session, job.id)
            change.was_made = bool(skipped_wait_before)
    if not skipped_wait_before:
        raise CommandFailed(_no_retry_text(label, status))
    effects = {
        "attempt": "its next attempt is due now; a running agent starts the attempt within seconds",
        "report": "its report to FulcrumCore is due now; a running agent sends the report within seconds",
    }
    text = f"{label}: {effects[skipped_wait_before]}"
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


def _select_run(session: Session, job: Job, ident: str | None) -> Run:
    """Return the job's run with this ident, or its newest run if `ident` is None.

    Raises UnusableReference if the job has no run, or no run with this ident.
    """
    runs = queries.runs_of_job(session, job.id)
    if not runs:
        raise UnusableReference(f"{job_label(job)} has not run yet: it is {job.status}")
    if ident is None:
        return runs[-1]
    for run in runs:
        if run.ident == ident:
            return run
    idents = ", ".join(run.ident for run in runs)
    raise UnusableReference(f"{job_label(job)} has no run {ident}; its runs are: {idents}")


def _no_retry_text(label: str, status: str) -> str:
    """Return the error text for a job that waits neither for an attempt nor for a report."""
    if status == JobStatus.PROCESSING:
        return f"nothing to retry: {label} is running (`smith jobs log` shows its output)"
    return (
        f"nothing to retry: {label} is {status}, and FulcrumCore does not expect its result; "
        "repeat the action in FulcrumCore, which then creates a new job"
    )


def _shortened_fields(job: Job) -> dict[str, Any]:
    """Return the shortened ids and the shortened error message of the job, for the table of jobs."""
    message = job.error_message or ""
    if len(message) > MAX_SHOWN_ERROR_LENGTH:
        message = f"{message[:MAX_SHOWN_ERROR_LENGTH]}…"
    return {"fulcrum": short_id(job.fulcrum_id), "service": short_id(job.service_id), "error": message}
