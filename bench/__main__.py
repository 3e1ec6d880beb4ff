"""Runs the workloads of `make bench`, which compare the cost of jobs with baselines.

The baselines are plain ansible-runner, Proxmox's API without Ansible, and agents that create one VM at a time.

The exit code is 1 if a job fails, else 0. With BENCH_QUICK=1, the workloads are smaller and take two minutes together,
but their figures are less reliable. `--only` selects workloads: runs, bursts, rows, life, day, soak. The workload soak
does thousands of warm runs, and is run only if it is selected.
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
RESULTS_FOLDER = ROOT / "bench" / "results"
#: runs: single playbook runs and parallel creates; bursts: many creates through the agent; rows: operations of the job
#: queue; life: other loads, an idle agent, recovery from a kill; day: heartbeats and metrics; soak: thousands of runs.
WORKLOAD_NAMES = ("runs", "bursts", "rows", "life", "day", "soak")
#: The workloads that run without `--only`: all except soak.
DEFAULT_WORKLOAD_NAMES = WORKLOAD_NAMES[:-1]
#: The modes of a playbook run; bench/one_mode.py explains them.
MODES = ("plain", "cold", "warm")
#: The width of the tables when the output is not a terminal.
LOG_WIDTH_CHARACTERS = 140


@dataclass(frozen=True, kw_only=True)
class Burst:
    """A burst: services whose VMs are ordered at the same time."""

    services: int  #: number of services; each needs one create
    clone_s: float  #: duration of each clone in the Proxmox stand-in, the simulator of Proxmox
    settings: dict[str, str] = field(default_factory=dict)  #: settings of the agent that differ from the defaults
    #: 0 if the agent runs the burst. Otherwise ansible-runner runs the burst, with this number of creates in parallel.
    slots_without_agent: int = 0
    label: str = "default settings"


@dataclass(frozen=True, kw_only=True)
class WorkloadSizes:
    """The sizes of all workloads."""

    cycles: int  #: number of measured cycles in each mode; a cycle is create, start, stop, delete
    should_warm_up: bool  #: whether a cycle that is not measured runs first
    runner_burst_creates: int  #: number of creates in the burst of the workload `runs`
    runner_burst_slots: int  #: how many of these creates run in parallel
    bursts: tuple[Burst, ...]
    row_counts: tuple[int, ...]  #: the numbers of rows in the table of jobs for which the job queue is measured
    row_repeats: int  #: how often each operation of the job queue is measured
    should_measure_postgres: bool  #: whether the job queue is also measured on PostgreSQL, if it is installed
    power_cycle_vms: int  #: number of VMs that are all started, then all stopped
    mixed_load_s: float  #: duration of the mixed load
    idle_s: float  #: how long an idle agent is measured
    killed_burst_creates: int  #: number of creates in the burst during which the agent is killed
    day_share: float  #: the share of a day whose heartbeats and metrics are sent and measured
    day_vms: int  #: number of VMs whose metrics are sent during this share of a day
    fleet_vms: int  #: number of VMs of the fleet, for which one round of metrics is measured
    soak_runs: int  #: number of warm runs of the workload `soak`


def _burst_without_agent(*, services: int, slots: int) -> Burst:
    label = f"plain ansible-runner, {slots} in parallel"  # bench/report.py requires `plain` at the start
    return Burst(services=services, clone_s=10, slots_without_agent=slots, label=label)


FULL_SIZES = WorkloadSizes(
    cycles=2,
    should_warm_up=True,
    runner_burst_creates=16,
    runner_burst_slots=8,
    bursts=(
        _burst_without_agent(services=32, slots=8),
        _burst_without_agent(services=32, slots=16),
        Burst(services=60, clone_s=10),
        Burst(services=100, clone_s=10),
        Burst(services=100, clone_s=0, label="default settings, instant clones"),
    ),
    row_counts=(1_000, 100_000, 1_000_000),
    row_repeats=200,
    should_measure_postgres=True,
    power_cycle_vms=200,
    mixed_load_s=30,
    idle_s=30,
    killed_burst_creates=30,
    day_share=0.1,
    day_vms=50,
    fleet_vms=5_000,
    soak_runs=10_000,
)
QUICK_SIZES = WorkloadSizes(
    cycles=1,
    should_warm_up=False,
    runner_burst_creates=2,
    runner_burst_slots=2,
    bursts=(Burst(services=4, clone_s=0),),
    row_counts=(1_000, 10_000),
    row_repeats=25,
    should_measure_postgres=False,
    power_cycle_vms=4,
    mixed_load_s=5,
    idle_s=3,
    killed_burst_creates=3,
    day_share=0.002,
    day_vms=10,
    fleet_vms=100,
    soak_runs=40,
)


def main() -> int:
    """Run the selected workloads and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=WORKLOAD_NAMES, nargs="+", default=DEFAULT_WORKLOAD_NAMES)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("BENCH_QUICK")))
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else FULL_SIZES
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH_CHARACTERS)
    started = time.monotonic()
    results: Json = {"machine": machine_facts(), "quick": arguments.quick}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            _run_workloads(results, sizes, arguments.only, Path(folder), console)
    except WorkloadFailed as error:
        console.print(f"a workload failed: {error}", style="red", markup=False)
        return 1
    results["took_s"] = round(time.monotonic() - started)
    report.show(results, console)
    for file in _write_results(results, quick=arguments.quick):
        console.print(f"written: {file.relative_to(ROOT)}")
    return 0


