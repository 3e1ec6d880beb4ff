"""Runs the workloads of `make bench`, which measure the cost of jobs and the cost of the baselines.

The exit code is 1 only if a job of a workload fails. BENCH_QUICK=1 is a smoke test of two minutes: its workloads are
smaller, so their figures are less reliable. `--only` selects workloads: runs, bursts, rows, life, day, soak. The
workload soak does thousands of warm runs, and is run only when it is selected.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from smith_lab.proxmox.stand_in import running_stand_in

from bench import burst, day, floor, job_rows, life, plots, report, runs, serial, soak
from bench.measuring import ROOT, WorkloadFailed, machine_facts

Json = dict[str, Any]
RESULTS = ROOT / "bench" / "results"
WORKLOADS = ("runs", "bursts", "rows", "life", "day", "soak")
DEFAULT_WORKLOADS = WORKLOADS[:-1]
#: The modes of a playbook run; bench/one_mode.py explains them.
MODES = ("plain", "cold", "warm")
#: The width of the tables when the output is not a terminal.
LOG_WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class Burst:
    """A workload of creates that are ordered at the same time."""

    services: int  #: number of creates
    clone_s: float  #: duration of each clone in the Proxmox stand-in
    settings: dict[str, str] = field(default_factory=dict)  #: settings of the agent that differ from the defaults
    #: 0 if the agent runs the burst. Otherwise ansible-runner runs the burst without the agent, and this is the number
    #: of creates that run in parallel.
    plain_slots: int = 0
    label: str = "default settings"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of all workloads."""

    rounds: int  #: measured cycles of create, start, stop, delete in each mode
    warm_up: bool  #: True if one cycle that is not measured runs first
    slots: int  #: number of creates that run in parallel in a burst without the agent
    runner_burst: int  #: number of creates in a burst without the agent
    bursts: tuple[Burst, ...]
    rows: tuple[int, ...]  #: the numbers of rows in the table of jobs for which the queue is measured
    row_repeats: int  #: how often each operation is measured
    postgres: bool  #: True if the queue is measured on PostgreSQL, too, if it is installed
    power_cycle_vms: int  #: number of VMs that are all started, then all stopped
    mixed_s: float  #: duration of the mixed load
    idle_s: float  #: time for which an idle agent is measured
    killed_burst: int  #: number of creates in the burst during which the agent is killed
    day_share: float  #: the share of a day whose heartbeats and metrics are measured
    day_vms: int  #: number of VMs whose metrics are sent during this share of a day
    fleet_vms: int  #: number of VMs for the measurement of one round of metrics
    soak_runs: int  #: number of warm runs of the workload soak


def _plain(services: int, slots: int) -> Burst:
    return Burst(services=services, clone_s=10, plain_slots=slots, label=f"plain ansible-runner, {slots} in parallel")


FULL = Plan(
    rounds=2,
    warm_up=True,
    slots=8,
    runner_burst=16,
    bursts=(
        _plain(32, 8),
        _plain(32, 16),
        Burst(services=60, clone_s=10),
        Burst(services=100, clone_s=10),
        Burst(services=100, clone_s=0, label="default settings, instant clones"),
    ),
    rows=(1_000, 100_000, 1_000_000),
    row_repeats=200,
    postgres=True,
    power_cycle_vms=200,
    mixed_s=30,
    idle_s=30,
    killed_burst=30,
    day_share=0.1,
    day_vms=50,
    fleet_vms=5_000,
    soak_runs=10_000,
)
QUICK = Plan(
    rounds=1,
    warm_up=False,
    slots=2,
    runner_burst=2,
    bursts=(Burst(services=4, clone_s=0),),
    rows=(1_000, 10_000),
    row_repeats=25,
    postgres=False,
    power_cycle_vms=4,
    mixed_s=5,
    idle_s=3,
    killed_burst=3,
    day_share=0.002,
    day_vms=10,
    fleet_vms=100,
    soak_runs=40,
)


