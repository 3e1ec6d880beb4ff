"""Measures starts and stops of many VMs, a mixed load, and an agent's start, idle cost and recovery from a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from smith_lab.system import LabSystem, running_lab, wait_for

from bench.burst import HEARTBEAT_PATH_END, OPEN_STATUSES, heartbeat_gaps
from bench.measuring import WorkloadFailed, median, percentile, tree_cpu_s, tree_pss_mib
from bench.seeding import ServiceWithVm, add_services_with_vms

Json = dict[str, Any]
#: The longest time to wait until all jobs of a workload have ended.
JOBS_TIMEOUT_S = 400.0
#: The longest time to wait until the agent has started, polled or claimed a job.
EVENT_TIMEOUT_S = 60.0
#: The longest time to wait until a third of the jobs of a burst have ended.
THIRD_OF_BURST_TIMEOUT_S = 120.0
#: The number of calls of `smith --help`. The CPU time of the first call does not count.
HELP_CALLS = 6


@contextmanager
def _lab_before_agent_start(folder: Path, **settings: str) -> Iterator[LabSystem]:
    """Run a lab: the simulators of FulcrumCore and Proxmox, and an agent that the caller starts.

    `lab.executor` is the process that the caller's `_start_agent` starts: the supervisor. The agent process is a child
    of the supervisor.
    """
    folder.mkdir(parents=True)
    with running_lab(folder, settings=settings) as lab:
        yield lab


def _start_agent(lab: LabSystem) -> None:
    lab.start_executor()
    wait_for(
        lambda: lab.log_events("agent_ready") and lab.core.history(method="PUT", path_end=HEARTBEAT_PATH_END),
        EVENT_TIMEOUT_S,
        "the agent to start",
    )


# --- a power cycle --------------------------------------------------------------------------------------------------


def power_cycle(folder: Path, vms: int) -> Json:
    """Start all VMs at the same time, then stop all of them; return the rates and the costs."""
    with _lab_before_agent_start(folder) as lab:
        services = add_services_with_vms(lab, vms)
        _start_agent(lab)
        lab.core.clear_history()
        figures_by_action = {action: _act_on_all(lab, services, action) for action in ("start", "stop")}
        return {"vms": vms, **figures_by_action, "heartbeat": heartbeat_gaps(lab)}


def _act_on_all(lab: LabSystem, services: list[ServiceWithVm], action: str) -> Json:
    """Request the action for all services and wait until all jobs have ended; return the rate and the CPU time."""
    cpu_before_s, started = tree_cpu_s(lab.executor.pid), time.monotonic()
    for service in services:
        lab.admin.start_action(service.service_id, action)
    _wait_for_all_jobs(lab)
    all_done_s, cpu_s = time.monotonic() - started, tree_cpu_s(lab.executor.pid) - cpu_before_s
    return {
        "all_done_s": all_done_s,
        "jobs_per_min": 60 * len(services) / all_done_s,
        "cpu_s_per_job": cpu_s / len(services),
    }


def _wait_for_all_jobs(lab: LabSystem) -> None:
    """Wait until all jobs have ended. Raises WorkloadFailed if a job failed."""
    store = lab.core.server.store

    def have_all_ended() -> bool:
        with store.lock:
            return all(job.status not in OPEN_STATUSES for job in store.jobs.values())

    wait_for(have_all_ended, JOBS_TIMEOUT_S, "all jobs to end", interval_s=0.2)
    with store.lock:
        error_texts = [job.error_message for job in store.jobs.values() if job.status == "Failed"]
    if error_texts:
        raise WorkloadFailed(f"{len(error_texts)} jobs failed: {error_texts[0]}")


# --- a mixed load ---------------------------------------------------------------------------------------------------

#: The actions that FulcrumCore accepts in each status of a service.
ACTIONS_BY_STATUS = {"Stopped": ("start", "update"), "Started": ("stop", "restart", "update")}


def mixed_load(folder: Path, *, vms: int, requests_per_s: float, duration_s: float) -> Json:
    """Request random actions of random VMs at random times.

    Returns statistics of the jobs' times from creation to claim and from creation to completion, and the CPU time per
    job.
    """
    random_source = random.Random(4711)  # noqa: S311  (not for security; this seed makes the load the same each time)
    with _lab_before_agent_start(folder) as lab:
        services = add_services_with_vms(lab, vms)
        _start_agent(lab)
        lab.core.clear_history()
        cpu_before_s, end_at = tree_cpu_s(lab.executor.pid), time.monotonic() + duration_s
        request_count = 0
        while time.monotonic() < end_at:
            request_count += _request_action(lab, random_source.choice(services), random_source)
            time.sleep(random_source.expovariate(requests_per_s))
        _wait_for_all_jobs(lab)
        cpu_s = tree_cpu_s(lab.executor.pid) - cpu_before_s
        return {
            "vms": vms,
            "requested_per_min": 60 * requests_per_s,
            "jobs": request_count,
            **_waits_and_durations(lab),
            "cpu_s_per_job": cpu_s / max(request_count, 1),
            "heartbeat": heartbeat_gaps(lab),
        }


def _request_action(lab: LabSystem, service: ServiceWithVm, random_source: random.Random) -> int:
    """Request a random action, unless the service has an open job; return the number of requests, 0 or 1."""
    store = lab.core.server.store
    with store.lock:
        jobs_of_service = [job for job in store.jobs.values() if job.service_id == service.service_id]
        if any(job.status in OPEN_STATUSES for job in jobs_of_service):
            return 0
        status = store.services[service.service_id].status
    action = random_source.choice(ACTIONS_BY_STATUS[status])
    if action == "update":
        lab.admin.patch_service(service.service_id, {"tags": [f"t{random_source.randrange(1000)}"]})
    else:
        lab.admin.start_action(service.service_id, action)
    return 1


def _waits_and_durations(lab: LabSystem) -> Json:
    """Return statistics of the times from a job's creation to its claim (wait) and to its completion (duration).

    The time of a claim or completion is the time at which FulcrumCore received the request.
    """
    created_at = {job.id: job.created_at for job in lab.core.server.store.jobs.values()}
    claimed_at = _request_times_by_job(lab, "/claim")
    completed_at = _request_times_by_job(lab, "/complete")
    job_ids = [job_id for job_id in completed_at if job_id in claimed_at]
    waits_s = [claimed_at[job_id] - created_at[job_id] for job_id in job_ids]
    durations_s = [completed_at[job_id] - created_at[job_id] for job_id in job_ids]
    return {
        "wait_median_s": median(waits_s),
        "wait_p95_s": percentile(waits_s, 0.95),
        "job_median_s": median(durations_s),
        "job_p95_s": percentile(durations_s, 0.95),
    }


def _request_times_by_job(lab: LabSystem, path_end: str) -> dict[str, float]:
    """Return the times of the requests to `/jobs/<job id><path_end>`, by job id."""
    times_by_job: dict[str, float] = {}
    for request in lab.core.history(method="POST"):
        if request["path"].endswith(path_end):
            job_id = request["path"].split("/")[-2]
            times_by_job[job_id] = request["time"]
    return times_by_job


# --- start, idle, recovery ------------------------------------------------------------------------------------------


def start_and_idle(folder: Path, *, idle_s: float) -> Json:
    """Return the time from the agent's start to its first claim, and the costs of an idle agent and `smith --help`."""
    # This poll interval is the agent's default. Without this setting, the lab sets a shorter interval.
    with _lab_before_agent_start(folder, FULCRUM_POLL_INTERVAL_S="2") as lab:
        lab.order_service("first")
        started = time.time()
        lab.start_executor()
        claim_requests = wait_for(
            lambda: lab.core.history(method="POST", path_end="/claim"), EVENT_TIMEOUT_S, "the first claim"
        )
        _wait_for_all_jobs(lab)
        time.sleep(5)  # after this time, the agent has ended its work for the job and is idle
        pid = lab.executor.pid
        cpu_before_s, memory_before_mib = tree_cpu_s(pid), tree_pss_mib(pid, include_root=True)
        time.sleep(idle_s)
        cpu_s = tree_cpu_s(pid) - cpu_before_s
        grown_mib = tree_pss_mib(pid, include_root=True) - memory_before_mib
        return {
            "first_claim_after_s": claim_requests[0]["time"] - started,
            "idle_share_of_a_core": cpu_s / idle_s,
            "idle_mib": memory_before_mib,
            "idle_grown_mib": grown_mib,
            "help_cpu_s": _help_cpu_s(),
        }


