"""`smith jobs log`: shows what a job's playbook printed or, with --follow, what happens to the job until it ends.

The output is read from the artifacts of the run on this machine. The artifacts are missing here if another machine
executed the run, or if they were pruned. If the artifacts are missing, the command shows the database column
`Run.story`: the run's Ansible tasks, its Proxmox tasks, and its steps (progress messages such as "cloning").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson, JobReference, UnusableArgument
from executor.cli.help_text import examples
from executor.cli.lookup import find_job
from executor.cli.output import show_json, show_text
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_rows
from executor.database import run_queries
from executor.database.times import utc_now
from executor.settings.settings import Settings
from executor.views import artifacts, timeline
from executor.views.job_rows import job_label

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from executor.database.core_tables import Reader  # a Connection or a Session
    from executor.database.tables.jobs import Job, Run

#: The columns of the table of a run's Ansible tasks. Maps each key of a row to the heading of its column.
ANSIBLE_TASK_COLUMNS = {
    "time": "TIME",
    "outcome": "OUTCOME",
    "task": "TASK",
    "duration_s": "SECONDS",
    "message": "MESSAGE",
}


@examples(
    "smith jobs log 17                          what the newest run printed",
    "smith jobs log 17 --follow                 the job's timeline so far, then what the job does until it ends",
    "smith jobs log 17 --run create-0c5d0f3a    what an earlier run printed (smith jobs show 17 lists the runs)",
    "smith jobs log 17 --events                 the Ansible tasks of the newest run, with times",
)
def show_log(
    reference: JobReference,
    run_ident: Annotated[
        str | None, typer.Option("--run", metavar="IDENT", help="Show this run, not the newest one.")
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Show each Ansible task with its outcome and time.")] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Show what happens until the job ends; exit code 0 if the job is completed."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a job's playbook printed."""
    if follow:
        if run_ident or events or as_json:
            raise typer.BadParameter("--follow cannot be combined with --run, --events or --json")
        from executor.cli.job_follow import follow_job  # noqa: PLC0415 (only --follow needs it)

        raise typer.Exit(follow_job(reference))
    with read_only_transaction() as transaction:
        job = find_job(transaction.connection, reference)
        run = _select_run(transaction.connection, job, run_ident)
        settings = transaction.settings
    if events:
        _show_ansible_tasks(run, settings, as_json=as_json)
        return
    text = read_output(run, settings)
    if as_json:
        show_json({"run": run.ident, "stdout": text})
        return
    show_text(text.rstrip("\n"))
    if run.ended_at is None and run.story:  # `Run.story` contains the Ansible task that is running now.
        show_text(timeline.current_state_text(job, [run], utc_now()))


def read_output(run: Run, settings: Settings) -> str:
    """Return what the run printed. If this output is not on this machine, return `Run.story` as text.

    Raises ArtifactsMissing if there is neither.
    """
    try:
        return artifacts.read_stdout(artifacts.artifacts_folder(run, settings))
    except artifacts.ArtifactsMissing:
        if not run.story:
            raise
        return _text_of_story(run)


def _show_ansible_tasks(run: Run, settings: Settings, *, as_json: bool) -> None:
    try:
        rows = artifacts.read_ansible_task_rows(artifacts.artifacts_folder(run, settings))
    except artifacts.ArtifactsMissing:
        if not run.story:
            raise
        rows = _ansible_task_rows_in_story(run)
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, ANSIBLE_TASK_COLUMNS, if_empty="no Ansible task of the run has started yet")


def _ansible_task_rows_in_story(run: Run) -> list[dict[str, Any]]:
    """Return the Ansible tasks in `Run.story` as rows with the keys of `artifacts.read_ansible_task_rows`."""
    story = run.story or {}
    return [
        {
            "time": timeline.time_of_story_row(run, row),
            "outcome": row["outcome"],
            "task": row["task"],
            "role": "",  # `Run.story` does not contain the role and the host
            "host": "",
            "duration_s": row["seconds"],
            "message": row["message"],
        }
        for row in story.get("tasks", ())
    ]


def _text_of_story(run: Run) -> str:
    """Return the part of the job's timeline that is about the run, with one line for each entry."""
    lines = [f"{entry.at:%H:%M:%S}Z {entry.text}" for entry in timeline.run_entries(run)]
    return "\n".join([f"the output of run {run.ident} is not on this machine; the database has this timeline:", *lines])


def _select_run(reader: Reader, job: Job, ident: str | None) -> Run:
    """Return the job's run with this ident, or its newest run if `ident` is None. `Run.story` is loaded.

    Raises UnusableArgument if the job has no run, or no run with this ident.
    """
    runs = run_queries.runs_with_stories(reader, [job.id])
    if not runs:
        raise UnusableArgument(_no_run_text(job))
    if ident is None:
        return runs[-1]
    for run in runs:
        if run.ident == ident:
            return run
    idents = ", ".join(run.ident for run in runs)
    raise UnusableArgument(f"{job_label(job)} has no run {ident}; its runs are: {idents}")


def _no_run_text(job: Job) -> str:
    """Return the error text for a job without a run. The text contains the job's error, if any.

    `operator_detail` is the job's error text for operators, and `error_message` its error text for FulcrumCore.
    """
    error = job.operator_detail or job.error_message
    if timeline.has_job_ended(job):
        return f"{job_label(job)} has ended without a run: {error or f'its status is {job.status}'}"
    return f"{job_label(job)} has not run yet: it is {job.status}{f', because {error}' if error else ''}"
