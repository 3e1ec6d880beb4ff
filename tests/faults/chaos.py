"""Chaos: runs many jobs under a random nemesis and checks that no promise is violated.

    PYTHONPATH=tests python tests/faults/chaos.py --jobs 2000 --kills 300 [--seed N]

Simulator, stand-in and the real executor run as in the other fault tests; the executor reaches both through proxies.
The seed determines the load and the faults. The operating system schedules the processes, so a replay is similar, not
identical. Exit code 0: no promise was violated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import requests
from faults.history import Allowed, violations
from faults.proxy import Proxy, running_proxy
from faults.system import RUN_VARIABLE, SystemUnderTest, running_system
from smith_lab.fulcrum_setup import AdminCallFailed

from executor.agent import crash_points

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
#: The name under which violations of a promise are counted, by its id.
KINDS = {"R1": "lost", "R2": "doubled", "R3": "contradictory", "R4": "wrong VM", "R7": "orphan processes"}
#: How many services may have an open job at the same time.
MAX_OPEN_SERVICES = 20
#: The wait before the next kill, after the agent is ready again.
PAUSE_BETWEEN_KILLS_S = (0.0, 4.0)
#: How long to wait for all jobs to end.
IDLE_TIMEOUT_S = 600.0
ORPHAN_WAIT_S = 5.0
SETTINGS = {
    "SMITH_WARM": "auto",
    "SMITH_CONCURRENCY": "8",
    "SMITH_CLONES_PER_STORAGE": "8",
    "SMITH_RECONCILE_INTERVAL_S": "20",
    "SMITH_METRICS_INTERVAL_S": "15",
    "FULCRUM_POLL_INTERVAL_S": "0.5",
}
OPEN = ("Pending", "Processing")
#: The actions of a service by its status, each with its weight.
ACTIONS = {
    "New": {"create": 1},
    "CreateFailed": {"create": 3, "delete": 1},
    "Stopped": {"start": 4, "update": 2, "snapshot": 1, "delete": 2},
    "Started": {"stop": 4, "restart": 2, "update": 1, "delete": 1},
    "Lost": {"delete": 1},
}


@dataclass
class Load:
    """Orders services and requests actions, so that MAX_OPEN_SERVICES of them have an open job."""

    system: SystemUnderTest
    rng: random.Random
    wanted: int
    requested: int = 0
    _groups: list[str] = field(default_factory=list)

    def turn(self) -> None:
        """Request jobs up to the limit. A request that an injected fault breaks is repeated in the next turn."""
        with contextlib.suppress(AdminCallFailed, requests.RequestException):
            self._request_jobs()

    def _request_jobs(self) -> None:
        services, busy = self._services()
        while self.requested < self.wanted and len(busy) < MAX_OPEN_SERVICES:
            idle = [service for service in services if service.id not in busy and service.status in ACTIONS]
            if idle and self.rng.random() < 0.7:
                service = self.rng.choice(idle)
                self._act(service)
                busy.add(service.id)
            else:
                busy.add(self._order())

    def _services(self) -> tuple[list[Any], set[str]]:
        store = self.system.lab.core.server.store
        with store.lock:
            busy = {job.service_id for job in store.jobs.values() if job.status in OPEN}
            return list(store.services.values()), busy

    def _order(self) -> str:
        lab = self.system.lab
        if len(self._groups) < MAX_OPEN_SERVICES:
            self._groups.append(lab.admin.create_group(lab.ids.consumer_id, f"tenant-{len(self._groups)}"))
        group_id, disk_gib = self.rng.choice(self._groups), self.rng.choice((8, 10, 12))
        service_id = self.system.order_service(f"chaos-{self.requested}", group_id=group_id, diskGb=disk_gib)
        self.requested += 1
        return service_id

    def _act(self, service: Any) -> None:
        choice = ACTIONS[service.status]
        action = self.rng.choices(list(choice), weights=list(choice.values()))[0]
        admin = self.system.lab.admin
        if action == "delete":
            admin.delete_service(service.id)
        elif action == "update":
            # Tags can be changed in every status; cores and memory only while stopped.
            admin.patch_service(service.id, {"tags": [f"t{self.rng.randrange(5)}"]})
        else:
            admin.start_action(service.id, action)
        self.requested += 1


@dataclass
class Nemesis:
    """Injects faults one after the other: kills, suspensions, partitions, errors and lost responses."""

    system: SystemUnderTest
    rng: random.Random
    core: Proxy
    proxmox: Proxy
    kills: int
    done: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    _next_kill_at: float = 0.0
    _next_trouble_at: float = 0.0

    @property
    def killed(self) -> int:
        return sum(count for name, count in self.done.items() if name.startswith("kill"))

    def turn(self, share_done: float) -> None:
        """Inject the faults that are due. Each kill waits until the agent is ready again, to measure R5."""
        now = time.monotonic()
        if now >= self._next_trouble_at:
            self._trouble()
            self._next_trouble_at = now + self.rng.uniform(0.5, 3.0)
        if self.killed < self.kills * share_done and now >= self._next_kill_at:
            self._kill()
            self._next_kill_at = time.monotonic() + self.rng.uniform(*PAUSE_BETWEEN_KILLS_S)

    def _kill(self) -> None:
        ways: dict[Callable[[], bool], int] = {
            self._kill_agent: 5,
            self._kill_at_crash_point: 4,
            self._kill_supervisor: 1,
            self._kill_run: 2,
            self._kill_warm_server: 1,
        }
        way = self.rng.choices(list(ways), weights=list(ways.values()))[0]
        ready, started = len(self.system.lab.log_events("agent_ready")), time.monotonic()
        if not way():
            return
        self.done[way.__name__.strip("_").replace("_", " ")] += 1
        if way not in {self._kill_run, self._kill_warm_server}:
            self.system.wait_for_log("agent_ready", ready + 1)
            self.recovery_s.append(time.monotonic() - started)

    def _kill_agent(self) -> bool:
        self.system.agent().send_signal(signal.SIGKILL)
        return True

    def _kill_at_crash_point(self) -> bool:
        died = len(self.system.lab.log_events("agent_exited"))
        self.system.set_crashes({"point": self.rng.choice(crash_points.POINTS), "subject": None, "times": 1})
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if len(self.system.lab.log_events("agent_exited")) > died:
                return True
            time.sleep(0.05)
        self.system.set_crashes()  # no process reached the crash point
        return len(self.system.lab.log_events("agent_exited")) > died

    def _kill_supervisor(self) -> bool:
        self.system.lab.executor.kill()
        self.system.lab.executor.wait()
        self.system.lab.start_executor()
        return True

    def _kill_run(self) -> bool:
        return self._kill_one_of(self.system.run_processes())

    def _kill_warm_server(self) -> bool:
        return self._kill_one_of(self.system.warm_servers())

    def _kill_one_of(self, processes: list[psutil.Process]) -> bool:
        if not processes:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.rng.choice(processes).kill()
        return True

    def _trouble(self) -> None:
        self.core.misbehave("pass")
        self.proxmox.misbehave("pass")
        troubles: dict[Callable[[], None], int] = {
            self._calm: 6,
            self._lost_response: 6,
            self._errors_of_core: 3,
            self._late_claim: 2,
            self._repeated_report: 2,
            self._errors_of_proxmox: 4,
            self._lost_clone_response: 2,
            self._failing_task: 1,
            self._partition: 3,
            self._pause: 1,
            self._time_out: 1,
        }
        trouble = self.rng.choices(list(troubles), weights=list(troubles.values()))[0]
        trouble()
        self.done[trouble.__name__.strip("_").replace("_", " ")] += 1

    def _calm(self) -> None:
        self.system.lab.core.clear_faults()
        self.system.lab.proxmox.control("clear_faults")

    def _lost_response(self) -> None:
        path = self.rng.choice((r"/claim$", r"/complete$", r"/fail$"))
        kind = self.rng.choice(("drop_after", "drop_before", "truncate"))
        self.system.lab.core.add_fault(kind, method="POST", path=path, times=self.rng.randint(1, 3))

    def _errors_of_core(self) -> None:
        status = self.rng.choice((500, 502, 503, 403, 429))
        self.system.lab.core.add_fault("status", status=status, path="^/api/", times=self.rng.randint(1, 10))

    def _late_claim(self) -> None:
        """Process a claim after the agent has given up waiting, sometimes after its next request."""
        self.system.lab.core.add_fault(
            "delay", method="POST", path=r"/claim$", times=1, delay_s=self.rng.uniform(1, 20)
        )

    def _repeated_report(self) -> None:
        """Process a report twice, as a proxy might. A repeated claim is refused: it looks like another executor's."""
        self.system.lab.core.add_fault("twice", method="POST", path=r"/(complete|fail)$", times=2)

    def _errors_of_proxmox(self) -> None:
        method, status = self.rng.choice(("GET", "POST", "PUT")), self.rng.choice((595, 502, 0))
        self.system.lab.proxmox.fail(method, "*", status=status, text="chaos", times=self.rng.randint(1, 4))

    def _lost_clone_response(self) -> None:
        self.system.lab.proxmox.fail("POST", "/nodes/*/qemu/*", status=0, text="chaos", times=1, after=True)

    def _failing_task(self) -> None:
        kind = self.rng.choice(("qmclone", "qmstart", "qmdestroy"))
        self.system.lab.proxmox.fail_task(kind, "chaos: got timeout", times=1)

    def _partition(self) -> None:
        proxy = self.rng.choice((self.core, self.proxmox))
        proxy.misbehave(self.rng.choice(("refuse", "hang", "slow")))

    def _pause(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = self.system.agent()
            agent.suspend()
            time.sleep(self.rng.uniform(0.5, 3.0))
            agent.resume()

    def _time_out(self) -> None:
        store = self.system.lab.core.server.store
        with store.lock:
            running = [job.id for job in store.jobs.values() if job.status in OPEN]
        if running:
            job_id = self.rng.choice(running)
            with contextlib.suppress(Exception):  # it may have ended meanwhile
                self.system.lab.core.expire_job(job_id)
                self.system.timed_out.add(job_id)


class Recorder:
    """Copies the calls that the check needs from the simulator's history, whose length is limited."""

    def __init__(self, system: SystemUnderTest) -> None:
        self._lab = system.lab.core.server.lab_state
        self._seen = 0
        self.calls: list[Json] = []
        self.heartbeat_times: list[float] = []

    def turn(self) -> None:
        for entry in self._lab.entries(self._seen):
            if entry["status"] is None and entry["duration_s"] is None:
                break  # still in progress: read again in the next turn
            self._seen = entry["seq"]
            if entry["method"] == "POST" and "/jobs/" in entry["path"]:
                self.calls.append(entry)
            elif entry["path"].endswith("/agents/me/status"):
                self.heartbeat_times.append(entry["time"])


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a chaos run."""

    seed: int
    took_s: float
    jobs: dict[str, int]
    codes: dict[str, int]
    done: dict[str, int]
    violation_counts: dict[str, int]
    violations: list[str]
    recovery_p50_s: float
    recovery_max_s: float
    heartbeat_gap_p99_s: float

    @property
    def promises_kept(self) -> bool:
        return not self.violations

    def text(self) -> str:
        """Return the report as text."""
        counts = ", ".join(f"{kind} {count}" for kind, count in self.violation_counts.items())
        lines = [
            f"seed {self.seed}, {self.took_s:.0f} s",
            f"jobs: {_listed(self.jobs)}",
            f"failed with: {_listed(self.codes) or 'nothing'}",
            f"nemesis: {_listed(self.done)}",
            f"claiming again after a kill: {self.recovery_p50_s:.1f} s (median), {self.recovery_max_s:.1f} s (maximum)",
            f"heartbeat gap, 99th percentile: {self.heartbeat_gap_p99_s:.1f} s",
            f"violations: {counts}",
            *self.violations[:50],
        ]
        return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def run(
    folder: Path, *, jobs: int, kills: int, seed: int, progress: Callable[[str], None] = lambda _text: None
) -> Report:
    """Run the load under the nemesis, then check all sides."""
    rng, started = random.Random(seed), time.monotonic()  # noqa: S311 (chooses faults)
    with _system_behind_proxies(folder) as (system, core, proxmox):
        load, recorder = Load(system, rng, jobs), Recorder(system)
        nemesis = Nemesis(system, rng, core, proxmox, kills)
        system.start()
        while load.requested < jobs or nemesis.killed < kills:
            load.turn()
            nemesis.turn(load.requested / jobs)
            recorder.turn()
            if load.requested >= jobs and nemesis.killed < kills:
                load.wanted = load.requested + 1  # kills need running jobs
            progress(f"{load.requested} jobs requested, {nemesis.killed} kills")
            time.sleep(0.05)
        core.misbehave("pass")
        proxmox.misbehave("pass")
        system.clear_faults()
        found = _wait_and_check(system, recorder)
        found += _orphan_processes(system)
        return _report(system, recorder, nemesis, found, seed=seed, took_s=time.monotonic() - started)


@contextmanager
def _system_behind_proxies(folder: Path) -> Iterator[tuple[SystemUnderTest, Proxy, Proxy]]:
    with running_system(folder, time_scale=0.05, **SETTINGS) as system:
        lab = system.lab
        with running_proxy(lab.core.server.port) as core, running_proxy(lab.proxmox.port) as proxmox:
            lab.settings["FULCRUM_API_URL"] = f"http://127.0.0.1:{core.port}"
            lab.settings["PROXMOX_PORT"] = str(proxmox.port)
            try:
                yield system, core, proxmox
            finally:
                lab.stop_executor(60)


def _wait_and_check(system: SystemUnderTest, recorder: Recorder) -> list[str]:
    """Wait until all jobs have ended, then return the violations."""
    problem = []
    try:
        system.until(system.is_idle, "all jobs to end", IDLE_TIMEOUT_S)
    except TimeoutError as late:
        problem = [f"R1 lost: {late}"]
    time.sleep(1)
    recorder.turn()
    facts = system.facts() | {"calls": recorder.calls}
    return problem + violations(facts, Allowed(timed_out_jobs=frozenset(system.timed_out)))


def _orphan_processes(system: SystemUnderTest) -> list[str]:
    """Stop the executor; return the processes of its runs that are still alive a moment later."""
    system.lab.stop_executor(120)
    time.sleep(ORPHAN_WAIT_S)
    marker = str(system.lab.folder)
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get(RUN_VARIABLE) and marker in environment.get("SMITH_CREDENTIALS_FILE", ""):
                orphans.append(f"R7 orphan process: {process.pid} of run {environment[RUN_VARIABLE]} is alive")
    return orphans


def _report(
    system: SystemUnderTest, recorder: Recorder, nemesis: Nemesis, found: list[str], *, seed: int, took_s: float
) -> Report:
    ended = system.lab.admin.list_all("jobs")
    codes = Counter(str(job["errorMessage"]).partition(":")[0] for job in ended if job["status"] == "Failed")
    gaps = sorted(later - earlier for earlier, later in pairwise(recorder.heartbeat_times)) or [0.0]
    back = sorted(nemesis.recovery_s) or [0.0]
    return Report(
        seed=seed,
        took_s=took_s,
        jobs=dict(Counter(job["status"] for job in ended)),
        codes=dict(codes),
        done=dict(nemesis.done),
        violation_counts={KINDS[name]: sum(text.startswith(name) for text in found) for name in KINDS},
        violations=found,
        recovery_p50_s=back[len(back) // 2],
        recovery_max_s=back[-1],
        heartbeat_gap_p99_s=gaps[int(0.99 * (len(gaps) - 1))],
    )


def main() -> int:
    """Run the chaos, print its report and write it to bench/results."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300, help="jobs to request (300)")
    parser.add_argument("--kills", type=int, default=40, help="processes to kill (40)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    wanted = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if wanted.seed is None else wanted.seed
    sys.stdout.write(
        f"seed {seed}: `make chaos JOBS={wanted.jobs} KILLS={wanted.kills} SEED={seed}` repeats this run\n"
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = run(Path(folder), jobs=wanted.jobs, kills=wanted.kills, seed=seed, progress=_progress())
    sys.stdout.write(f"\n{report.text()}\n")
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"chaos-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name, in local time)
    file.write_text(json.dumps(vars(report), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"written: {file.relative_to(ROOT)}\n")
    return 0 if report.promises_kept else 1


def _progress() -> Callable[[str], None]:
    """Return a function that prints a text at most every ten seconds."""
    printed_at = threading.local()

    def progress(text: str) -> None:
        if time.monotonic() - getattr(printed_at, "moment", 0.0) >= 10:
            printed_at.moment = time.monotonic()
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    return progress


if __name__ == "__main__":
    sys.exit(main())
