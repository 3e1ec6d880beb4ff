"""`make bench`: what a job costs, against baselines of the same run. No figure fails it; a job that fails does.

BENCH_QUICK=1 is a smoke test of two minutes, whose figures say little. `--only` picks workloads: runs, bursts, rows.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import burst, floor, job_rows, plots, report, runs, serial
from bench.measuring import ROOT, WorkloadBroke, machine_facts
from executor.lab.proxmox_stand_in import running_stand_in

Json = dict[str, Any]
RESULTS = ROOT / "bench" / "results"
WORKLOADS = ("runs", "bursts", "rows")
WAYS = ("plain", "cold", "warm")
LOG_WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything."""

    rounds: int
    warm_up: bool
    slots: int
    at_once: int  #: creates in the burst without the chain
    services: int
    clone_s: float
    concurrencies: tuple[int, ...]
    cold_concurrencies: tuple[int, ...]
    plain_concurrencies: tuple[int, ...]
    rows: tuple[int, ...]
    row_repeats: int
    postgres: bool
    with_defaults: bool  #: a burst as a new agent would do it, too


FULL = Plan(
    rounds=5,
    warm_up=True,
    slots=8,
    at_once=24,
    services=60,
    clone_s=10,
    concurrencies=(8, 16, 32),
    cold_concurrencies=(8, 16),
    plain_concurrencies=(8, 16),
    rows=(1_000, 100_000, 1_000_000),
    row_repeats=400,
    postgres=True,
    with_defaults=True,
)
QUICK = Plan(
    rounds=1,
    warm_up=False,
    slots=2,
    at_once=2,
    services=4,
    clone_s=0,
    concurrencies=(4,),
    cold_concurrencies=(),
    plain_concurrencies=(),
    rows=(1_000, 10_000),
    row_repeats=25,
    postgres=False,
    with_defaults=False,
)


def main() -> int:
    """Run the workloads; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=WORKLOADS, nargs="*", default=WORKLOADS)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("BENCH_QUICK")))
    wanted = parser.parse_args()
    plan = QUICK if wanted.quick else FULL
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    started = time.monotonic()
    results: Json = {"machine": machine_facts(), "quick": wanted.quick}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            _measure(results, plan, wanted.only, Path(folder), console)
    except WorkloadBroke as broke:
        console.print(f"a workload broke: {broke}", style="red", markup=False)
        return 1
    results["took_s"] = round(time.monotonic() - started)
    report.show(results, console)
    for file in _write(results, quick=wanted.quick):
        console.print(f"written: {file.relative_to(ROOT)}")
    return 0


def _measure(results: Json, plan: Plan, only: list[str], folder: Path, console: Console) -> None:
    if "rows" in only:
        results["rows"] = _rows(plan, folder, console)
    if "runs" in only or "bursts" in only:
        with running_stand_in() as stand_in, _said(console, "floor: Proxmox's API by proxmoxer"):
            results["floor"] = floor.measure(stand_in)
    if "runs" in only:
        results["runs"] = _runs(plan, folder, console)
    if "bursts" in only:
        results["bursts"] = _bursts(plan, folder, console, results["floor"]["create"]["wall_s"])


def _runs(plan: Plan, folder: Path, console: Console) -> Json:
    measured = {}
    with running_stand_in() as stand_in:
        for way in WAYS:
            with _said(console, f"runs: {way}"):
                amount = {"rounds": plan.rounds, "slots": plan.slots, "burst": plan.at_once, "warm_up": plan.warm_up}
                measured[way] = runs.measure(stand_in, folder, way, **amount)
    return measured


def _bursts(plan: Plan, folder: Path, console: Console, floor_s: float) -> list[Json]:
    rates = serial.jobs_per_min(plan.clone_s, floor_s)
    done = [_plain_burst(plan, folder, console, slots) for slots in plan.plain_concurrencies]
    for way, settings in _chains(plan).items():
        with _said(console, f"burst: {way}"):
            done.append(
                burst.measure(
                    folder / f"burst-{len(done)}",
                    services=plan.services,
                    clone_s=plan.clone_s,
                    settings=settings,
                    label=way,
                )
            )
    return [{**facts, "serial_jobs_per_min": rates} for facts in done]


def _chains(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the settings of each burst through the chain, by its name."""
    warm = {"SMITH_WARM": "on"}
    cold = {f"cold, {slots} at once": _many(slots) | {"SMITH_WARM": "off"} for slots in plan.cold_concurrencies}
    as_asked = {f"warm, {slots} at once": _many(slots) | warm for slots in plan.concurrencies}
    return {**cold, **as_asked, **({"default settings": {}} if plan.with_defaults else {})}


def _many(slots: int) -> dict[str, str]:
    """Return settings for so many jobs at once; the storage's own limit would hide everything else."""
    return {"SMITH_CONCURRENCY": str(slots), "SMITH_CLONES_PER_STORAGE": str(slots)}


def _plain_burst(plan: Plan, folder: Path, console: Console, slots: int) -> Json:
    """Create as many VMs by plain ansible-runner, so many at once, with no chain around it."""
    with _said(console, f"burst: plain, {slots} at once"), running_stand_in(time_scale=1.0) as stand_in:
        stand_in.control("task_seconds", type="qmclone", seconds=plan.clone_s)
        done = runs.measure(stand_in, folder, "plain", rounds=0, warm_up=1, slots=slots, burst=plan.services)["burst"]
    label = f"plain ansible-runner, {slots} at once"
    return {"label": label, "services": plan.services, "clone_s": plan.clone_s, "all_done_s": done["wall_s"], **done}


def _rows(plan: Plan, folder: Path, console: Console) -> Json:
    measured: Json = {}
    with _said(console, "rows: SQLite"):
        measured["SQLite"] = job_rows.measure(f"sqlite:///{folder / 'rows.db'}", list(plan.rows), plan.row_repeats)
    with ExitStack() as stack:
        url = stack.enter_context(job_rows.postgres_url()) if plan.postgres else None
        if url:
            with _said(console, "rows: PostgreSQL"):
                measured["PostgreSQL"] = job_rows.measure(url, list(plan.rows), plan.row_repeats)
    return measured


@contextmanager
def _said(console: Console, what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    console.print(f"{what} ({time.monotonic() - started:.0f} s)", highlight=False)


def _write(results: Json, *, quick: bool) -> list[Path]:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("bench-%Y%m%d-%H%M%S") + ("-quick" if quick else "")
    file = RESULTS / f"{stem}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return [file, *([] if quick else plots.draw(results, RESULTS, stem))]


if __name__ == "__main__":
    sys.exit(main())