def _run_workloads(results: Json, sizes: WorkloadSizes, names: list[str], folder: Path, console: Console) -> None:
    """Run the workloads with these names, and add their figures to `results`."""
    if "rows" in names:
        results["rows"] = _run_rows(sizes, folder, console)
    if "runs" in names or "bursts" in names:
        with running_stand_in() as stand_in, _printed_step(console, "floor: Proxmox's API without Ansible"):
            results["floor"] = floor.measure(stand_in)
    if "runs" in names:
        results["runs"] = _run_modes(sizes, folder, console)
    if "bursts" in names:
        results["bursts"] = _run_bursts(sizes, folder, console, results["floor"]["create"]["wall_s"])
    if "life" in names:
        results["life"] = _run_life(sizes, folder, console)
    if "day" in names:
        results["day"] = _run_day(sizes, folder, console)
    if "soak" in names:
        with running_stand_in() as stand_in, _printed_step(console, f"soak: {sizes.soak_runs} warm runs"):
            results["soak"] = soak.measure(stand_in, folder / "soak", sizes.soak_runs)


def _run_modes(sizes: WorkloadSizes, folder: Path, console: Console) -> Json:
    """Run the workload `runs`, which measures playbook runs in each mode."""
    amounts = runs.RunAmounts(
        cycles=sizes.cycles,
        should_warm_up=sizes.should_warm_up,
        burst_creates=sizes.runner_burst_creates,
        slots=sizes.runner_burst_slots,
    )
    figures = {}
    with running_stand_in() as stand_in:
        for mode in MODES:
            with _printed_step(console, f"runs: {mode}"):
                figures[mode] = runs.measure(stand_in, folder, mode, amounts)
    return figures


def _run_bursts(sizes: WorkloadSizes, folder: Path, console: Console, floor_s: float) -> list[Json]:
    """Run all bursts, and add to the figures of each burst the rates of agents that create one VM at a time.

    `floor_s` is the duration of a create that calls Proxmox's API without Ansible.
    """
    figures_of_bursts = []
    for number, planned_burst in enumerate(sizes.bursts):
        services, clone_s, label = planned_burst.services, planned_burst.clone_s, planned_burst.label
        with _printed_step(console, f"burst of {services}, clones of {clone_s:g} s: {label}"):
            if planned_burst.slots_without_agent:
                figures = _run_burst_without_agent(folder, planned_burst)
            else:
                figures = _run_burst_with_agent(folder / f"burst-{number}", planned_burst)
        figures_of_bursts.append({**figures, "serial_jobs_per_min": serial.jobs_per_min(clone_s, floor_s)})
    return figures_of_bursts


