"""Runs creates on several machines while the machines fail, waits until all jobs have ended, and checks the history."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.chaos.load import Load, make_room, services_in_simulator
from faults.chaos.run import wait_until_idle
from faults.many_machines import recorder as histories
from faults.many_machines.machines import Machine, machines
from faults.many_machines.network import SERVERS
from faults.many_machines.report import Report, make_report
from faults.many_machines.troubles import Troubles
from faults.system import SystemUnderTest, running_system
from smith_lab.system import wait_for
from support.databases import postgres_binaries, postgres_cluster

MACHINES = 3
TURN_S = 0.05
#: How many creates are open at once at most, so that the other machines have free slots for a killed machine's jobs.
MAX_OPEN = 10
READY_TIMEOUT_S = 120.0
SETTINGS = {
    "SMITH_WARM": "auto",
    "SMITH_CONCURRENCY": "8",
    "SMITH_CLONES_PER_STORAGE": "24",
    "SMITH_RECONCILE_INTERVAL_S": "30",
    "SMITH_METRICS_INTERVAL_S": "30",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a trial does."""

    jobs: int
    faults: int
    seed: int
    lease_s: float
    time_scale: float  #: the number of real seconds for each second of simulated Proxmox time; a clone takes 10


def run(folder: Path, size: Size, history_file: Path, progress: Callable[[str], None]) -> Report:
    """Run the creates under faults, then check the history, which is also written to a file."""
    started, rng = time.monotonic(), random.Random(size.seed)  # noqa: S311 (chooses faults)
    with _surroundings(folder, size) as (system, trial_machines):
        recorder = trial_machines[0].recorder
        troubles = Troubles(system, trial_machines, rng, size.lease_s, size.faults)
        load = Load(
            system, rng, 0, services_in_simulator(system), actions={}, max_services=size.jobs * 2, max_open=MAX_OPEN
        )
        for machine in trial_machines:
            machine.start()
        wait_for(troubles.all_machines_work, READY_TIMEOUT_S, "all machines to work")
        try:
            violations_found = _run_load(load, troubles, size, progress)
        finally:
            troubles.end_all()
        violations_found += wait_until_idle(system, recorder)
        history = recorder.history()
        histories.write(history_file, history)
        violations_found += [text for machine in trial_machines for text in machine.stop()]
        took_s = time.monotonic() - started
        return make_report(
            history, violations_found, seed=size.seed, lease_s=size.lease_s, took_s=took_s, faults=dict(troubles.done)
        )


@contextmanager
def _surroundings(folder: Path, size: Size) -> Iterator[tuple[SystemUnderTest, list[Machine]]]:
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL server on this machine")
    with postgres_cluster(binaries, address=SERVERS["database"]) as cluster, cluster.fresh_database() as url:
        settings = SETTINGS | {"SMITH_DATABASE_URL": url, "SMITH_LEASE_S": f"{size.lease_s:g}"}
        with (
            running_system(
                folder,
                time_scale=size.time_scale,
                core_host=SERVERS["FulcrumCore"],
                proxmox_host=SERVERS["Proxmox"],
                **settings,
            ) as system,
            machines(system, MACHINES) as trial_machines,
        ):
            make_room(system)
            yield system, trial_machines


def _run_load(load: Load, troubles: Troubles, size: Size, progress: Callable[[str], None]) -> list[str]:
    """Request the creates, spread over the faults, until all are requested and all faults over; return problems."""
    while load.requested < size.jobs or not troubles.are_over:
        done = sum(troubles.done.values())
        load.wanted = max(MAX_OPEN, min(size.jobs, math.ceil(size.jobs * (done + 1) / size.faults)))
        load.wanted += troubles.wanted_jobs
        load.turn()
        troubles.turn()
        troubles.machines[0].recorder.turn()
        progress(f"{load.requested} creates requested, {done} faults")
        if ended := [machine.name for machine in troubles.machines if machine.has_ended_by_itself()]:
            return [f"R1 lost: the executor of {' and '.join(ended)} ended by itself"]
        time.sleep(TURN_S)
    return []
