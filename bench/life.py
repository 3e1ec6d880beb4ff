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

from bench.burst import HEARTBEAT_PATH, OPEN_STATUSES, heartbeat_gaps
from bench.measuring import WorkloadFailed, median, percentile, tree_cpu_s, tree_pss_mib
from bench.seeding import ServiceWithVm, add_services_with_vms

Json = dict[str, Any]
#: The longest time to wait until all jobs of a workload have ended.
TIMEOUT_S = 400.0


@contextmanager
def _running_lab(folder: Path, **settings: str) -> Iterator[LabSystem]:
    """Run a lab: the simulators of FulcrumCore and Proxmox, and an agent that is not started yet."""
    folder.mkdir(parents=True)
    with running_lab(folder, settings=settings) as lab:
        yield lab


def _start_agent(lab: LabSystem) -> None:
    lab.start_executor()
    wait_for(
        lambda: lab.log_events("agent_ready") and lab.core.history(method="PUT", path=HEARTBEAT_PATH),
        60,
        "the agent to start",
    )


# --- a power cycle --------------------------------------------------------------------------------------------------


def power_cycle(folder: Path, vms: int) -> Json:
    """Start all VMs at the same time, then stop all; return the rates and costs of the starts and of the stops."""
    with _running_lab(folder) as lab:
        services = add_services_with_vms(lab, vms)
        _start_agent(lab)
        lab.core.clear_history()
        measured = {action: _act_on_all(lab, services, action) for action in ("start", "stop")}
        return {"vms": vms, **measured, "heartbeat": heartbeat_gaps(lab)}


def _act_on_all(lab: LabSystem, services: list[ServiceWithVm], action: str) -> Json:
    cpu_before_s, started = tree_cpu_s(lab.executor.pid), time.monotonic()
    for service in services:
        lab.admin.start_action(service.service_id, action)
    _wait_for_all(lab)
    took_s, cpu_s = time.monotonic() - started, tree_cpu_s(lab.executor.pid) - cpu_before_s
    return {
        "all_done_s": took_s,
        "jobs_per_min": 60 * len(services) / took_s,
        "cpu_s_per_job": cpu_s / len(services),
    }


def _wait_for_all(lab: LabSystem) -> None:
    """Wait until all jobs have ended. Raises WorkloadFailed if a job failed."""
    store = lab.core.server.store

    def have_ended() -> bool:
        with store.lock:
            return all(job.status not in OPEN_STATUSES for job in store.jobs.values())

    wait_for(have_ended, TIMEOUT_S, "all jobs to end", interval_s=0.2)
    with store.lock:
        failed = [job.error_message for job in store.jobs.values() if job.status == "Failed"]
    if failed:
        raise WorkloadFailed(f"{len(failed)} jobs failed: {failed[0]}")


# --- a mixed load ---------------------------------------------------------------------------------------------------

#: The actions that FulcrumCore accepts in each status of a service.
ACTIONS_BY_STATUS = {"Stopped": ("start", "update"), "Started": ("stop", "restart", "update")}


def mixed_load(folder: Path, *, vms: int, requests_per_s: float, duration_s: float) -> Json:
    """Request random actions of random VMs at random times.

    Returns the jobs' times from creation to claim and to completion, and the CPU time per job.
    """
    rng = random.Random(4711)  # noqa: S311  (not for security; the seed makes the load the same in every run)
    with _running_lab(folder) as lab:
        services = add_services_with_vms(lab, vms)
        _start_agent(lab)
        lab.core.clear_history()
        cpu_before_s, end_at = tree_cpu_s(lab.executor.pid), time.monotonic() + duration_s
        requested = 0
        while time.monotonic() < end_at:
            requested += _request_action(lab, rng.choice(services), rng)
            time.sleep(rng.expovariate(requests_per_s))
        _wait_for_all(lab)
        cpu_s = tree_cpu_s(lab.executor.pid) - cpu_before_s
        costs = {"cpu_s_per_job": cpu_s / max(requested, 1), "heartbeat": heartbeat_gaps(lab)}
        return {
            "vms": vms,
            "requested_per_min": 60 * requests_per_s,
            "jobs": requested,
            **_waits_and_durations(lab),
            **costs,
        }


