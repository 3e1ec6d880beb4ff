"""`smith pause` stops the agents from claiming jobs, for example during maintenance; `smith resume` ends the pause.

"The agents" are all agent processes that use the database.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.arguments import EXIT_INTERRUPTED, AsJson, CommandFailed
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_outcome, show_text
from executor.cli.store import open_database, writable_transaction
from executor.database import agent_queries, audit, operator_changes, queries
from executor.database.engine import read_only_session
from executor.model import JobStatus
from executor.views.job_rows import job_label
from executor.views.status_document import pause_text
from executor.views.text import count_with_noun

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

#: The interval at which `--wait` reads the running jobs.
POLL_INTERVAL_S = 1.0
#: The maximum number of running jobs that `--wait` reads, shows and counts.
MAX_SHOWN_JOB_COUNT = 100


@examples(
    'smith pause --reason "update of pve2"             running jobs run to their end',
    'smith pause --reason "update of pve2" --wait      ends when no job is running',
    'smith pause --reason "update of pve2" --wait --timeout 600',
)
def pause(
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Shown by `smith status`, and stored in the audit log.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until no job is running, and show the running jobs.")
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0,
            metavar="S",
            help="With --wait: wait at most this many seconds. If jobs are still running then, the exit code is 1.",
        ),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Stop the agents from claiming jobs, until `smith resume`.

    Heartbeats, polls and reports continue. FulcrumCore fails a job that stays pending longer than FulcrumCore's job
    timeout.
    """
    with writable_transaction() as transaction:
        is_new_pause = operator_changes.pause_agents(transaction.session, who=audit.operator_name(), reason=reason)
        current_pause = agent_queries.find_pause(transaction.session)
        if current_pause is None:
            raise CommandFailed("the agents were resumed in the meantime")
        running_count = queries.count_pending_and_processing_jobs(transaction.session)[JobStatus.PROCESSING]
    text = f"paused: {pause_text(current_pause)}" if is_new_pause else f"already paused: {pause_text(current_pause)}"
    if not wait:
        running_jobs = count_with_noun(running_count, "running job")
        jobs_text = f"; {running_jobs} will end normally" if running_count else "; no job is running"
        show_outcome(text + jobs_text, as_json=as_json, paused=True, was_paused=not is_new_pause, running=running_count)
        return
    if not as_json:
        show_text(text)
    running_count = _wait_for_jobs(timeout_s, is_quiet=as_json)
    running_jobs = count_with_noun(running_count, "job")
    outcome_text = f"{running_jobs} still running after {timeout_s:g} s" if running_count else "no job is running"
    show_outcome(outcome_text, as_json=as_json, paused=True, was_paused=not is_new_pause, running=running_count)
    if running_count:
        raise typer.Exit(1)


@examples("smith resume")
def resume(as_json: AsJson = False) -> None:
    """Let the agents claim jobs again."""
    with writable_transaction() as transaction:
        ended_pause = operator_changes.resume_agents(transaction.session, who=audit.operator_name())
    text = (
        "the agents are not paused: nothing to resume"
        if ended_pause is None
        else f"resumed; the agents were paused {pause_text(ended_pause)}"
    )
    show_outcome(text, as_json=as_json, paused=False, was_paused=ended_pause is not None)


def _wait_for_jobs(timeout_s: float, *, is_quiet: bool) -> int:
    """Wait until no job is running, but at most `timeout_s` (0: no limit). Return how many jobs are still running."""
    deadline = time.monotonic() + timeout_s if timeout_s else float("inf")
    shown_labels: list[str] = []
    with open_database(open_settings()) as engine:
        while True:
            labels = _running_job_labels(engine)
            if labels and labels != shown_labels and not is_quiet:
                show_text(f"waiting for {count_with_noun(len(labels), 'running job')}: {', '.join(labels)}")
            shown_labels = labels
            if not labels or time.monotonic() >= deadline:
                return len(labels)
            try:
                time.sleep(POLL_INTERVAL_S)
            except KeyboardInterrupt:
                raise typer.Exit(EXIT_INTERRUPTED) from None


def _running_job_labels(engine: Engine) -> list[str]:
    with read_only_session(engine) as session:
        jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], limit=MAX_SHOWN_JOB_COUNT)
    return [job_label(job) for job in reversed(jobs)]
