"""Measures a burst of creates, from the orders to the end of all jobs, and the heartbeats during the burst.

The FulcrumCore simulator, the Proxmox stand-in and the agent share the cores of this machine. In production, they run
on different machines.
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
OPEN_STATUSES = ("Pending", "Processing")
HEARTBEAT_PATH = "/agents/me/status"


def measure(folder: Path, *, services: int, clone_s: float, settings: dict[str, str], label: str) -> Json:
    """Order `services` VMs at the same time, each in a group of its own, and wait for all jobs.

    Each clone takes `clone_s` in the Proxmox stand-in, and `settings` are settings of the agent. Raises WorkloadFailed
    if a create fails or does not end in time.
    """
    folder.mkdir(parents=True)
    with running_lab(folder, time_scale=1.0 if clone_s else 0.0, settings=settings) as lab:
        lab.proxmox.control("task_seconds", type="qmclone", seconds=clone_s)
        lab.start_executor()
        wait_for(lambda: _has_polled(lab), 60, "the executor to poll")
        facts = _burst(lab, services)
        lab.stop_executor()
    return {"label": label, "services": services, "clone_s": clone_s, **facts}


def _has_polled(lab: LabSystem) -> bool:
    return any("/jobs/pending" in call["path"] for call in lab.core.history(method="GET"))


def _burst(lab: LabSystem, services: int) -> Json:
    pid = lab.executor.pid
    idle_mib, cpu_before_s, started = tree_pss_mib(pid, include_root=True), tree_cpu_s(pid), time.monotonic()
    with sample_peak_memory(pid, include_root=True) as peak:
        for number in range(services):
            lab.order_service(f"burst-{number}")
        ordered_s = time.monotonic() - started
        try:
            wait_for(lambda: not _open_jobs(lab), JOB_TIMEOUT_S + 60, f"{services} creates", interval_s=2.0)
        except TimeoutError as error:
            raise WorkloadFailed(str(error)) from error
    cpu_s = tree_cpu_s(pid) - cpu_before_s
    jobs = lab.admin.list_all("jobs")
    if failed := [job["errorMessage"] for job in jobs if job["status"] != "Completed"]:
        raise WorkloadFailed(f"{len(failed)} of {services} creates failed: {failed[0]}")
    parallel_runs = max_parallel_runs(lab)
    return {
        **_times(jobs),
        "ordered_s": ordered_s,
        "cpu_s_per_job": cpu_s / services,
        "parallel_runs": parallel_runs,
        "idle_mib": idle_mib,
        "mib_per_slot": (peak.mib - idle_mib) / parallel_runs,
        "heartbeat": heartbeat_gaps(lab),
        "log": {
            name: len(lab.log_events(name)) for name in ("warm_unavailable", "orphan_processes_killed", "job_requeued")
        },
    }


def _open_jobs(lab: LabSystem) -> list[Json]:
    return [job for job in lab.admin.list_all("jobs") if job["status"] in OPEN_STATUSES]


def _times(jobs: list[Json]) -> Json:
    created = [_timestamp(job["createdAt"]) for job in jobs]
    ended = [_timestamp(job["completedAt"]) for job in jobs]
    durations = [end - start for start, end in zip(created, ended, strict=True)]
    all_s = max(ended) - min(created)
    return {
        "all_done_s": all_s,
        "jobs_per_min": 60 * len(jobs) / all_s,
        "job_median_s": median(durations),
        "job_p95_s": percentile(durations, 0.95),
        "job_max_s": max(durations),
        "claim_to_end_median_s": median(
            [end - _timestamp(job["claimedAt"]) for job, end in zip(jobs, ended, strict=True) if job.get("claimedAt")]
        ),
    }


def heartbeat_gaps(lab: LabSystem) -> Json:
    """Return the number of heartbeats that FulcrumCore received, and statistics of the times between them."""
    calls = [call for call in lab.core.history(method="PUT") if call["path"].endswith(HEARTBEAT_PATH)]
    gaps = [later - earlier for earlier, later in pairwise(_timestamp(call["time"]) for call in calls)]
    if not gaps:
        return {"beats": len(calls)}
    return {"beats": len(calls), "median_s": median(gaps), "p99_s": percentile(gaps, 0.99), "max_s": max(gaps)}


def max_parallel_runs(lab: LabSystem) -> int:
    """Return the greatest number of playbooks that ran at the same time, counted from the agent's log."""
    running, most = 0, 1
    for entry in lab.log_events():
        running += {"playbook_started": 1, "playbook_finished": -1}.get(entry["event"], 0)
        most = max(most, running)
    return most


def _timestamp(value: float | str) -> float:
    return value if isinstance(value, int | float) else datetime.fromisoformat(value).timestamp()
