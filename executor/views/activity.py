"""Reads the running, pending and failed jobs from the database, for `smith top` and the overview page.

The column `story` of a run summarises what the run has done: its Ansible tasks, steps and Proxmox tasks. A step is an
operation that an action plugin reports during an Ansible task, such as "cloning the template 9000".
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from executor.database import ended_jobs, mapping_queries, queries, run_queries
from executor.model import JobStatus
from executor.settings.settings import Settings
from executor.views.job_rows import service_and_vm_fields
from executor.views.text import elapsed_text

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from executor.database.core_tables import Reader  # "core" is SQLAlchemy Core, not FulcrumCore
    from executor.database.tables.jobs import Job, Run
    from executor.database.tables.mappings import Mapping

#: The maximum number of running jobs, pending jobs and failures that are shown.
MAX_RUNNING_COUNT, MAX_PENDING_COUNT, MAX_FAILED_COUNT = 64, 5, 5


def read_activity(reader: Reader, settings: Settings, now: datetime) -> dict[str, Any]:
    """Return running jobs with their current steps, the oldest pending jobs and the last failures.

    `reader` is a connection or session of SQLAlchemy. The key `waiting` has the pending jobs. The key
    `oldest_due_report_at` has the earliest `finished_at` of the jobs whose result FulcrumCore has not acknowledged. The
    key `limits` has the limits of an agent process. A process that reaches a limit ends, and a new process starts.
    """
    running_jobs = queries.list_jobs(reader, statuses=[JobStatus.PROCESSING], limit=MAX_RUNNING_COUNT)
    pending_jobs = queries.oldest_pending_jobs(reader, MAX_PENDING_COUNT)
    failed_jobs = ended_jobs.last_failed_jobs(reader, MAX_FAILED_COUNT)
    jobs = [*running_jobs, *pending_jobs, *failed_jobs]
    mapping_by_service = mapping_queries.current_mappings_by_service(
        reader, {job.service_id for job in jobs if job.service_id}
    )
    # A job may have several runs, oldest first. The dictionary keeps the latest.
    run_by_job_id = {run.job_id: run for run in run_queries.runs_with_stories(reader, [job.id for job in running_jobs])}
    return {
        # `list_jobs` returns the newest job first. The list `running` begins with the oldest job.
        "running": [
            _running_fields(job, run_by_job_id.get(job.id), mapping_by_service, now) for job in reversed(running_jobs)
        ],
        "waiting": [_pending_fields(job, mapping_by_service, now) for job in pending_jobs],
        "failed": [_failed_fields(job, mapping_by_service, now) for job in failed_jobs],
        "oldest_pending_at": queries.oldest_pending_time(reader),
        "oldest_due_report_at": queries.oldest_due_report_time(reader),
        "limits": {
            "SMITH_MAX_JOBS": settings.smith_max_jobs,  # the jobs that a process claims in all, not in parallel
            "SMITH_MAX_MEMORY_MIB": settings.smith_max_memory_mib,
            "SMITH_MAX_RUNTIME_S": settings.smith_max_runtime_s,
        },
    }


def _running_fields(job: Job, run: Run | None, mapping_by_service: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    """Return a running job with its current step.

    The key `for` has the time since the start of the job's run. If no run is in progress, the time counts from the
    moment at which the job was received. The key `left` has the time until the job's deadline.
    """
    if run is not None and (run.ended_at is not None or run.attempt != job.attempt):
        run = None  # this run belongs to an earlier attempt, or has ended and the agent is storing the job's result
    story = (run.story if run else None) or {}
    tasks, steps, proxmox_tasks = (story.get(name, ()) for name in ("tasks", "steps", "proxmox_tasks"))
    step = steps[-1]["text"] if steps else tasks[-1]["task"] if tasks else ""
    # The percentage is the progress of the last Proxmox task. It is shown only during a step such as `waiting
    # for Proxmox task UPID`.
    percent = proxmox_tasks[-1]["percent"] if proxmox_tasks and step.startswith("waiting") else None
    return _job_fields(job, mapping_by_service) | {
        "attempt": job.attempt,
        "text": step or ("the run has started" if run else "no run in progress"),
        "percent": percent,
        "for": elapsed_text(run.started_at if run else job.received_at, now),
        "left": f"{max((job.deadline_at - now).total_seconds(), 0):.0f}s",
    }


def _pending_fields(job: Job, mapping_by_service: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    wait_s = (job.available_at - now).total_seconds() if job.available_at else 0.0
    # The key `next` says when the job's backoff ends. Without a backoff, it is "now".
    # `operator_detail` is a more detailed error text, which only operators may see.
    return _job_fields(job, mapping_by_service) | {
        "waits": elapsed_text(job.received_at, now),
        "next": f"in {wait_s:.0f}s" if wait_s > 0 else "now",
        "error": job.operator_detail or job.error_message or "",
    }


def _failed_fields(job: Job, mapping_by_service: dict[str, Mapping], now: datetime) -> dict[str, Any]:
    ago = elapsed_text(job.finished_at, now)
    return _job_fields(job, mapping_by_service) | {"ago": ago, "error": job.operator_detail or job.error_message or ""}


def _job_fields(job: Job, mapping_by_service: dict[str, Mapping]) -> dict[str, Any]:
    names = service_and_vm_fields(job, mapping_by_service)
    vm_texts = [str(names[key]) for key in ("vmid", "vm_name") if names[key]]
    return {"id": job.id, "action": job.action, "name": names["service_name"], "guest": " ".join(vm_texts) or None}
