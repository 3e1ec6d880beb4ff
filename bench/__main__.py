"""Measures what jobs cost, and compares the costs with plain ansible-runner and an earlier version of the executor.

The bench measures three variants in turns on this machine: `plain`, the playbooks of the earlier version, run by
ansible-runner alone; `baseline`, the executor of the earlier version; `current`, the executor of this checkout. The
earlier version is installed from git's history into .cache/bench, once. If the history lacks this version, as in a
shallow clone, the comparison is left out.

CPU is the user and system time of a whole process tree, without the Proxmox stand-in (a process that simulates Proxmox
VE). Wall times depend on the machine. A goal is a maximum or minimum of a figure. The exit code is 1 if a part of the
bench fails. With --quick, it is also 1 if an action takes at least as much CPU time as with plain ansible-runner, or if
the CPU time of a parser of untrusted text grows almost quadratically with the length of the text. Otherwise it is 0,
even if a figure misses its goal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.measuring import ROOT, machine_facts, measure_cpu_use

sys.path.append(str(ROOT / ".collections"))  # for the part `growth`, which measures parsers of the Ansible collection
from bench import (
    actions,
    baseline,
    burst,
    claims,
    growth,
    idle,
    job_rows,
    jobs,
    latency,
    nodes,
    pages,
    report,
    scale,
    slots,
    soak,
    story,
    vms,
)
from bench import sizes as bench_sizes
from bench.part import Bench, Part

Json = dict[str, Any]
RESULTS_FOLDER = ROOT / "bench" / "results"
#: The parts by name. A slot is one of the parallel playbook runs. A story is the summary of a run that the agent
#: stores. The part soak does thousands of runs, to find resources that accumulate.
PARTS: dict[str, Part] = {
    "actions": actions.PART,
    "slots": slots.RATE_PART,  # rate and CPU time of creates that run in parallel, without the agent
    "memory": slots.MEMORY_PART,  # memory of a slot
    "burst": burst.PART,  # many VMs ordered at the same time
    "jobs": jobs.PART,  # cost of a job in the agent, by the number of jobs at once
    "rows": job_rows.PART,  # the job queue with many rows in the table of jobs
    "claims": claims.PART,  # claims of jobs in the database
    "vms": vms.PART,  # an agent without jobs, by the number of VMs
    "latency": latency.PART,  # time from the poll to the report of a job
    "idle": idle.PART,  # an agent without jobs, and `smith` commands
    "pages": pages.PART,  # web pages of the agent
    "story": story.PART,
    "growth": growth.PART,
    "nodes": nodes.PART,  # requests of several agents (not Proxmox nodes) to PostgreSQL, FulcrumCore and Proxmox
    "scale": scale.PART,  # jobs per minute of several agents on one PostgreSQL
    "soak": soak.PART,
}
#: The parts that run without `--only`. The part soak takes half an hour. The figures of the parts nodes and scale are
#: only for docs/planning.md.
DEFAULT_PARTS = [name for name in PARTS if name not in ("soak", "nodes", "scale")]
#: The width of the tables if the output is not a terminal.
LOG_WIDTH_CHARACTERS = 140
#: With --quick, each action's CPU time, as a ratio to the CPU time with plain ansible-runner, must be less than this.
#: The goals are much lower, but --quick measures the first run of each action, which takes longer than later runs.
MAX_QUICK_RATIO = 1.0
#: With --quick, the growth of each parser must be less than this. The growth is the factor by which the CPU
#: time per byte grows if the text is ten times as long: 1 if the CPU time is linear, 10 if it is quadratic.
MAX_QUICK_GROWTH = 5.0
#: The exit code that shells report for a process that SIGTERM has ended.
EXIT_TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run the selected parts and return the exit code. With --page, only write earlier results into docs/."""
    arguments = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH_CHARACTERS)
    if arguments.page:
        report.write_docs_pages([json.loads(file.read_text(encoding="utf-8")) for file in arguments.page], PARTS)
        return 0
    # On SIGTERM, SystemExit leaves all `with` blocks, so all processes end and all temporary folders are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    results: Json = {"machine": machine_facts(), "quick": arguments.quick, "parts": {}}
    results_file = _results_file(quick=arguments.quick)
    # The stack ends the processes that several parts use.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        sizes = bench_sizes.from_arguments(arguments)  # numbers of rounds, jobs, VMs and so on
        bench = Bench(variants=_variants(console), sizes=sizes, folder=Path(folder), stack=stack)
        have_all_parts_succeeded = True
        for name in arguments.only:
            have_all_parts_succeeded &= _run_part(name, bench, results, console)
            # Written after each part, so that its figures are not lost if the bench is ended.
            results_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.show(results, PARTS, console)
    console.print(f"results: {results_file.relative_to(ROOT)}")
    if arguments.quick and _print_too_high_figures(results, console):
        return 1
    return 0 if have_all_parts_succeeded else 1


