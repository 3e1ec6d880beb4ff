"""Workloads (c) and (f): starts and stops of many VMs, a mixed load, an agent's start, its idle cost, a kill."""

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

from bench.burst import HEARTBEAT_PATH, OPEN, heartbeat_gaps
from bench.measuring import WorkloadFailed, median, percentile, tree_cpu_s, tree_pss_mib
from bench.seeding import Seeded, seed

Json = dict[str, Any]
TIMEOUT_S = 400.0


@contextmanager
def _started(folder: Path, **settings: str) -> Iterator[LabSystem]:
    folder.mkdir(parents=True)
    with running_lab(folder, settings=settings) as lab:
        yield lab


def _start(lab: LabSystem) -> None:
    lab.start_executor()
    wait_for(
        lambda: lab.log_events("agent_ready") and lab.core.history(method="PUT", path=HEARTBEAT_PATH),
        60,
        "the agent to start",
    )


# --- (c) a power cycle ----------------------------------------------------------------------------------------------


def power_cycle(folder: Path, vms: int) -> Json:
    """Start all VMs at once, then stop them; return rate and cost of both."""
    with _started(folder) as lab:
        seeded = seed(lab, vms)
        _start(lab)
        lab.core.clear_history()
        measured = {action: _act_on_all(lab, seeded, action) for action in ("start", "stop")}
        return {"vms": vms, **measured, "heartbeat": heartbeat_gaps(lab)}


def _act_on_all(lab: LabSystem, seeded: list[Seeded], action: str) -> Json:
    cpu, started = tree_cpu_s(lab.executor.pid), time.monotonic()
    for each in seeded:
        lab.admin.start_action(each.service_id, action)
    _wait_for_all(lab)
    took_s, cpu = time.monotonic() - started, tree_cpu_s(lab.executor.pid) - cpu
    return {"all_done_s": took_s, "jobs_per_min": 60 * len(seeded) / took_s, "cpu_s_per_job": cpu / len(seeded)}


def _wait_for_all(lab: LabSystem) -> None:
    """Wait until all jobs have ended. Raises WorkloadFailed if one failed."""
    store = lab.core.server.store

    def have_ended() -> bool:
        with store.lock:
            return all(job.status not in OPEN for job in store.jobs.values())

    wait_for(have_ended, TIMEOUT_S, "all jobs to end", interval_s=0.2)
    with store.lock:
        failed = [job.error_message for job in store.jobs.values() if job.status == "Failed"]
    if failed:
        raise WorkloadFailed(f"{len(failed)} jobs failed: {failed[0]}")


# --- (c) a mixed load -----------------------------------------------------------------------------------------------

#: The possible actions by the status of the service.
ACTIONS_BY_STATUS = {"Stopped": ("start", "update"), "Started": ("stop", "restart", "update")}


def mixed_load(folder: Path, *, vms: int, per_s: float, seconds: float) -> Json:
    """Request one action after the other at random times; return waits, durations and cost."""
    rng = random.Random(4711)  # noqa: S311  the same load in every run
    with _started(folder) as lab:
        seeded = seed(lab, vms)
        _start(lab)
        lab.core.clear_history()
        cpu, until = tree_cpu_s(lab.executor.pid), time.monotonic() + seconds
        requested = 0
        while time.monotonic() < until:
            requested += _request_action(lab, rng.choice(seeded), rng)
            time.sleep(rng.expovariate(per_s))
        _wait_for_all(lab)
        cpu = tree_cpu_s(lab.executor.pid) - cpu
        costs = {"cpu_s_per_job": cpu / max(requested, 1), "heartbeat": heartbeat_gaps(lab)}
        return {"vms": vms, "asked_per_min": 60 * per_s, "jobs": requested, **_waits(lab), **costs}


def _request_action(lab: LabSystem, vm: Seeded, rng: random.Random) -> int:
    """Request a random action, unless the service has an open job; return the number of requests."""
    store = lab.core.server.store
    with store.lock:
        if any(job.status in OPEN for job in store.jobs.values() if job.service_id == vm.service_id):
            return 0
        status = store.services[vm.service_id].status
    action = rng.choice(ACTIONS_BY_STATUS[status])
    if action == "update":
        lab.admin.patch_service(vm.service_id, {"tags": [f"t{rng.randrange(1000)}"]})
    else:
        lab.admin.start_action(vm.service_id, action)
    return 1


def _waits(lab: LabSystem) -> Json:
    """Return how long jobs waited and took in all, from the calls that FulcrumCore received."""
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


# --- (f) start, idle, recovery --------------------------------------------------------------------------------------


def start_and_idle(folder: Path, *, idle_s: float) -> Json:
    """Return the time from the start to the first claim, the cost of an idle agent, and the cost of `--help`."""
    with _started(folder, FULCRUM_POLL_INTERVAL_S="2") as lab:  # the default, not the lab's shorter one
        lab.order_service("waiting")
        started = time.time()
        lab.start_executor()
        claims = wait_for(lambda: lab.core.history(method="POST", path="/claim"), 60, "the claim")
        _wait_for_all(lab)
        time.sleep(5)  # the work that follows a job is not idle cost
        cpu, memory_mib = tree_cpu_s(lab.executor.pid), tree_pss_mib(lab.executor.pid, include_root=True)
        time.sleep(idle_s)
        cpu = tree_cpu_s(lab.executor.pid) - cpu
        grown_mib = tree_pss_mib(lab.executor.pid, include_root=True) - memory_mib
        return {
            "claims_after_s": claims[0]["time"] - started,
            "idle_share_of_a_core": cpu / idle_s,
            "idle_mib": memory_mib,
            "idle_grown_mib": grown_mib,
            "help_cpu_s": _help_cpu_s(),
        }


def _help_cpu_s() -> float:
    """Return the median CPU time of `smith --help`, with its bytecode cached on disk."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    costs = []
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-m", "executor", "--help"], env=environment, stdout=-3) as process:
            _pid, _status, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        costs.append(usage.ru_utime + usage.ru_stime)
    return median(costs[1:])


def recovery(folder: Path, *, services: int) -> Json:
    """Kill the agent during a burst; return the time until it claims again, and until all jobs have ended."""
    with _started(folder) as lab:
        _start(lab)
        started = time.time()
        for number in range(services):
            lab.order_service(f"killed-{number}")
        wait_for(lambda: len(lab.log_events("playbook_finished")) >= services // 3, 120, "a third of the jobs")
        children = psutil.Process(lab.executor.pid).children()
        (agent,) = [child for child in children if "agent-process" in child.cmdline()]
        killed_at = time.time()
        agent.send_signal(signal.SIGKILL)
        claimed_at = wait_for(lambda: _claims_after(lab, killed_at), 60, "a claim after the kill")
        _wait_for_all(lab)
        done_s = time.time() - started
        return {
            "services": services,
            "claims_again_s": claimed_at - killed_at,
            "all_done_s": done_s,
            "heartbeat": heartbeat_gaps(lab),
        }


def _claims_after(lab: LabSystem, moment: float) -> float | None:
    """Return the time of the first poll or claim after a moment."""
    calls = [call["time"] for call in lab.core.history() if call["path"].endswith(("/claim", "/jobs/pending"))]
    return next((time_s for time_s in calls if time_s > moment), None)
