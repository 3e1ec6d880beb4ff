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
        ("An agent's life", "life", life_table),
        ("Heartbeats and metrics", "day", day_table),
        ("Warm runs, one after the other: what there is of everything", "soak", soak_table),
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
    """Return how bursts went, over plain ansible-runner's best and over the serial agents'."""
    table = _table(
        *("burst", "creates", "clone s", "all done s", "jobs/min", "of plain", "of 2-4-8", "of a tick"),
        *("CPU-s a job", "median s", "p95 s", "MiB a slot", "heartbeat gap p99 s"),
    )
    for burst in results["bursts"]:
        serial, plain = burst["serial_jobs_per_min"], _best_plain(results["bursts"], burst["clone_s"])
        table.add_row(
            burst["label"],
            str(burst["services"]),
            f"{burst['clone_s']:g}",
            f"{burst['all_done_s']:.0f}",
            f"{burst['jobs_per_min']:.0f}",
            *(_ratio(burst["jobs_per_min"], rate) for rate in (plain, *serial.values())),
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


def _best_plain(bursts: list[Json], clone_s: float) -> float:
    rates = [one["jobs_per_min"] for one in bursts if one["label"].startswith(BASELINE) and one["clone_s"] == clone_s]
    return max(rates, default=0.0)


def life_table(results: Json) -> Table:
    """Return what is left of a life besides bursts, each line a figure."""
    table = _table("what", "figure", "heartbeat gap p99 s")
    life = results["life"]
    cycle, mixed, idle, recovery = life["power_cycle"], life["mixed"], life["idle"], life["recovery"]
    baseline = results["runs"][BASELINE]["actions"] if "runs" in results else {}
    for action in ("start", "stop"):
        half = cycle[action]
        of_plain = f", {_ratio(half['cpu_s_per_job'], baseline[action]['cpu_s'])} of plain" if baseline else ""
        cost = f"{half['cpu_s_per_job']:.2f} CPU-s a job{of_plain}"
        said = f"{half['all_done_s']:.0f} s, {half['jobs_per_min']:.0f} jobs/min, {cost}"
        table.add_row(f"{action} {cycle['vms']} VMs at once", said, _number(cycle["heartbeat"], "p99_s", 1))
    table.add_row(
        f"mixed load, {mixed['asked_per_min']:.0f} actions/min",
        f"jobs: median {mixed['job_median_s']:.1f} s, p95 {mixed['job_p95_s']:.1f} s; waits: median "
        f"{mixed['wait_median_s']:.1f} s, p95 {mixed['wait_p95_s']:.1f} s",
        _number(mixed["heartbeat"], "p99_s", 1),
    )
    table.add_row("from the start to the first claim", f"{idle['claims_after_s']:.1f} s", "")
    table.add_row("idle", f"{idle['idle_share_of_a_core']:.2%} of a core, {idle['idle_mib']:.0f} MiB", "")
    table.add_row("smith --help", f"{idle['help_cpu_s']:.2f} CPU-s", "")
    said = f"claims again after {recovery['claims_again_s']:.1f} s, all done after {recovery['all_done_s']:.0f} s"
    killed = f"agent killed in a burst of {recovery['services']}"
    table.add_row(killed, said, _number(recovery["heartbeat"], "p99_s", 1))
    return table


def day_table(results: Json) -> Table:
    """Return what heartbeats and metrics cost of a core, and how many turns those of many VMs take."""
    table = _table("what", "of a core", "besides")
    day, fleet = results["day"]["day"], results["day"]["fleet"]
    beats = f"{day['heartbeats']} of them, {day['share']:.1%} of a day"
    table.add_row("heartbeats, one in 10 s", f"{day['heartbeat_share_of_a_core']:.2%}", beats)
    grown = f"{day['metric_turns']} turns, grown by {day['grown_mib']:.1f} MiB"
    table.add_row(f"metrics of {day['vms']} VMs a minute", f"{day['metric_share_of_a_core']:.2%}", grown)
    turns = f"{fleet['posts']} posts in {fleet['took_s']:.0f} s, {fleet['turns_for_all']:.1f} turns for all"
    table.add_row(f"metrics of {fleet['vms']:,} VMs", f"{fleet['share_of_a_core']:.2%}", turns)
    return table


def soak_table(results: Json) -> Table:
    """Return the samples between runs."""
    soak = results["soak"]
    names = ("runs", "processes", "descriptors", "threads", "own_mib", "servers_mib", "files")
    table = _table(*names)
    for sample in soak["samples"]:
        table.add_row(*(f"{sample[name]:.0f}" for name in names))
    table.caption = f"left in temporary folders: {soak['temporary_files_left']}"
    return table


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "-"


def _number(figures: Json, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else "-"
