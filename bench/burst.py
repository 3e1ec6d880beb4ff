"""Measures a burst of creates, from the orders to the end of all jobs, and the heartbeats during the burst.

The FulcrumCore simulator, the Proxmox stand-in and the agent share the cores of this machine. In production,
FulcrumCore, Proxmox and the agent run on different machines.
"""

from __future__ import annotations

import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from smith_lab.system import LabSystem, running_lab, wait_for

from bench.measuring import WorkloadFailed, median, percentile, sample_peak_memory, tree_cpu_s, tree_pss_mib

Json = dict[str, Any]
#: FulcrumCore fails a job that has not ended after this time.
JOB_TIMEOUT_S = 300.0
#: The longest time to wait until all jobs of a burst have ended. It is longer than JOB_TIMEOUT_S, so each job ends or
#: FulcrumCore fails it.
BURST_TIMEOUT_S = JOB_TIMEOUT_S + 60
#: The longest time to wait until the agent has started.
START_TIMEOUT_S = 60
#: The statuses of a job that has not ended.
OPEN_STATUSES = ("Pending", "Processing")
#: How the URL path of a heartbeat ends.
HEARTBEAT_PATH_END = "/agents/me/status"
#: Events in the agent's log that explain a slow burst. The figures state how often each event was logged.
COUNTED_EVENTS = ("warm_unavailable", "orphan_processes_killed", "job_requeued")


def measure(folder: Path, *, services: int, clone_s: float, settings: dict[str, str], label: str) -> Json:
    """Order VMs for `services` services at the same time, wait until all jobs have ended, and return the figures.

    The Proxmox stand-in takes `clone_s` for each clone. `settings` are the settings of the agent that differ from the
    defaults. Raises WorkloadFailed if a create fails or does not end in time.
    """
    folder.mkdir(parents=True)
    time_scale = 1.0 if clone_s else 0.0  # with 0, the tasks of the Proxmox stand-in take no time
    with running_lab(folder, time_scale=time_scale, settings=settings) as lab:
        lab.proxmox.control("task_seconds", type="qmclone", seconds=clone_s)
        lab.start_executor()
        wait_for(lambda: _has_polled(lab), START_TIMEOUT_S, "the executor to poll")
        figures = _order_and_wait(lab, services)
        lab.stop_executor()
    return {"label": label, "services": services, "clone_s": clone_s, **figures}


def _has_polled(lab: LabSystem) -> bool:
    """Return whether the agent has requested pending jobs."""
    return any("/jobs/pending" in request["path"] for request in lab.core.history(method="GET"))


def _order_and_wait(lab: LabSystem, services: int) -> Json:
    """Order the VMs and wait until all jobs have ended; return the figures."""
    pid = lab.executor.pid
    idle_mib = tree_pss_mib(pid, include_root=True)
    cpu_before_s = tree_cpu_s(pid)
    started = time.monotonic()
    with sample_peak_memory(pid, include_root=True) as peak:
        for number in range(services):
            lab.order_service(f"burst-{number}")
        ordered_s = time.monotonic() - started
        try:
            wait_for(lambda: not _open_jobs(lab), BURST_TIMEOUT_S, f"{services} creates", interval_s=2.0)
        except TimeoutError as error:
            raise WorkloadFailed(str(error)) from error
    cpu_s = tree_cpu_s(pid) - cpu_before_s
    jobs = lab.admin.list_all("jobs")
    error_texts = [job["errorMessage"] for job in jobs if job["status"] != "Completed"]
    if error_texts:
        raise WorkloadFailed(f"{len(error_texts)} of {services} creates failed: {error_texts[0]}")
    parallel_runs = max_parallel_runs(lab)
    return {
        **_job_times(jobs),
        "ordered_s": ordered_s,
        "cpu_s_per_job": cpu_s / services,
        "parallel_runs": parallel_runs,
        "idle_mib": idle_mib,
        "mib_per_slot": (peak.mib - idle_mib) / parallel_runs,
        "heartbeat": heartbeat_gaps(lab),
        "log": {event: len(lab.log_events(event)) for event in COUNTED_EVENTS},
    }


def _open_jobs(lab: LabSystem) -> list[Json]:
    return [job for job in lab.admin.list_all("jobs") if job["status"] in OPEN_STATUSES]


def _job_times(jobs: list[Json]) -> Json:
    """Return the rate of the jobs and statistics of their durations, from FulcrumCore's times."""
    created_at = [_seconds_since_epoch(job["createdAt"]) for job in jobs]
    ended_at = [_seconds_since_epoch(job["completedAt"]) for job in jobs]
    durations_s = [end - start for start, end in zip(created_at, ended_at, strict=True)]
    claim_to_end_s = [
        end - _seconds_since_epoch(job["claimedAt"])
        for job, end in zip(jobs, ended_at, strict=True)
        if job.get("claimedAt")
    ]
    all_done_s = max(ended_at) - min(created_at)
    return {
        "all_done_s": all_done_s,
        "jobs_per_min": 60 * len(jobs) / all_done_s,
        "job_median_s": median(durations_s),
        "job_p95_s": percentile(durations_s, 0.95),
        "job_max_s": max(durations_s),
        "claim_to_end_median_s": median(claim_to_end_s),
    }


def heartbeat_gaps(lab: LabSystem) -> Json:
    """Return the number of heartbeats that FulcrumCore received, and statistics of the times between them."""
    requests = [request for request in lab.core.history(method="PUT") if request["path"].endswith(HEARTBEAT_PATH_END)]
    received_at = [_seconds_since_epoch(request["time"]) for request in requests]
    gaps_s = [later - earlier for earlier, later in pairwise(received_at)]
    if not gaps_s:
        return {"beats": len(requests)}
    return {
        "beats": len(requests),
        "median_s": median(gaps_s),
        "p99_s": percentile(gaps_s, 0.99),
        "max_s": max(gaps_s),
    }


def max_parallel_runs(lab: LabSystem) -> int:
    """Return the greatest number of playbooks that ran at the same time, counted from the agent's log."""
    running, max_running = 0, 1  # at least 1, because the caller divides by the result
    for entry in lab.log_events():
        if entry["event"] == "playbook_started":
            running += 1
        elif entry["event"] == "playbook_finished":
            running -= 1
        max_running = max(max_running, running)
    return max_running


def _seconds_since_epoch(time_value: float | str) -> float:
    """Return a time in seconds. The argument is ISO text from FulcrumCore's API, or already a number of seconds."""
    if isinstance(time_value, str):
        return datetime.fromisoformat(time_value).timestamp()
    return time_value