def _help_cpu_s() -> float:
    """Return the median CPU time of `smith --help` when the bytecode of its modules is cached on disk."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "executor", "--help"]
    cpu_times_s = []
    for _ in range(HELP_CALLS):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            _pid, _status, usage = os.wait4(process.pid, 0)
            process.returncode = 0  # so that `Popen` does not wait for the process again
        cpu_times_s.append(usage.ru_utime + usage.ru_stime)
    return median(cpu_times_s[1:])  # without the first call, which may have compiled the bytecode


def recovery(folder: Path, *, services: int) -> Json:
    """Kill the agent process during a burst. Its supervisor starts a new agent process.

    Returns the time from the kill to the next poll or claim, and the time from the first order to the end of all jobs.
    """
    with _lab_before_agent_start(folder) as lab:
        _start_agent(lab)
        started = time.time()
        for number in range(services):
            lab.order_service(f"recovery-{number}")
        wait_for(
            lambda: len(lab.log_events("playbook_finished")) >= services // 3,
            THIRD_OF_BURST_TIMEOUT_S,
            "a third of the jobs",
        )
        supervisor = psutil.Process(lab.executor.pid)
        (agent_process,) = [child for child in supervisor.children() if "agent-process" in child.cmdline()]
        killed_at = time.time()
        agent_process.send_signal(signal.SIGKILL)
        requested_at = wait_for(
            lambda: _first_poll_or_claim_after(lab, killed_at), EVENT_TIMEOUT_S, "a poll or claim after the kill"
        )
        _wait_for_all_jobs(lab)
        all_done_s = time.time() - started
        return {
            "services": services,
            "claims_again_after_s": requested_at - killed_at,
            "all_done_s": all_done_s,
            "heartbeat": heartbeat_gaps(lab),
        }


def _first_poll_or_claim_after(lab: LabSystem, moment: float) -> float | None:
    """Return the time of the first poll or claim after `moment`; None if there was no such request yet."""
    for request in lab.core.history():
        if request["path"].endswith(("/claim", "/jobs/pending")) and request["time"] > moment:
            return float(request["time"])
    return None
