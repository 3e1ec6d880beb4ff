"""Reads from the database what the agents are doing now, for `smith top` and the overview page.

The column `story` of a run summarises what the run has done: its Ansible tasks, steps and Proxmox tasks.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from executor.database import ended_jobs, mapping_queries, queries
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping
from executor.model import JobStatus
from executor.settings.settings import Settings
from executor.views.job_rows import name_fields
from executor.views.text import elapsed_text

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session

#: The maximum number of running jobs, waiting jobs and failures that are shown.
MAX_RUNNING, MAX_WAITING, MAX_FAILED = 64, 5, 5


def read_activity(session: Session, settings: Settings, now: datetime) -> dict[str, Any]:
    """Return running jobs with their present steps, the oldest waiting jobs, the last failures, and restart limits."""
    running = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], limit=MAX_RUNNING)
    waiting = queries.oldest_pending_jobs(session, MAX_WAITING)
    failed = ended_jobs.last_failed_jobs(session, MAX_FAILED)
    jobs = [*running, *waiting, *failed]
    vms = mapping_queries.current_mappings_of_services(session, {job.service_id for job in jobs if job.service_id})
    runs = {run.job_id: run for run in queries.runs_with_stories(session, [job.id for job in running])}
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
    """Return a running job with its present step.

    The key `for` has the time since the start of the job's run. If no run is in progress, the time counts from the
    moment at which the job was received.
    """
    if run is not None and (run.ended_at is not None or run.attempt != job.attempt):
        run = None  # this run belongs to an earlier attempt, or has ended and the agent is storing its result
    story = (run.story if run else None) or {}
    tasks, steps, proxmox_tasks = (story.get(name, ()) for name in ("tasks", "steps", "proxmox_tasks"))
    step = steps[-1]["text"] if steps else tasks[-1]["task"] if tasks else ""
    percent = proxmox_tasks[-1]["percent"] if proxmox_tasks and step.startswith("waiting") else None
    return _job_fields(job, vms) | {
        "attempt": job.attempt,
        "text": step or ("the run has started" if run else "no run in progress"),
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