def _run_burst_with_agent(folder: Path, planned_burst: Burst) -> Json:
    return burst.measure(
        folder,
        services=planned_burst.services,
        clone_s=planned_burst.clone_s,
        settings=planned_burst.settings,
        label=planned_burst.label,
    )


def _run_burst_without_agent(folder: Path, planned_burst: Burst) -> Json:
    """Run a burst with ansible-runner, without the agent, and return its figures."""
    amounts = runs.RunAmounts(
        cycles=0, should_warm_up=True, burst_creates=planned_burst.services, slots=planned_burst.slots_without_agent
    )
    with running_stand_in(time_scale=1.0) as stand_in:
        stand_in.control("task_seconds", type="qmclone", seconds=planned_burst.clone_s)
        figures = runs.measure(stand_in, folder, "plain", amounts)["burst"]
    return {
        "label": planned_burst.label,
        "services": planned_burst.services,
        "clone_s": planned_burst.clone_s,
        "all_done_s": figures["wall_s"],
        **figures,
    }


def _run_life(sizes: WorkloadSizes, folder: Path, console: Console) -> Json:
    figures: Json = {}
    with _printed_step(console, f"power cycle of {sizes.power_cycle_vms} VMs"):
        figures["power_cycle"] = life.power_cycle(folder / "cycle", sizes.power_cycle_vms)
    with _printed_step(console, "mixed load"):
        figures["mixed"] = life.mixed_load(folder / "mixed", vms=20, requests_per_s=1.0, duration_s=sizes.mixed_load_s)
    with _printed_step(console, "start and idle"):
        figures["idle"] = life.start_and_idle(folder / "idle", idle_s=sizes.idle_s)
    with _printed_step(console, "recovery from a kill"):
        figures["recovery"] = life.recovery(folder / "recovery", services=sizes.killed_burst_creates)
    return figures


def _run_day(sizes: WorkloadSizes, folder: Path, console: Console) -> Json:
    figures: Json = {}
    with _printed_step(console, f"heartbeats and metrics of a day, {sizes.day_vms} VMs"):
        figures["day"] = day.measure_share_of_a_day(folder / "day", share=sizes.day_share, vms=sizes.day_vms)
    with _printed_step(console, f"metrics of {sizes.fleet_vms} VMs"):
        figures["fleet"] = day.measure_fleet(folder / "fleet", vms=sizes.fleet_vms)
    return figures


def _run_rows(sizes: WorkloadSizes, folder: Path, console: Console) -> Json:
    figures: Json = {}
    with _printed_step(console, "rows: SQLite"):
        url = f"sqlite:///{folder / 'rows.db'}"
        figures["SQLite"] = job_rows.measure(url, list(sizes.row_counts), sizes.row_repeats)
    with ExitStack() as stack:
        postgres_url = stack.enter_context(job_rows.postgres_url()) if sizes.should_measure_postgres else None
        if postgres_url:
            with _printed_step(console, "rows: PostgreSQL"):
                figures["PostgreSQL"] = job_rows.measure(postgres_url, list(sizes.row_counts), sizes.row_repeats)
    return figures


@contextmanager
def _printed_step(console: Console, step: str) -> Iterator[None]:
    """When the block has ended, print the text `step` and the duration of the block."""
    started = time.monotonic()
    yield
    console.print(f"{step} ({time.monotonic() - started:.0f} s)", highlight=False)


def _write_results(results: Json, *, quick: bool) -> list[Path]:
    """Write the results file, and draw the plots unless `quick` is set; return the paths of the files."""
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("bench-%Y%m%d-%H%M%S") + ("-quick" if quick else "")
    file = RESULTS_FOLDER / f"{stem}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if quick:
        return [file]
    return [file, *plots.draw(results, RESULTS_FOLDER, f"{stem}-")]


if __name__ == "__main__":
    sys.exit(main())
