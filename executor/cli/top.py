"""`smith top`: shows what the agents do at this moment, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import Store, reading_store
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.cli.watch import watch_store
from executor.database import mappings, queries
from executor.database.tables import Job, Mapping, Run, utc_now
from executor.model import JobStatus
from executor.views.job_rows import name_fields
from executor.views.status_document import Status, read_status
from executor.views.text import elapsed_text

RUNNING_COLUMNS = {
    "id": "JOB",
    "action": "ACTION",
    "guest": "VM",
    "percent": "%",
    "for": "FOR",
    "text": "STEP",
    "name": "NAME",
    "left": "LEFT",
    "attempt": "TRY",
}
WAITING_COLUMNS = {
    "id": "JOB",
    "action": "ACTION",
    "waits": "WAITS",
    "next": "NEXT",
    "error": "BECAUSE",
    "name": "NAME",
}
FAILED_COLUMNS = {"id": "JOB", "action": "ACTION", "ago": "AGO", "error": "ERROR", "name": "NAME"}
#: The maximum number of running jobs, waiting jobs and failures that are shown.
MAX_RUNNING, MAX_WAITING, MAX_FAILED = 64, 5, 5


@examples(
    "smith top",
    "smith top --once    one view, for a pipe",
)
def show(
    once: Annotated[bool, typer.Option("--once", help="Show one view.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show running jobs with their steps, the queue, and the last failures.

    The steps are up to 5 s old (a sixth of SMITH_LEASE_S).
    """
    if not (once or as_json):
        watch_store(lambda store: _print(_status(store), _read(store, utc_now())))
        return
    with reading_store() as store:
        status, view = _status(store), _read(store, utc_now())
    if as_json:
        show_json(status.document | view)
    else:
        _print(status, view)


def _status(store: Store) -> Status:
    return read_status(store.session, store.settings.smith_lease_s)


def _read(store: Store, now: datetime) -> dict[str, Any]:
    session = store.session
    running = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], limit=MAX_RUNNING)
    waiting = queries.oldest_pending_jobs(session, MAX_WAITING)
    failed = queries.list_jobs(session, statuses=[JobStatus.FAILED], limit=MAX_FAILED)
    jobs = [*running, *waiting, *failed]
    vms = mappings.current_of_services(session, {job.service_id for job in jobs if job.service_id})
    runs = {run.job_id: run for run in queries.runs_with_stories(session, [job.id for job in running])}
    settings = store.settings
    return {
        "running": [_running_fields(job, runs.get(job.id), vms, now) for job in reversed(running)],
        "waiting": [_waiting_fields(job, vms, now) for job in waiting],
        "failed": [_failed_fields(job, vms, now) for job in failed],
        "oldest_pending_at": queries.oldest_pending_time(session),
        "oldest_due_report_at": queries.oldest_due_report_time(session),
        "limits": {
            "SMITH_MAX_JOBS": settings.smith_max_jobs,
            "SMITH_MAX_MEMORY_MIB": settings.smith_max_memory_mib,
            "SMITH_MAX_RUNTIME_S": settings.smith_max_runtime_s,
        },
    }


def _running_fields(job: Job, run: Run | None, vms: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    """Return a running job with its present step. `for` is the time since the start of its run."""
    if run is not None and (run.ended_at is not None or run.attempt != job.attempt):
        run = None  # the run of an earlier attempt, or one whose result is being stored
    story = (run.story if run else None) or {}
    tasks, steps, proxmox = (story.get(name, ()) for name in ("tasks", "steps", "proxmox_tasks"))
    step = steps[-1]["text"] if steps else tasks[-1]["task"] if tasks else ""
    percent = proxmox[-1]["percent"] if proxmox and step.startswith("waiting") else None
    return _job_fields(job, vms) | {
        "attempt": job.attempt,
        "text": step or ("the run starts" if run else "before the run"),
        "percent": percent,
        "for": elapsed_text(run.started_at if run else job.received_at, now),
        "left": f"{max((job.deadline_at - now).total_seconds(), 0):.0f}s",
    }


def _waiting_fields(job: Job, vms: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    wait_s = (job.available_at - now).total_seconds() if job.available_at else 0.0
    return _job_fields(job, vms) | {
        "waits": elapsed_text(job.received_at, now),
        "next": f"in {wait_s:.0f}s" if wait_s > 0 else "now",
        "error": job.operator_detail or job.error_message or "",
    }


def _failed_fields(job: Job, vms: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    ago = elapsed_text(job.finished_at, now)
    return _job_fields(job, vms) | {"ago": ago, "error": job.operator_detail or job.error_message or ""}


def _job_fields(job: Job, vms: dict[str, Mapping]) -> dict[str, Any]:
    names = name_fields(job, vms)
    vm = [str(names[key]) for key in ("vmid", "vm_name") if names[key]]
    return {"id": job.id, "action": job.action, "name": names["service_name"], "guest": " ".join(vm) or None}


def _print(status: Status, view: dict[str, Any]) -> None:
    document, now = status.document, utc_now()
    slots = sum(node["concurrency"] for node in document["nodes"] if node["state"] == "running")
    limits = [f"{name} {value:g}" for name, value in view["limits"].items() if value]
    show_fields(
        {
            "agents": f"{document['agents_running']} running" if document["agents_running"] else "no agent is running",
            "paused": status.pause_text,
            "FulcrumCore": status.fulcrum_text,
            "Proxmox": status.proxmox_text,
            "slots": f"{document['jobs'][JobStatus.PROCESSING]} of {slots}",
            "queue": _count_text(document["jobs"][JobStatus.PENDING], view["oldest_pending_at"], now),
            "outbox": _count_text(document["reports_due"], view["oldest_due_report_at"], now),
            "limits": ", ".join(limits),
        }
    )
    show_heading("Running")
    percents = [row | {"percent": "" if row["percent"] is None else f"{row['percent']:.0f}"} for row in view["running"]]
    show_rows(percents, RUNNING_COLUMNS, if_empty="no job is running")
    _show_section("Waiting, the oldest first", view["waiting"], WAITING_COLUMNS)
    _show_section("Last failures (`smith jobs show JOB` has the story)", view["failed"], FAILED_COLUMNS)


def _show_section(title: str, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    if rows:
        show_heading(title)
        show_rows(rows, columns, if_empty="")


def _count_text(count: int, oldest_at: datetime | None, now: datetime) -> str:
    return f"{count}, the oldest for {elapsed_text(oldest_at, now)}" if oldest_at else str(count)
