"""Runs the load of a chaos run under its faults, waits until all jobs have ended, and makes the final check:
FulcrumCore, our database and Proxmox must agree."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from faults.chaos.databases import Database, SqliteFile, running_postgres
from faults.chaos.killer import Killer
from faults.chaos.load import Load, make_room, services_in_simulator
from faults.chaos.recorder import Recorder
from faults.chaos.report import Report, make_report
from faults.chaos.troubles import Troubles
from faults.history import Allowed, violations
from faults.processes import processes_of_folder
from faults.proxy import Proxy, running_proxy
from faults.system import SystemUnderTest, running_system
from support import small_disks
from support.small_disks import SmallDisk

#: How long to wait for all jobs to end.
IDLE_TIMEOUT_S = 600.0
ORPHAN_WAIT_S = 5.0
TURN_S = 0.05
SETTINGS = {
    "SMITH_WARM": "auto",
    "SMITH_CONCURRENCY": "8",
    "SMITH_CLONES_PER_STORAGE": "8",
    "SMITH_RECONCILE_INTERVAL_S": "20",
    "SMITH_METRICS_INTERVAL_S": "15",
    "FULCRUM_POLL_INTERVAL_S": "0.5",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a chaos run does, and on which database."""

    jobs: int
    kills: int
    seed: int
    database: str = "sqlite"
    #: Why no small file systems can be mounted; '' if they can. Then a full data or run folder is a fault, too.
    no_small_disks_reason: str = ""


@dataclass(frozen=True)
class _Surroundings:
    """The system under test, and what faults are injected with: proxies, the database and small disks."""

    system: SystemUnderTest
    core: Proxy
    proxmox: Proxy
    database: Database
    disks: dict[str, SmallDisk]


def run(folder: Path, size: Size, progress: Callable[[str], None] = lambda _text: None) -> Report:
    """Run the load under its faults, then check all sides."""
    rng, started = random.Random(size.seed), time.monotonic()  # noqa: S311 (chooses faults)
    with _surroundings(folder, size) as surroundings:
        system = surroundings.system
        troubles = Troubles(
            system, rng, surroundings.core, surroundings.proxmox, surroundings.database, surroundings.disks
        )
        load = Load(system, rng, size.jobs, services_in_simulator(system))
        recorder = Recorder(system, system.lab.core.server.faults_and_history.entries)
        killer = Killer(system, rng, troubles, size.kills, recorder.turn)
        system.start()
        try:
            violations_found = _run_load(load, recorder, killer, size, progress)
        finally:
            troubles.end_all()
        violations_found += [*wait_until_idle(system, recorder), *check_all_sides(system, recorder)]
        jobs = system.lab.admin.list_all("jobs")
        violations_found += orphan_processes(system)
        return make_report(
            jobs,
            recorder,
            kills=dict(killer.done),
            recovery_s=killer.recovery_s,
            troubles=dict(troubles.done),
            seed=size.seed,
            database=size.database,
            took_s=time.monotonic() - started,
            violations=violations_found,
            not_tested=[f"full folders: {size.no_small_disks_reason}"] if size.no_small_disks_reason else [],
        )


def _run_load(load: Load, recorder: Recorder, killer: Killer, size: Size, progress: Callable[[str], None]) -> list[str]:
    """Request the jobs under faults until all jobs are requested and all kills done; return why if it ends early."""
    lab = load.system.lab
    while load.requested < size.jobs or killer.killed < size.kills:
        load.turn()
        killer.troubles.turn()
        killer.turn(load.requested / size.jobs)
        recorder.turn()
        if load.requested >= size.jobs and killer.killed < size.kills:
            load.wanted = load.requested + 1  # a kill needs running jobs
        progress(f"{load.requested} jobs requested, {killer.killed} kills")
        if lab.executor.poll() is not None:
            return [f"R1 lost: the executor ended by itself with code {lab.executor.returncode}"]
        time.sleep(TURN_S)
    return []


@contextmanager
def _surroundings(folder: Path, size: Size) -> Iterator[_Surroundings]:
    with ExitStack() as stack:
        settings, disks = dict(SETTINGS), {}
        if not size.no_small_disks_reason:
            for name, mib in (("data", small_disks.DATA_MIB), ("run", small_disks.RUN_MIB)):
                disks[name] = small_disks.mount_small_disk(folder / f"disk-{name}", mib)
                stack.callback(small_disks.unmount, disks[name])
                settings[f"SMITH_{name.upper()}_DIR"] = str(disks[name].folder)
        settings["SMITH_DATA_DIR"] = settings.pop("SMITH_DATA_DIR", str(folder / "data"))
        database: Database = SqliteFile(Path(settings["SMITH_DATA_DIR"]) / "smith.db")
        if size.database == "postgresql":
            settings["SMITH_DATABASE_URL"], database = stack.enter_context(running_postgres())
        system = stack.enter_context(running_system(folder, time_scale=0.05, **settings))
        make_room(system)
        core = stack.enter_context(running_proxy(system.lab.core.server.port))
        proxmox = stack.enter_context(running_proxy(system.lab.proxmox.port))
        system.lab.settings["FULCRUM_API_URL"] = f"http://127.0.0.1:{core.port}"
        system.lab.settings["PROXMOX_PORT"] = str(proxmox.port)
        stack.callback(_stop, system, database)
        yield _Surroundings(system, core, proxmox, database, disks)


def _stop(system: SystemUnderTest, database: Database) -> None:
    database.make_available()  # without its database, the executor would not end
    if system.lab._executor is not None:
        system.lab.stop_executor(60)


def wait_until_idle(system: SystemUnderTest, recorder: Recorder) -> list[str]:
    """Wait until all jobs have ended. Return a violation if they do not end in time."""
    problem = []
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while not system.is_idle():
        recorder.turn()
        if time.monotonic() > deadline:
            problem = [f"R1 lost: waited {IDLE_TIMEOUT_S:.0f} s for all jobs to end"]
            break
        time.sleep(0.2)
    time.sleep(1)
    recorder.turn()
    return problem


def check_all_sides(system: SystemUnderTest, recorder: Recorder) -> list[str]:
    """Return the violations that FulcrumCore's state, our rows and the stand-in's guests show."""
    facts = system.facts(recorder.calls)
    allowed = Allowed(timed_out_jobs=frozenset(system.timed_out))
    return violations(facts, allowed) + recorder.overlapping_runs()


def orphan_processes(system: SystemUnderTest) -> list[str]:
    """Stop the executor; return the processes of its runs that are still alive a moment later."""
    system.lab.stop_executor(120)
    time.sleep(ORPHAN_WAIT_S)
    orphans = []
    for process in processes_of_folder(system.lab.folder, with_servers=True):
        with contextlib.suppress(psutil.Error):
            orphans.append(f"R7 orphan process: {process.pid} is alive: {process.cmdline()}")
    return orphans
