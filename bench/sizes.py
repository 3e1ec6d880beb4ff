"""Defines the sizes of the benchmarks, such as the number of rounds. Each size is an option of the command line.

The bench consists of parts. A part is one benchmark, such as `slots`. Variants are the installations that the bench
compares: plain ansible-runner, the executor of an earlier commit, and this checkout's executor.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any


def _size(default: Any, quick: Any, help_text: str) -> Any:
    """Declare a size: the default, the value with `--quick`, and the help text."""
    return field(default=default, metadata={"quick": quick, "help": help_text})


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of all parts of the bench. A create is a run of the playbook create.yml, or a create job.

    In the names `node_...`, a node is an agent and not a Proxmox node.
    """

    rounds: int = _size(5, 1, "how many times each variant is measured; the figures are medians")
    warm_up_rounds: int = _size(1, 0, "rounds that are not measured, at the start, to fill caches")
    slots: int = _size(8, 1, "playbooks that run in parallel, in the parts slots and memory")
    slot_creates: int = _size(24, 1, "creates in a round of the part slots")
    memory_clone_s: float = _size(8.0, 1.0, "seconds that a clone takes in the part memory")
    burst_creates: int = _size(100, 3, "creates that are ordered at the same time in the part burst")
    burst_clone_s: float = _size(10.0, 1.0, "seconds that a clone takes in the part burst")
    plain_creates: int = _size(32, 1, "creates of plain ansible-runner in the part burst")
    plain_slots: int = _size(16, 1, "playbooks of plain ansible-runner that run in parallel in the part burst")
    idle_window_s: float = _size(20.0, 3.0, "seconds of each measurement of CPU use in the parts idle and pages")
    job_counts: tuple[int, ...] = _size(
        (1, 10, 100, 1000), (1, 3), "numbers of jobs that are ordered at the same time in the part jobs"
    )
    row_counts: tuple[int, ...] = _size(
        (1_000, 10_000, 100_000, 1_000_000), (1_000, 5_000), "numbers of rows in the table of jobs, in the part rows"
    )
    row_repeats: int = _size(200, 25, "how many times each operation of the job queue is measured in the part rows")
    claim_rows: tuple[int, ...] = _size(
        (10_000, 1_000_000), (1_000, 4_000), "numbers of rows in the table of jobs, in the part claims"
    )
    claim_repeats: int = _size(
        300, 20, "how many times a claim is measured for each number of rows, in the part claims"
    )
    vm_counts: tuple[int, ...] = _size((10, 100, 1_000, 5_000), (10,), "numbers of VMs in the part vms")
    metrics_interval_s: float = _size(
        60.0, 5.0, "seconds between two reports of VM metrics to FulcrumCore, in the part vms"
    )
    page_jobs: int = _size(100_000, 1_000, "jobs in the database in the part pages")
    page_repeats: int = _size(40, 3, "how many times each web page is requested in the part pages")
    growth_lengths: tuple[int, ...] = _size(
        (10_000, 100_000, 1_000_000),
        (10_000, 100_000, 1_000_000),
        "lengths in bytes of the texts for which the CPU time of parsing is measured in the part growth",
    )
    node_counts: tuple[int, ...] = _size(
        (1, 3), (1, 2), "numbers of agents on one PostgreSQL in the part nodes, which counts requests"
    )
    vm_count_of_part_nodes: int = _size(12, 2, "VMs in the part nodes; each VM has a create job and a start job")
    idle_agents_window_s: float = _size(
        30.0,
        4.0,
        "seconds in which the requests and SQL statements of idle agents are counted in the parts nodes and scale",
    )
    scale_counts: tuple[int, ...] = _size(
        (1, 2, 3), (1, 2), "numbers of agents on one PostgreSQL in the part scale, which measures the rate of jobs"
    )
    scale_creates: int = _size(24, 4, "creates for each agent in the part scale")
    scale_clone_s: float = _size(10.0, 1.0, "seconds that a clone takes in the part scale")
    soak_runs: int = _size(10_000, 40, "runs in the part soak")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each size."""
    group = parser.add_argument_group("sizes", "In parentheses: the default; the value with --quick.")
    for size in dataclasses.fields(Sizes):
        default, quick = size.default, size.metadata["quick"]
        is_list = isinstance(default, tuple)
        group.add_argument(
            f"--{size.name.replace('_', '-')}",
            type=type(default[0] if is_list else default),
            nargs="+" if is_list else None,
            metavar="N",
            help=f"{size.metadata['help']} ({_format_size(default)}; {_format_size(quick)})",
        )


def from_arguments(arguments: argparse.Namespace) -> Sizes:
    """Return the sizes that the command line gives: its options, or else the defaults or the values for `--quick`."""
    values = {}
    for size in dataclasses.fields(Sizes):
        value = getattr(arguments, size.name)
        if value is None:
            value = size.metadata["quick"] if arguments.quick else size.default
        values[size.name] = tuple(value) if isinstance(value, list) else value
    return Sizes(**values)


def _format_size(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
