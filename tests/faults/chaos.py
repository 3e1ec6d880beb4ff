"""Chaos: a load of jobs under a random nemesis, and the proof that nothing was lost, doubled, contradicted or harmed.

    PYTHONPATH=tests python tests/faults/chaos.py --jobs 2000 --kills 300 [--seed N]

Simulator, stand-in and the real executor run as in the other fault tests; the executor reaches both through proxies.
The seed chooses everything that is chosen here; how the processes interleave is the machine's, so a replay is alike,
not equal. Exit code 0: every promise held.
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
from faults.rig import RUN_MARK, Rig, running_rig
from smith_lab.fulcrum_setup import SetupRefused

from executor.agent import crash_points

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
#: What the promises are counted under, by the first word of a violation.
KINDS = {"R1": "lost", "R2": "doubled", "R3": "contradictory", "R4": "wrong VM", "R7": "strays"}
#: As many services may have an open job at a time.
AT_ONCE = 20
#: Kills come after the agent works again, and this much later.
CALM_S = (0.0, 4.0)
#: Past this the run is given up, however far it is.
REST_S = 600.0
STRAY_S = 5.0
SETTINGS = {
    "SMITH_WARM": "auto",
    "SMITH_CONCURRENCY": "8",
    "SMITH_CLONES_PER_STORAGE": "8",
    "SMITH_RECONCILE_INTERVAL_S": "20",
    "SMITH_METRICS_INTERVAL_S": "15",
    "FULCRUM_POLL_INTERVAL_S": "0.5",
}
OPEN = ("Pending", "Processing")
#: What may be asked of a service in a state, and how often.
ACTIONS = {
    "New": {"create": 1},
    "CreateFailed": {"create": 3, "delete": 1},
    "Stopped": {"start": 4, "update": 2, "snapshot": 1, "delete": 2},
    "Started": {"stop": 4, "restart": 2, "update": 1, "delete": 1},
    "Lost": {"delete": 1},
}


@dataclass
class Load:
    """Orders services and asks for actions, so that about as many as wanted are open at any time."""

    rig: Rig
    rng: random.Random
    wanted: int
    asked: int = 0
    _groups: list[str] = field(default_factory=list)

    def turn(self) -> None:
        """Ask for as much as is missing. What the nemesis spoils for the executor, it may spoil for us."""
        with contextlib.suppress(SetupRefused, requests.RequestException):
            self._ask()

    def _ask(self) -> None:
        services, busy = self._services()
        while self.asked < self.wanted and len(busy) < AT_ONCE:
            idle = [service for service in services if service.id not in busy and service.status in ACTIONS]
            if idle and self.rng.random() < 0.7:
                service = self.rng.choice(idle)
                self._act(service)
                busy.add(service.id)
            else:
                busy.add(self._order())

    def _services(self) -> tuple[list[Any], set[str]]:
        store = self.rig.lab.core.server.store
        with store.lock:
            busy = {job.service_id for job in store.jobs.values() if job.status in OPEN}
            return list(store.services.values()), busy

    def _order(self) -> str:
        lab = self.rig.lab
        if len(self._groups) < AT_ONCE:
            self._groups.append(lab.admin.create_group(lab.ids.consumer_id, f"tenant-{len(self._groups)}"))
        group_id, disk_gib = self.rng.choice(self._groups), self.rng.choice((8, 10, 12))
        service_id = self.rig.order(f"chaos-{self.asked}", group_id=group_id, diskGb=disk_gib)
        self.asked += 1
        return service_id

    def _act(self, service: Any) -> None:
        choice = ACTIONS[service.status]
        action = self.rng.choices(list(choice), weights=list(choice.values()))[0]
        admin = self.rig.lab.admin
        if action == "delete":
            admin.delete_service(service.id)
        elif action == "update":
            # Only what every state allows: cores and memory are for stopped ones.
            admin.patch_service(service.id, {"tags": [f"t{self.rng.randrange(5)}"]})
        else:
            admin.action(service.id, action)
        self.asked += 1


@dataclass
class Nemesis:
    """Kills, pauses, partitions and lies, one after the other."""

    rig: Rig
    rng: random.Random
    core: Proxy
    proxmox: Proxy
    kills: int
    done: Counter[str] = field(default_factory=Counter)
    back_after_s: list[float] = field(default_factory=list)
    _next_kill_at: float = 0.0
    _next_trouble_at: float = 0.0

    @property
    def killed(self) -> int:
        return sum(count for name, count in self.done.items() if name.startswith("kill"))

    def turn(self, share_done: float) -> None:
        """Do what is due. Kills keep pace with the load, and each waits until the executor is back: R5 is measured."""
        now = time.monotonic()
        if now >= self._next_trouble_at:
            self._trouble()
            self._next_trouble_at = now + self.rng.uniform(0.5, 3.0)
        if self.killed < self.kills * share_done and now >= self._next_kill_at:
            self._kill()
            self._next_kill_at = time.monotonic() + self.rng.uniform(*CALM_S)

    def _kill(self) -> None:
        ways: dict[Callable[[], bool], int] = {
            self._kill_agent: 5,
            self._kill_at_a_point: 4,
            self._kill_supervisor: 1,
            self._kill_run: 2,
            self._kill_warm_server: 1,
        }
        way = self.rng.choices(list(ways), weights=list(ways.values()))[0]
        ready, started = len(self.rig.lab.log_events("agent_ready")), time.monotonic()
        if not way():
            return
        self.done[way.__name__.strip("_").replace("_", " ")] += 1
        if way not in {self._kill_run, self._kill_warm_server}:
            self.rig.logged("agent_ready", ready + 1)
            self.back_after_s.append(time.monotonic() - started)

    def _kill_agent(self) -> bool:
        self.rig.agent().send_signal(signal.SIGKILL)
        return True

    def _kill_at_a_point(self) -> bool:
        died = len(self.rig.lab.log_events("agent_exited"))
        self.rig.arm({"point": self.rng.choice(crash_points.POINTS), "subject": None, "times": 1})
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if len(self.rig.lab.log_events("agent_exited")) > died:
                return True
            time.sleep(0.05)
        self.rig.arm()  # nothing came to the point
        return len(self.rig.lab.log_events("agent_exited")) > died

    def _kill_supervisor(self) -> bool:
        self.rig.lab.executor.kill()
        self.rig.lab.executor.wait()
        self.rig.lab.start_executor()
        return True

    def _kill_run(self) -> bool:
        return self._kill_one_of(self.rig.run_processes())

    def _kill_warm_server(self) -> bool:
        return self._kill_one_of(self.rig.warm_servers())

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
            self._lost_answer: 6,
            self._errors_of_core: 3,
            self._repeated_claim: 2,
            self._errors_of_proxmox: 4,
            self._lost_clone_answer: 2,
            self._failing_task: 1,
            self._partition: 3,
            self._pause: 1,
            self._time_out: 1,
        }
        trouble = self.rng.choices(list(troubles), weights=list(troubles.values()))[0]
        trouble()
        self.done[trouble.__name__.strip("_").replace("_", " ")] += 1

    def _calm(self) -> None:
        self.rig.lab.core.clear_faults()
        self.rig.lab.proxmox.control("clear_faults")

    def _lost_answer(self) -> None:
        path = self.rng.choice((r"/claim$", r"/complete$", r"/fail$"))
        kind = self.rng.choice(("drop_after", "drop_before", "truncate"))
        self.rig.lab.core.fault(kind, method="POST", path=path, times=self.rng.randint(1, 3))

    def _errors_of_core(self) -> None:
        status = self.rng.choice((500, 502, 503, 403, 429))
        self.rig.lab.core.fault("status", status=status, path="^/api/", times=self.rng.randint(1, 10))

    def _repeated_claim(self) -> None:
        self.rig.lab.core.fault("twice", method="POST", path=r"/claim$", times=2)

    def _errors_of_proxmox(self) -> None:
        method, status = self.rng.choice(("GET", "POST", "PUT")), self.rng.choice((595, 502, 0))
        self.rig.lab.proxmox.fail(method, "*", status=status, text="chaos", times=self.rng.randint(1, 4))

    def _lost_clone_answer(self) -> None:
        self.rig.lab.proxmox.fail("POST", "/nodes/*/qemu/*", status=0, text="chaos", times=1, after=True)

    def _failing_task(self) -> None:
        kind = self.rng.choice(("qmclone", "qmstart", "qmdestroy"))
        self.rig.lab.proxmox.fail_task(kind, "chaos: got timeout", times=1)

    def _partition(self) -> None:
        proxy = self.rng.choice((self.core, self.proxmox))
        proxy.misbehave(self.rng.choice(("refuse", "hang", "slow")))

    def _pause(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = self.rig.agent()
            agent.suspend()
            time.sleep(self.rng.uniform(0.5, 3.0))
            agent.resume()

    def _time_out(self) -> None:
        store = self.rig.lab.core.server.store
        with store.lock:
            running = [job.id for job in store.jobs.values() if job.status in OPEN]
        if running:
            job_id = self.rng.choice(running)
            with contextlib.suppress(Exception):  # it ended at this very moment
                self.rig.lab.core.expire_job(job_id)
                self.rig.timed_out.add(job_id)


class Recorder:
    """Keeps what the checker needs of the simulator's history, which is bounded."""

    def __init__(self, rig: Rig) -> None:
        self._lab = rig.lab.core.server.lab
        self._seen = 0
        self.calls: list[Json] = []
        self.beats: list[float] = []

    def turn(self) -> None:
        for entry in self._lab.entries(self._seen):
            if entry["status"] is None and entry["duration_s"] is None:
                break  # still under way: it is looked at again
            self._seen = entry["seq"]
            if entry["method"] == "POST" and "/jobs/" in entry["path"]:
                self.calls.append(entry)
            elif entry["path"].endswith("/agents/me/status"):
                self.beats.append(entry["time"])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it."""

    seed: int
    took_s: float
    jobs: dict[str, int]
    codes: dict[str, int]
    done: dict[str, int]
    broken: dict[str, int]
    violations: list[str]
    back_p50_s: float
    back_max_s: float
    beat_gap_p99_s: float

    @property
    def kept(self) -> bool:
        return not self.violations

    def text(self) -> str:
        """Return it for people."""
        counts = ", ".join(f"{kind} {count}" for kind, count in self.broken.items())
        lines = [
            f"seed {self.seed}, {self.took_s:.0f} s",
            f"jobs: {_listed(self.jobs)}",
            f"failed with: {_listed(self.codes) or 'nothing'}",
            f"nemesis: {_listed(self.done)}",
            f"claiming again after a kill: {self.back_p50_s:.1f} s in the middle, {self.back_max_s:.1f} s at most",
            f"heartbeat gap, 99th percentile: {self.beat_gap_p99_s:.1f} s",
            f"broken promises: {counts}",
            *self.violations[:50],
        ]
        return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def run(folder: Path, *, jobs: int, kills: int, seed: int, say: Callable[[str], None] = lambda _text: None) -> Report:
    """Put the load under the nemesis and check what is left."""
    rng, started = random.Random(seed), time.monotonic()  # noqa: S311 (chooses faults)
    with _proxied_rig(folder) as (rig, core, proxmox):
        load, recorder = Load(rig, rng, jobs), Recorder(rig)
        nemesis = Nemesis(rig, rng, core, proxmox, kills)
        rig.start()
        while load.asked < jobs or nemesis.killed < kills:
            load.turn()
            nemesis.turn(load.asked / jobs)
            recorder.turn()
            if load.asked >= jobs and nemesis.killed < kills:
                load.wanted = load.asked + 1  # something to kill must go on
            say(f"{load.asked} jobs asked for, {nemesis.killed} kills")
            time.sleep(0.05)
        core.misbehave("pass")
        proxmox.misbehave("pass")
        rig.heal()
        found = _rest(rig, recorder)
        found += _strays(rig)
        return _report(rig, recorder, nemesis, found, seed=seed, took_s=time.monotonic() - started)


@contextmanager
def _proxied_rig(folder: Path) -> Iterator[tuple[Rig, Proxy, Proxy]]:
    with running_rig(folder, time_scale=0.05, **SETTINGS) as rig:
        lab = rig.lab
        with running_proxy(lab.core.server.port) as core, running_proxy(lab.proxmox.port) as proxmox:
            lab.settings["FULCRUM_API_URL"] = f"http://127.0.0.1:{core.port}"
            lab.settings["PROXMOX_PORT"] = str(proxmox.port)
            try:
                yield rig, core, proxmox
            finally:
                lab.stop_executor(60)


def _rest(rig: Rig, recorder: Recorder) -> list[str]:
    """Wait until everything has ended, then compare the three sides."""
    problem = []
    try:
        rig.until(rig.is_at_rest, "everything to end", REST_S)
    except TimeoutError as late:
        problem = [f"R1 lost: {late}"]
    time.sleep(1)
    recorder.turn()
    facts = rig.facts() | {"calls": recorder.calls}
    return problem + violations(facts, Allowed(timed_out_jobs=frozenset(rig.timed_out)))


def _strays(rig: Rig) -> list[str]:
    """Stop the executor: a moment later nothing that it started is alive."""
    rig.lab.stop_executor(120)
    time.sleep(STRAY_S)
    marker = str(rig.lab.folder)
    strays = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get(RUN_MARK) and marker in environment.get("SMITH_CREDENTIALS_FILE", ""):
                strays.append(f"R7 strays: process {process.pid} of run {environment[RUN_MARK]} is alive")
    return strays


def _report(rig: Rig, recorder: Recorder, nemesis: Nemesis, found: list[str], *, seed: int, took_s: float) -> Report:
    ended = rig.lab.admin.list_all("jobs")
    codes = Counter(str(job["errorMessage"]).partition(":")[0] for job in ended if job["status"] == "Failed")
    gaps = sorted(later - earlier for earlier, later in pairwise(recorder.beats)) or [0.0]
    back = sorted(nemesis.back_after_s) or [0.0]
    return Report(
        seed=seed,
        took_s=took_s,
        jobs=dict(Counter(job["status"] for job in ended)),
        codes=dict(codes),
        done=dict(nemesis.done),
        broken={KINDS[name]: sum(text.startswith(name) for text in found) for name in KINDS},
        violations=found,
        back_p50_s=back[len(back) // 2],
        back_max_s=back[-1],
        beat_gap_p99_s=gaps[int(0.99 * (len(gaps) - 1))],
    )


def main() -> int:
    """Run it, show the report, and write it to bench/results."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300, help="jobs to ask for (300)")
    parser.add_argument("--kills", type=int, default=40, help="processes to kill (40)")
    parser.add_argument("--seed", type=int, default=None, help="what to choose by; a new one each time")
    wanted = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if wanted.seed is None else wanted.seed
    sys.stdout.write(f"seed {seed}: `make chaos JOBS={wanted.jobs} KILLS={wanted.kills} SEED={seed}` plays it again\n")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = run(Path(folder), jobs=wanted.jobs, kills=wanted.kills, seed=seed, say=_progress())
    sys.stdout.write(f"\n{report.text()}\n")
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"chaos-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name, for people here)
    file.write_text(json.dumps(vars(report), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"written: {file.relative_to(ROOT)}\n")
    return 0 if report.kept else 1


def _progress() -> Callable[[str], None]:
    """Say something new every ten seconds."""
    said_at = threading.local()

    def say(text: str) -> None:
        if time.monotonic() - getattr(said_at, "moment", 0.0) >= 10:
            said_at.moment = time.monotonic()
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
