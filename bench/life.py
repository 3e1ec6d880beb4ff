"""Workloads (c) and (f): many VMs switched on and off, a mixed load, a start, an idle while, a kill."""

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
from bench.measuring import WorkloadBroke, median, percentile, tree_cpu_s, tree_pss_mib
from bench.seeding import Seeded, seed

Json = dict[str, Any]
WITHIN_S = 400.0


@contextmanager
def _started(folder: Path, **settings: str) -> Iterator[LabSystem]:
    folder.mkdir(parents=True)
    with running_lab(folder, settings=settings) as lab:
        yield lab


def _start(lab: LabSystem) -> None:
    lab.start_executor()
    wait_for(lambda: lab.log_events("agent_ready") and lab.core.history(method="PUT", path=HEARTBEAT_PATH), 60, "it")


# --- (c) a power cycle ----------------------------------------------------------------------------------------------


def power_cycle(folder: Path, vms: int) -> Json:
    """Start all VMs at once, then stop them; return rate and cost of each half."""
    with _started(folder) as lab:
        seeded = seed(lab, vms)
        _start(lab)
        lab.core.clear_history()
        halves = {action: _all(lab, seeded, action) for action in ("start", "stop")}
        return {"vms": vms, **halves, "heartbeat": heartbeat_gaps(lab)}


def _all(lab: LabSystem, seeded: list[Seeded], action: str) -> Json:
    cpu, began = tree_cpu_s(lab.executor.pid), time.monotonic()
    for each in seeded:
        lab.admin.action(each.service_id, action)
    _settle(lab)
    took, cpu = time.monotonic() - began, tree_cpu_s(lab.executor.pid) - cpu
    return {"all_done_s": took, "jobs_per_min": 60 * len(seeded) / took, "cpu_s_per_job": cpu / len(seeded)}


def _settle(lab: LabSystem) -> None:
    store = lab.core.server.store

    def is_settled() -> bool:
        with store.lock:
            return all(job.status not in OPEN for job in store.jobs.values())

    wait_for(is_settled, WITHIN_S, "all jobs to end", pause_s=0.2)
    with store.lock:
        failed = [job.error_message for job in store.jobs.values() if job.status == "Failed"]
    if failed:
        raise WorkloadBroke(f"{len(failed)} jobs failed: {failed[0]}")


# --- (c) a mixed load -----------------------------------------------------------------------------------------------

#: What is asked of a VM by the state that its service is in.
MIX = {"Stopped": ("start", "update"), "Started": ("stop", "restart", "update")}


def mixed_load(folder: Path, *, vms: int, per_s: float, seconds: float) -> Json:
    """Ask for one action after the other, at random moments; return waits, lives and cost."""
    rng = random.Random(4711)  # noqa: S311  the same load in every run
    with _started(folder) as lab:
        seeded = seed(lab, vms)
        _start(lab)
        lab.core.clear_history()
        cpu, until = tree_cpu_s(lab.executor.pid), time.monotonic() + seconds
        asked = 0
        while time.monotonic() < until:
            asked += _ask_for_something(lab, rng.choice(seeded), rng)
            time.sleep(rng.expovariate(per_s))
        _settle(lab)
        cpu = tree_cpu_s(lab.executor.pid) - cpu
        costs = {"cpu_s_per_job": cpu / max(asked, 1), "heartbeat": heartbeat_gaps(lab)}
        return {"vms": vms, "asked_per_min": 60 * per_s, "jobs": asked, **_waits(lab), **costs}


def _ask_for_something(lab: LabSystem, one: Seeded, rng: random.Random) -> int:
    store = lab.core.server.store
    with store.lock:
        if any(job.status in OPEN for job in store.jobs.values() if job.service_id == one.service_id):
            return 0
        status = store.services[one.service_id].status
    action = rng.choice(MIX[status])
    if action == "update":
        lab.admin.patch_service(one.service_id, {"tags": [f"t{rng.randrange(1000)}"]})
    else:
        lab.admin.action(one.service_id, action)
    return 1


def _waits(lab: LabSystem) -> Json:
    """Return how long jobs waited and lived in all, by the calls that FulcrumCore got."""
    calls = lab.core.history(method="POST")
    claimed = {call["path"].split("/")[-2]: call["time"] for call in calls if call["path"].endswith("/claim")}
    ended = {call["path"].split("/")[-2]: call["time"] for call in calls if call["path"].endswith("/complete")}
    created = {job.id: job.created_at for job in lab.core.server.store.jobs.values()}
    waits = [claimed[job] - created[job] for job in ended if job in claimed]
    lives = [ended[job] - created[job] for job in ended if job in claimed]
    return {
        "wait_median_s": median(waits),
        "wait_p95_s": percentile(waits, 0.95),
        "job_median_s": median(lives),
        "job_p95_s": percentile(lives, 0.95),
    }


# --- (f) start, idle, recovery --------------------------------------------------------------------------------------


def start_and_idle(folder: Path, *, idle_s: float) -> Json:
    """Return how soon a fresh executor claims a job that waits, what `--help` costs, and what it costs to wait."""
    with _started(folder, FULCRUM_POLL_INTERVAL_S="2") as lab:  # as an operator would have it, not as a lab
        lab.order("waiting")
        began = time.time()
        lab.start_executor()
        claims = wait_for(lambda: lab.core.history(method="POST", path="/claim"), 60, "the claim")
        _settle(lab)
        time.sleep(5)  # what follows the job is not idling
        cpu, memory_mib = tree_cpu_s(lab.executor.pid), tree_pss_mib(lab.executor.pid, itself=True)
        time.sleep(idle_s)
        cpu = tree_cpu_s(lab.executor.pid) - cpu
        grown_mib = tree_pss_mib(lab.executor.pid, itself=True) - memory_mib
        return {
            "claims_after_s": claims[0]["time"] - began,
            "idle_share_of_a_core": cpu / idle_s,
            "idle_mib": memory_mib,
            "idle_grown_mib": grown_mib,
            "help_cpu_s": _cost_of_help(),
        }


def _cost_of_help() -> float:
    """Return the CPU of `smith --help`, the middle of several, with its bytecode on disk."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    costs = []
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-m", "executor", "--help"], env=environment, stdout=-3) as process:
            _pid, _status, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        costs.append(usage.ru_utime + usage.ru_stime)
    return median(costs[1:])


def recovery(folder: Path, *, services: int) -> Json:
    """Kill the agent in the middle of a burst; return how soon it claims again, and when all is done."""
    with _started(folder) as lab:
        _start(lab)
        began = time.time()
        for number in range(services):
            lab.order(f"killed-{number}")
        wait_for(lambda: len(lab.log_events("playbook_finished")) >= services // 3, 120, "a third of the jobs")
        children = psutil.Process(lab.executor.pid).children()
        (agent,) = [child for child in children if "agent-process" in child.cmdline()]
        killed_at = time.time()
        agent.send_signal(signal.SIGKILL)
        again = wait_for(lambda: _claims_after(lab, killed_at), 60, "a claim after the kill")
        _settle(lab)
        done_s = time.time() - began
        return {
            "services": services,
            "claims_again_s": again - killed_at,
            "all_done_s": done_s,
            "heartbeat": heartbeat_gaps(lab),
        }


def _claims_after(lab: LabSystem, moment: float) -> float | None:
    """Return when it first asked for work again."""
    calls = [call["time"] for call in lab.core.history() if call["path"].endswith(("/claim", "/jobs/pending"))]
    return next((at for at in calls if at > moment), None)