def _request_action(lab: LabSystem, service: ServiceWithVm, rng: random.Random) -> int:
    """Request a random action, unless the service has an open job; return the number of requests, 0 or 1."""
    store = lab.core.server.store
    with store.lock:
        if any(job.status in OPEN_STATUSES for job in store.jobs.values() if job.service_id == service.service_id):
            return 0
        status = store.services[service.service_id].status
    action = rng.choice(ACTIONS_BY_STATUS[status])
    if action == "update":
        lab.admin.patch_service(service.service_id, {"tags": [f"t{rng.randrange(1000)}"]})
    else:
        lab.admin.start_action(service.service_id, action)
    return 1


def _waits_and_durations(lab: LabSystem) -> Json:
    """Return statistics of the times from a job's creation to its claim (wait) and to its completion (duration).

    The time of a claim or completion is the time at which FulcrumCore received the request.
    """
    calls = lab.core.history(method="POST")
    claimed = {call["path"].split("/")[-2]: call["time"] for call in calls if call["path"].endswith("/claim")}
    ended = {call["path"].split("/")[-2]: call["time"] for call in calls if call["path"].endswith("/complete")}
    created = {job.id: job.created_at for job in lab.core.server.store.jobs.values()}
    waits = [claimed[job] - created[job] for job in ended if job in claimed]
    durations = [ended[job] - created[job] for job in ended if job in claimed]
    return {
        "wait_median_s": median(waits),
        "wait_p95_s": percentile(waits, 0.95),
        "job_median_s": median(durations),
        "job_p95_s": percentile(durations, 0.95),
    }


# --- start, idle, recovery ------------------------------------------------------------------------------------------


def start_and_idle(folder: Path, *, idle_s: float) -> Json:
    """Return the time from the agent's start to its first claim, the cost of an idle agent, and that of `--help`."""
    with _running_lab(folder, FULCRUM_POLL_INTERVAL_S="2") as lab:  # the default: the lab sets a shorter one
        lab.order_service("first")
        started = time.time()
        lab.start_executor()
        claims = wait_for(lambda: lab.core.history(method="POST", path="/claim"), 60, "the claim")
        _wait_for_all(lab)
        time.sleep(5)  # after this time, the agent has ended its work for the job and is idle
        cpu_before_s, memory_mib = tree_cpu_s(lab.executor.pid), tree_pss_mib(lab.executor.pid, include_root=True)
        time.sleep(idle_s)
        cpu_s = tree_cpu_s(lab.executor.pid) - cpu_before_s
        grown_mib = tree_pss_mib(lab.executor.pid, include_root=True) - memory_mib
        return {
            "first_claim_after_s": claims[0]["time"] - started,
            "idle_share_of_a_core": cpu_s / idle_s,
            "idle_mib": memory_mib,
            "idle_grown_mib": grown_mib,
            "help_cpu_s": _help_cpu_s(),
        }


def _help_cpu_s() -> float:
    """Return the median CPU time of `smith --help` when the bytecode of its modules is cached on disk."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    costs = []
    for _ in range(6):
        command = [sys.executable, "-m", "executor", "--help"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            _pid, _status, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        costs.append(usage.ru_utime + usage.ru_stime)
    return median(costs[1:])  # the first call may have to compile the bytecode


def recovery(folder: Path, *, services: int) -> Json:
    """Kill the agent process during a burst, which its supervisor then starts again.

    Returns the time from the kill to the next poll or claim, and the time from the orders to the end of all jobs.
    """
    with _running_lab(folder) as lab:
        _start_agent(lab)
        started = time.time()
        for number in range(services):
            lab.order_service(f"killed-{number}")
        wait_for(lambda: len(lab.log_events("playbook_finished")) >= services // 3, 120, "a third of the jobs")
        children = psutil.Process(lab.executor.pid).children()
        (agent,) = [child for child in children if "agent-process" in child.cmdline()]
        killed_at = time.time()
        agent.send_signal(signal.SIGKILL)
        claimed_at = wait_for(lambda: _first_claim_after(lab, killed_at), 60, "a claim after the kill")
        _wait_for_all(lab)
        done_s = time.time() - started
        return {
            "services": services,
            "claims_again_after_s": claimed_at - killed_at,
            "all_done_s": done_s,
            "heartbeat": heartbeat_gaps(lab),
        }


def _first_claim_after(lab: LabSystem, moment: float) -> float | None:
    """Return the time of the first poll or claim after `moment`, None if there is none yet."""
    calls = [call["time"] for call in lab.core.history() if call["path"].endswith(("/claim", "/jobs/pending"))]
    return next((time_s for time_s in calls if time_s > moment), None)
