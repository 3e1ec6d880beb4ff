"""`smith jobs retry` and `smith jobs cancel`: change one job, and write an audit entry about the change."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from executor.cli.arguments import AsJson, CommandFailed, JobReference, confirm
from executor.cli.help_text import examples
from executor.cli.lookup import find_job
from executor.cli.output import show_outcome
from executor.cli.store import read_only_transaction, writable_transaction
from executor.database import agent_queries, audit, operator_changes
from executor.database.times import utc_now
from executor.model import SETTLED_REPORT_STATES, JobStatus
from executor.settings.settings import Settings
from executor.views.agent_liveness import is_alive
from executor.views.job_rows import job_label
from executor.views.text import sanitized

if TYPE_CHECKING:  # The class needs SQLAlchemy's ORM, whose import takes long.
    from executor.database.tables.jobs import Job


@examples(
    "smith jobs retry 17    skip the wait before the job's next attempt or report",
)
def retry(reference: JobReference, as_json: AsJson = False) -> None:
    """Let the agent make a waiting job's next attempt now, or report an ended job's result now.

    If the job has ended, its result is sent to FulcrumCore again. The command fails if FulcrumCore expects no result,
    for example because FulcrumCore has deleted the job.

    If another installation, with this agent's token and another database, has claimed a job, the job ends in this
    database without a result. The retry of such a job sends no result: it lets this agent run the job's playbook, if
    FulcrumCore still lists the job as open. Stop the other installation first.
    """
    with writable_transaction() as store:  # `store.session` is an ORM session with an open transaction
        job = find_job(store.session, reference)
        label, status = job_label(job), job.status
        # A report is settled if FulcrumCore has the result, or expects no result from this agent.
        was_report_settled = job.report_state in SETTLED_REPORT_STATES
        repeat_command = _command_to_repeat_action(job, store.settings)
        # The value is "attempt", "report", or "" if the job waits neither for an attempt nor for a report.
        what_is_due_now = operator_changes.retry_job(store.session, job.id, who=audit.operator_name())
    if not what_is_due_now:
        raise CommandFailed(_no_retry_text(label, status, repeat_command))
    effects = {
        "attempt": "its next attempt is due now; a running agent starts this attempt within seconds",
        "report": "its report to FulcrumCore is due now; a running agent sends this report within seconds",
    }
    text = f"{label}: {effects[what_is_due_now]}"
    if was_report_settled and what_is_due_now == "report" and status == JobStatus.FAILED:
        text += f". This only sends the result again. To repeat the action, run: {repeat_command}"
    # `hastened` in --json says what is due now: the attempt or the report.
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, hastened=what_is_due_now)


@examples(
    "smith jobs cancel 17          asks first",
    "smith jobs cancel 17 --yes    for scripts",
)
def cancel(
    reference: JobReference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """End a job with the error code CANCELLED.

    A running playbook is stopped. The changes that the playbook has made are not undone.
    """
    with read_only_transaction() as store:
        job = find_job(store.connection, reference)
        # The agent processes whose end is not in the database: running ones, and killed ones (`is_alive` is False).
        agents = agent_queries.processes_without_stop_time(store.connection)
        is_agent_running = any(is_alive(agent, utc_now(), store.settings.smith_lease_s) for agent in agents)
    if job.status not in (JobStatus.PENDING, JobStatus.PROCESSING):
        raise CommandFailed(f"{job_label(job)} has ended already: it is {job.status}")
    confirm(f"Cancel {job_label(job)}, which is {job.status}?", yes=yes)
    # The transaction is opened after the confirmation, so that no transaction is open while the operator answers.
    with writable_transaction() as store:
        status = operator_changes.cancel_job(store.session, job.id, who=audit.operator_name(), reason=reason)
    if status is None:
        raise CommandFailed(f"{job_label(job)} has ended in the meantime")
    # A pending job ends immediately: it fails with the error code CANCELLED. A running job keeps the status
    # `processing` until its playbook has stopped.
    has_ended = status is JobStatus.FAILED
    if has_ended:
        text = f"{job_label(job)} is cancelled; its report to FulcrumCore is due"
    elif not is_agent_running:
        text = f"{job_label(job)} has a cancel request; no agent is running, so the job ends when an agent runs again"
    else:
        text = f"{job_label(job)} has a cancel request; the agent that runs the job stops the playbook within seconds"
    show_outcome(text, as_json=as_json, job=job.id, fulcrum_id=job.fulcrum_id, status=status, has_ended=has_ended)


def _command_to_repeat_action(job: Job, settings: Settings) -> str:
    """Return the curl command with which the owner of the service repeats the action in FulcrumCore.

    FulcrumCore then creates a new job. The agent cannot create jobs.
    """
    url = f"{settings.fulcrum_api_url or 'https://FULCRUM_API_URL'}/api/v1/services/{job.service_id}"
    # The token is not an argument of curl, because other users of a machine can read the arguments of a process.
    header_option = '-H @<(echo "Authorization: Bearer $TOKEN")'
    if job.action == "update":
        request = f"curl -X PATCH {header_option} -d '{{\"properties\": …}}' {shlex.quote(url)}"
        return f"{request} (with a token of the service's owner)"
    action_url = shlex.quote(f"{url}/{quote(job.action, safe='')}")
    # `sanitized` masks secrets and escapes control characters.
    return sanitized(f"curl -X POST {header_option} {action_url} (with a token of the service's owner)")


def _no_retry_text(label: str, status: str, repeat_command: str) -> str:
    """Return the error text for a job that waits neither for an attempt nor for a report."""
    if status == JobStatus.PROCESSING:
        return f"nothing to retry: {label} is running (`smith jobs log` shows its output)"
    return (
        f"nothing to retry: {label} is {status}, and FulcrumCore does not expect its result; "
        f"repeat the action in FulcrumCore, which then creates a new job: {repeat_command}"
    )