def main() -> int:
    """Run the selected workloads and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", default=DEFAULT_WORKLOADS)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("BENCH_QUICK")))
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    started = time.monotonic()
    results: Json = {"machine": machine_facts(), "quick": arguments.quick}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            _measure(results, plan, arguments.only, Path(folder), console)
    except WorkloadFailed as error:
        console.print(f"a workload failed: {error}", style="red", markup=False)
        return 1
    results["took_s"] = round(time.monotonic() - started)
    report.show(results, console)
    for file in _write(results, quick=arguments.quick):
        console.print(f"written: {file.relative_to(ROOT)}")
    return 0


def _measure(results: Json, plan: Plan, only: list[str], folder: Path, console: Console) -> None:
    if "rows" in only:
        results["rows"] = _rows(plan, folder, console)
    if "runs" in only or "bursts" in only:
        with running_stand_in() as stand_in, _step(console, "floor: Proxmox's API by proxmoxer"):
            results["floor"] = floor.measure(stand_in)
    if "runs" in only:
        results["runs"] = _runs(plan, folder, console)
    if "bursts" in only:
        results["bursts"] = _bursts(plan, folder, console, results["floor"]["create"]["wall_s"])
    if "life" in only:
        results["life"] = _life(plan, folder, console)
    if "day" in only:
        results["day"] = _day(plan, folder, console)
    if "soak" in only:
        with running_stand_in() as stand_in, _step(console, f"soak: {plan.soak_runs} warm runs"):
            results["soak"] = soak.measure(stand_in, folder / "soak", plan.soak_runs)


def _runs(plan: Plan, folder: Path, console: Console) -> Json:
    measured = {}
    with running_stand_in() as stand_in:
        for mode in MODES:
            with _step(console, f"runs: {mode}"):
                amounts = {"rounds": plan.rounds, "slots": plan.slots, "warm_up": plan.warm_up}
                measured[mode] = runs.measure(stand_in, folder, mode, burst=plan.runner_burst, **amounts)
    return measured


def _bursts(plan: Plan, folder: Path, console: Console, floor_s: float) -> list[Json]:
    measured = []
    for number, planned in enumerate(plan.bursts):
        with _step(console, f"burst of {planned.services}, clones of {planned.clone_s:g} s: {planned.label}"):
            facts = (
                _plain_burst(folder, planned) if planned.plain_slots else _burst(folder / f"burst-{number}", planned)
            )
        measured.append({**facts, "serial_jobs_per_min": serial.jobs_per_min(planned.clone_s, floor_s)})
    return measured


def _burst(folder: Path, planned: Burst) -> Json:
    amounts = {"services": planned.services, "clone_s": planned.clone_s}
    return burst.measure(folder, **amounts, settings=planned.settings, label=planned.label)  # type: ignore[arg-type]


def _plain_burst(folder: Path, planned: Burst) -> Json:
    """Run a burst with ansible-runner, without the agent, and return its figures."""
    amounts = {"rounds": 0, "warm_up": 1, "slots": planned.plain_slots, "burst": planned.services}
    with running_stand_in(time_scale=1.0) as stand_in:
        stand_in.control("task_seconds", type="qmclone", seconds=planned.clone_s)
        done = runs.measure(stand_in, folder, "plain", **amounts)["burst"]
    facts = {"label": planned.label, "services": planned.services, "clone_s": planned.clone_s}
    return {**facts, "all_done_s": done["wall_s"], **done}


def _life(plan: Plan, folder: Path, console: Console) -> Json:
    measured: Json = {}
    with _step(console, f"power cycle of {plan.power_cycle_vms} VMs"):
        measured["power_cycle"] = life.power_cycle(folder / "cycle", plan.power_cycle_vms)
    with _step(console, "mixed load"):
        measured["mixed"] = life.mixed_load(folder / "mixed", vms=20, requests_per_s=1.0, duration_s=plan.mixed_s)
    with _step(console, "start and idle"):
        measured["idle"] = life.start_and_idle(folder / "idle", idle_s=plan.idle_s)
    with _step(console, "recovery from a kill"):
        measured["recovery"] = life.recovery(folder / "recovery", services=plan.killed_burst)
    return measured


def _day(plan: Plan, folder: Path, console: Console) -> Json:
    with _step(console, f"heartbeats and metrics of a day, {plan.day_vms} VMs"):
        one_day = day.day(folder / "day", share=plan.day_share, vms=plan.day_vms)
    with _step(console, f"metrics of {plan.fleet_vms} VMs"):
        return {"day": one_day, "fleet": day.fleet(folder / "fleet", vms=plan.fleet_vms)}


def _rows(plan: Plan, folder: Path, console: Console) -> Json:
    measured: Json = {}
    with _step(console, "rows: SQLite"):
        measured["SQLite"] = job_rows.measure(f"sqlite:///{folder / 'rows.db'}", list(plan.rows), plan.row_repeats)
    with ExitStack() as stack:
        url = stack.enter_context(job_rows.postgres_url()) if plan.postgres else None
        if url:
            with _step(console, "rows: PostgreSQL"):
                measured["PostgreSQL"] = job_rows.measure(url, list(plan.rows), plan.row_repeats)
    return measured


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    """Print the text `what` and the duration of the block when the block has ended."""
    started = time.monotonic()
    yield
    console.print(f"{what} ({time.monotonic() - started:.0f} s)", highlight=False)


def _write(results: Json, *, quick: bool) -> list[Path]:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("bench-%Y%m%d-%H%M%S") + ("-quick" if quick else "")
    file = RESULTS / f"{stem}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return [file, *([] if quick else plots.draw(results, RESULTS, f"{stem}-"))]


if __name__ == "__main__":
    sys.exit(main())
