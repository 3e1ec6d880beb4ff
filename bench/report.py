"""The figures as tables: every one with its ratio to the baseline of the same run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
BASELINE = "plain"


def show(results: Json, console: Console) -> None:
    """Print all tables that there are figures for."""
    for title, figures, table in (
        ("Create, start, stop: one job alone", "runs", actions_table),
        ("Memory and rate of creates at once, tasks of Proxmox instant", "runs", burst_table),
        ("A burst through the whole chain", "bursts", chain_table),
        ("Verbs of the job rows, milliseconds", "rows", rows_table),
    ):
        if results.get(figures):
            console.print(_titled(table(results), title))


def _titled(table: Table, title: str) -> Table:
    table.title, table.title_justify = title, "left"
    return table


def _table(*headings: str) -> Table:
    table = Table(*headings)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def actions_table(results: Json) -> Table:
    """Return CPU and wall time of each action in each way, over plain ansible-runner's."""
    table = _table("action", "way", "CPU-s", "of plain", "wall s", "over the floor s")
    runs, floor = results["runs"], results["floor"]
    for action in ("create", "start", "stop"):
        base = runs[BASELINE]["actions"][action]
        for way in runs:
            spent = runs[way]["actions"][action]
            over = spent["wall_s"] - floor[action]["wall_s"]
            share = _ratio(spent["cpu_s"], base["cpu_s"])
            table.add_row(action, way, f"{spent['cpu_s']:.2f}", share, f"{spent['wall_s']:.2f}", f"{over:.2f}")
        table.add_row(
            action,
            f"floor ({floor[action]['requests']:.0f} requests)",
            f"{floor[action]['cpu_s']:.3f}",
            _ratio(floor[action]["cpu_s"], base["cpu_s"]),
            f"{floor[action]['wall_s']:.2f}",
            "",
        )
    return table


def burst_table(results: Json) -> Table:
    """Return memory a slot and creates a minute in each way, over plain ansible-runner's."""
    table = _table(
        "way", "slots", "CPU-s a job", "of plain", "jobs/min", "of plain", "MiB a slot", "of plain", "idle MiB"
    )
    base = results["runs"][BASELINE]["burst"]
    for way, run in results["runs"].items():
        burst = run["burst"]
        table.add_row(
            way,
            str(burst["slots"]),
            f"{burst['cpu_s_per_job']:.2f}",
            _ratio(burst["cpu_s_per_job"], base["cpu_s_per_job"]),
            f"{burst['jobs_per_min']:.0f}",
            _ratio(burst["jobs_per_min"], base["jobs_per_min"]),
            f"{burst['mib_per_slot']:.0f}",
            _ratio(burst["mib_per_slot"], base["mib_per_slot"]),
            f"{burst['idle_mib']:.0f}",
        )
    return table


def chain_table(results: Json) -> Table:
    """Return how bursts went, over the serial agents'."""
    table = _table(
        *("burst", "all done s", "jobs/min", "of 2-4-8", "of a tick", "CPU-s a job", "median s", "p95 s", "MiB a slot"),
        "heartbeat gap p99 s",
    )
    for burst in results["bursts"]:
        serial = burst["serial_jobs_per_min"]
        table.add_row(
            burst["label"],
            f"{burst['all_done_s']:.0f}",
            f"{burst['jobs_per_min']:.0f}",
            *(_ratio(burst["jobs_per_min"], rate) for rate in serial.values()),
            _number(burst, "cpu_s_per_job", 2),
            _number(burst, "job_median_s", 1),
            _number(burst, "job_p95_s", 1),
            _number(burst, "mib_per_slot", 0),
            _number(burst.get("heartbeat", {}), "p99_s", 1),
        )
    return table


def rows_table(results: Json) -> Table:
    """Return the verbs' times at each number of rows, over those at the smallest."""
    table = _table("database", "rows", "verb", "p50", "p99", "p99 of the smallest")
    for database, sizes in results["rows"].items():
        smallest = next(iter(sizes.values()))
        for size, verbs in sizes.items():
            for verb, spread in verbs.items():
                ratio = _ratio(spread["p99_ms"], smallest[verb]["p99_ms"])
                times = (f"{spread['p50_ms']:.1f}", f"{spread['p99_ms']:.1f}")
                table.add_row(database, f"{int(size):,}", verb, *times, ratio)
    return table


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "-"


def _number(figures: Json, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else "-"