def _parser() -> argparse.ArgumentParser:
    parts = "\n".join(f"  {name:<9} {part.help}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"parts:\n{parts}\n\nAll parts but soak, nodes and scale run by default.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=DEFAULT_PARTS, metavar="PART", help="run these parts"
    )
    quick_help = (
        "use small sizes, to test the bench; the figures are not representative "
        "(also: environment variable BENCH_QUICK=1)"
    )
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("BENCH_QUICK")), help=quick_help)
    page_help = (
        "measure nothing; write the figures of these files into docs/performance.md and docs/planning.md; if several "
        "files contain a part, the figures of the last file are used"
    )
    parser.add_argument("--page", type=Path, nargs="+", metavar="RESULTS.json", help=page_help)
    bench_sizes.add_options(parser)
    return parser


def _variants(console: Console) -> list[baseline.Variant]:
    """Return the variants to compare. If the comparison is left out, print the reason."""
    start_time_s = time.monotonic()
    try:
        variants = baseline.install_variants()
    except baseline.BaselineMissing as error:
        console.print(
            f"no comparison with plain ansible-runner and the baseline: {error}", style="yellow", markup=False
        )
        return baseline.only_current_variant()
    took_s = time.monotonic() - start_time_s
    console.print(f"baseline: commit {baseline.BASELINE_COMMIT[:7]} (ready after {took_s:.0f} s)", highlight=False)
    return variants


def _run_part(name: str, bench: Bench, results: Json, console: Console) -> bool:
    """Run a part and add its figures to the results. Print the error and return False if the part fails.

    Every error is caught, so that the later parts are measured.
    """
    console.print(f"part {name}: {PARTS[name].help}", highlight=False)
    start_time_s = time.monotonic()
    try:
        with measure_cpu_use() as cpu_use:
            figures = PARTS[name].measure(bench)
    except Exception as error:
        console.print(f"part {name} failed: {type(error).__name__}: {error}", style="red", markup=False)
        return False
    took_s = time.monotonic() - start_time_s
    cpu_text = f"used {cpu_use.bench_cpu_s:.0f} CPU-s; other processes used {cpu_use.others_share:.0%} of the CPU"
    console.print(f"  took {took_s:.0f} s, {cpu_text}", highlight=False)
    costs = {"took_s": round(took_s), "own_cpu_s": cpu_use.bench_cpu_s, "others_share": cpu_use.others_share}
    results["parts"][name] = {"figures": figures, **costs}
    return True


def _print_too_high_figures(results: Json, console: Console) -> bool:
    """Print each figure that is not less than its maximum with --quick; return whether there is one.

    A `Goal` contains the figure that was measured for it. The figures are the CPU time ratios of the actions
    (MAX_QUICK_RATIO) and the growths of the parsers (MAX_QUICK_GROWTH).
    """
    goals_with_too_high_figure = [
        goal
        for name, maximum in (("actions", MAX_QUICK_RATIO), ("growth", MAX_QUICK_GROWTH))
        if name in results["parts"]
        for goal in PARTS[name].goals(results["parts"][name]["figures"])
        if goal.measured >= maximum
    ]
    for goal in goals_with_too_high_figure:
        console.print(f"{goal.figure_name}: {goal.measured:.2f}", style="red")
    return bool(goals_with_too_high_figure)


def _results_file(*, quick: bool) -> Path:
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    return RESULTS_FOLDER / (time.strftime("bench-%Y%m%d-%H%M%S") + ("-quick" if quick else "") + ".json")


if __name__ == "__main__":
    sys.exit(main())
