"""Measures the CPU use and the memory of an agent without jobs, and the CPU time of `smith` commands."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from smith_lab.system import LabSystem

from bench.baseline import BASELINE, CURRENT
from bench.labs import WAIT_AFTER_JOBS_S
from bench.measuring import MeasurementFailed, measure_cpu_use, median, tree_cpu_s
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds
from executor.processes.memory import process_tree_memory_mib

Json = dict[str, Any]
HELP_COMMAND = "smith --help"
#: The commands that read the database.
READING_COMMANDS = ("smith status", "smith jobs list", "smith mappings list")
#: The name of LIBRARY_IMPORTS_CODE in the table of results.
#: The code imports only the third-party libraries of a reading command.
LIBRARY_IMPORTS = "imports of the libraries"
LIBRARY_IMPORTS_CODE = """\
import gc; gc.disable()
import typer.main, sqlalchemy.dialects.sqlite.pysqlite
from pydantic import BaseModel, Field, TypeAdapter
gc.freeze()
"""
#: The measured commands, and for comparison the imports of the libraries.
COMMANDS = (HELP_COMMAND, *READING_COMMANDS, LIBRARY_IMPORTS)
#: Goals: the maximum CPU time of the help command, and of each reading command.
MAX_HELP_CPU_S, MAX_READING_CPU_S = 0.1, 0.35


def measure(bench: Bench) -> Json:
    """Return the CPU use and the memory of each idle executor, and the CPU time of each of its `smith` commands.

    The executors are the current one and, if it is measured, the baseline: the executor of an earlier commit. An
    executor consists of an agent, its supervisor (the parent process) and its warm servers (processes that have
    imported Ansible and fork the playbook runs). All executors run at the same time, also while the commands are
    measured.

    `others_share` is the share of the machine's CPU time that processes outside of the bench used.
    """
    labs, sizes = bench.labs_with_agents(), bench.sizes
    time.sleep(WAIT_AFTER_JOBS_S)  # until the executors have ended all work for earlier jobs
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
            "share_by_round": shares[name],
            "others_share": cpu_use.others_share,
            "mib": memory_mib[name],
            "commands_cpu_s": commands_cpu_s[name],
        }
        for name in labs
    }


def _measure_core_shares(labs: dict[str, LabSystem], window_s: float) -> dict[str, float]:
    """Wait `window_s`; return the share of a core that each executor used during the wait."""
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
            for name in reversed_in_odd_rounds(list(labs), number):
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
        raise MeasurementFailed(f"{command} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _tables(figures: Json) -> list[Table]:
    """Return the tables. The column `variant` names the executor. A ratio is "-" if the baseline was not measured."""
    baseline_figures = figures.get(BASELINE, {})
    rows = [
        (
            name,
            f"{executor_figures['share_of_a_core']:.2%}",
            ratio_text(executor_figures["share_of_a_core"], baseline_figures.get("share_of_a_core")),
            f"{executor_figures['mib']:.0f}",
        )
        for name, executor_figures in figures.items()
    ]
    command_rows = [
        (command, name, f"{cpu_s:.3f}", ratio_text(cpu_s, baseline_figures.get("commands_cpu_s", {}).get(command)))
        for command in COMMANDS
        for name, executor_figures in figures.items()
        for cpu_s in [executor_figures["commands_cpu_s"].get(command)]
        if cpu_s is not None  # None if the figures are from a results file of an older bench without this command
    ]
    idle_headings = ("variant", "share of a core", "ratio to baseline", "memory with warm servers (MiB)")
    command_headings = ("command", "variant", "CPU-s", "ratio to baseline")
    return [
        Table(title="An idle executor", headings=idle_headings, rows=rows),
        Table(title="CPU of commands", headings=command_headings, rows=command_rows),
    ]


def _goals(figures: Json) -> list[Goal]:
    current = figures[CURRENT]
    limits = {HELP_COMMAND: MAX_HELP_CPU_S} | dict.fromkeys(READING_COMMANDS, MAX_READING_CPU_S)
    return [
        Goal(
            figure_name="CPU of an idle executor",
            limit=0.6,
            measured=100 * current["share_of_a_core"],
            unit="% of a core",
        ),
        *(
            Goal(
                figure_name=f"CPU of `{command}`",
                limit=limit,
                measured=current["commands_cpu_s"][command],
                unit="CPU-s",
            )
            for command, limit in limits.items()
        ),
    ]


PART = Part(
    help="CPU and memory of an agent without jobs; CPU of commands", measure=measure, tables=_tables, goals=_goals
)
