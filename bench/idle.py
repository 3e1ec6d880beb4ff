"""Measures the CPU use and the memory of an agent without jobs, and the CPU time of `smith` commands."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from smith_lab.system import LabSystem

from bench.baseline import BASELINE, CURRENT
from bench.labs import SETTLE_S
from bench.measuring import WorkloadFailed, measure_cpu_use, median, tree_cpu_s
from bench.part import Bench, Goal, Part, Table, in_alternating_order, ratio
from executor.processes.memory import process_tree_memory_mib

Json = dict[str, Any]
HELP_COMMAND = "smith --help"
#: The commands that read the database.
READING_COMMANDS = ("smith status", "smith jobs list", "smith mappings list")
#: The name in COMMANDS of Python code that is not a command. The code only imports the libraries of other projects that
#: a reading command imports.
LIBRARY_IMPORTS = "imports of the libraries"
LIBRARY_IMPORTS_CODE = """\
import gc; gc.disable()
import typer.main, sqlalchemy.dialects.sqlite.pysqlite
from pydantic import BaseModel, Field, TypeAdapter
gc.freeze()
"""
COMMANDS = (HELP_COMMAND, *READING_COMMANDS, LIBRARY_IMPORTS)
#: Goals: the maximum CPU time of the help command, and of each reading command.
MAX_HELP_CPU_S, MAX_READING_CPU_S = 0.1, 0.35


def measure(bench: Bench) -> Json:
    """Return the CPU use and the memory of each idle executor, and the CPU time of each `smith` command of its version.

    An executor consists of an agent, its supervisor and its warm servers. All executors run at the same time, also
    while the commands are measured.
    """
    labs, sizes = bench.idle_labs(), bench.sizes
    time.sleep(SETTLE_S)
    shares: dict[str, list[float]] = {name: [] for name in labs}
    with measure_cpu_use() as cpu_use:
        for _ in range(sizes.rounds):
            for name, share in _measure_core_shares(labs, sizes.idle_window_s).items():
                shares[name].append(share)
    memory_mib = {name: process_tree_memory_mib(lab.executor.pid) for name, lab in labs.items()}
    commands_cpu_s = _measure_commands(labs, sizes.warm_up_rounds, sizes.rounds)
    return {
        name: {
            "share_of_a_core": median(shares[name]),
            "each_share": shares[name],
            "others_share": cpu_use.others_share,
            "mib": memory_mib[name],
            "commands_cpu_s": commands_cpu_s[name],
        }
        for name in labs
    }


def _measure_core_shares(labs: dict[str, LabSystem], window_s: float) -> dict[str, float]:
    """Wait `window_s`; return the share of a core that each executor, with its warm servers, used in this time."""
    start_time_s = time.monotonic()
    before_s = {name: tree_cpu_s(lab.executor.pid) for name, lab in labs.items()}
    time.sleep(window_s)
    took_s = time.monotonic() - start_time_s
    return {name: (tree_cpu_s(lab.executor.pid) - before_s[name]) / took_s for name, lab in labs.items()}


def _measure_commands(labs: dict[str, LabSystem], warm_up_rounds: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median CPU time of each command, without the warm-up rounds, which may compile Python modules."""
    cpu_s: dict[str, dict[str, list[float]]] = {name: {command: [] for command in COMMANDS} for name in labs}
    for number in range(warm_up_rounds + rounds):
        for command in COMMANDS:
            for name in in_alternating_order(list(labs), number):
                cpu_s[name][command].append(_command_cpu_s(labs[name], command))
    return {
        name: {command: median(values[warm_up_rounds:]) for command, values in by_command.items()}
        for name, by_command in cpu_s.items()
    }


def _command_cpu_s(lab: LabSystem, command: str) -> float:
    environment = {name: value for name, value in lab.environment().items() if name != "PYTHONDONTWRITEBYTECODE"}
    arguments = ["-c", LIBRARY_IMPORTS_CODE] if command == LIBRARY_IMPORTS else ["-m", "executor", *command.split()[1:]]
    with subprocess.Popen(
        [lab.python, *arguments], env=environment, cwd=lab.folder, stdout=subprocess.DEVNULL
    ) as process:
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # otherwise, `Popen` would wait for the process again
    if process.returncode:
        raise WorkloadFailed(f"{command} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _tables(figures: Json) -> list[Table]:
    baseline_figures = figures.get(BASELINE, {})
    rows = [
        (
            name,
            f"{idle['share_of_a_core']:.2%}",
            ratio(idle["share_of_a_core"], baseline_figures.get("share_of_a_core")),
            f"{idle['mib']:.0f}",
        )
        for name, idle in figures.items()
    ]
    command_rows = [
        (command, name, f"{cpu_s:.3f}", ratio(cpu_s, baseline_figures.get("commands_cpu_s", {}).get(command)))
        for command in COMMANDS
        for name, idle in figures.items()
        for cpu_s in [idle["commands_cpu_s"].get(command)]
        if cpu_s is not None  # None in the results of an older version, which did not measure this command
    ]
    idle_headings = ("variant", "share of a core", "ratio to baseline", "MiB with warm servers")
    command_headings = ("command", "variant", "CPU-s", "ratio to baseline")
    return [
        Table(title="An idle executor", headings=idle_headings, rows=rows),
        Table(title="CPU of commands", headings=command_headings, rows=command_rows),
    ]


def _goals(figures: Json) -> list[Goal]:
    idle = figures[CURRENT]
    limits = {HELP_COMMAND: MAX_HELP_CPU_S} | dict.fromkeys(READING_COMMANDS, MAX_READING_CPU_S)
    return [
        Goal(text="CPU of an idle executor", limit=0.6, measured=100 * idle["share_of_a_core"], unit="% of a core"),
        *(
            Goal(text=f"CPU of `{command}`", limit=limit, measured=idle["commands_cpu_s"][command], unit="CPU-s")
            for command, limit in limits.items()
        ),
    ]


PART = Part(
    help="CPU and memory of an agent without jobs; CPU of commands", measure=measure, tables=_tables, goals=_goals
)
