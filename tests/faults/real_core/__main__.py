"""Runs jobs on a real FulcrumCore while its process and its PostgreSQL are killed, and checks that none was lost.

    PYTHONPATH=tests python -m faults.real_core --binary FILE --jobs 300 --kills 30 [--seed N]

The executor works with the Proxmox stand-in. Its requests to FulcrumCore pass a forwarder that records each exchange.
Exit code 0: no promise and no rule of the contract was violated, and at least 80 % of the jobs completed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from faults.chaos.__main__ import ROOT, print_line, progress_printer
from faults.chaos.report import count_text
from faults.real_core.core import running_real_core
from faults.real_core.run import Result, Size, run


def main() -> int:
    """Run the load, print the report and write it, with every exchange, to bench/results."""
    arguments = _arguments()
    size = Size(jobs=arguments.jobs, kills=arguments.kills, seed=arguments.seed)
    text = f"JOBS={size.jobs} KILLS={size.kills} SEED={size.seed}"
    print_line(f"seed {size.seed}: `make real-core {text}` repeats this run")
    record = ROOT / "bench" / "results" / f"real-core-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name)
    record.parent.mkdir(parents=True, exist_ok=True)
    exchange_file = record.with_suffix(".exchanges.jsonl")
    with tempfile.TemporaryDirectory(prefix="real-core-") as name:
        folder = Path(name)
        with running_real_core(arguments.binary.resolve(), folder / "fulcrum") as core:
            result = run(folder, core, size, exchange_file, progress_printer())
    for line in lines_of(result):
        print_line(line)
    record.write_text(json.dumps(result.report.record() | _more(result), indent=1) + "\n", encoding="utf-8")
    print_line(f"written: {record}, {exchange_file}")
    return 0 if result.report.is_passed else 1


def lines_of(result: Result) -> list[str]:
    """Return the result as text."""
    answers = [f"  {name}: {count_text(statuses)}" for name, statuses in result.exchanges.items()]
    total = sum(sum(statuses.values()) for statuses in result.exchanges.values())
    return [
        result.report.text(),
        f"jobs by action: {count_text(result.actions)}",
        f"timed out by FulcrumCore: {result.timed_out}",
        f"exchanges with FulcrumCore: {total}",
        *answers,
    ]


def _more(result: Result) -> dict[str, object]:
    return {"actions": result.actions, "timed_out": result.timed_out, "exchanges": result.exchanges}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make real-core", description=__doc__)
    parser.add_argument("--binary", type=Path, required=True, help="the program of a FulcrumCore (FULCRUM_BINARY)")
    parser.add_argument("--jobs", type=int, default=300, help="jobs to request (300)")
    parser.add_argument("--kills", type=int, default=30, help="how often to kill FulcrumCore (30)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    arguments = parser.parse_args()
    if not arguments.binary.is_file():
        parser.error(f"FULCRUM_BINARY is no file: {arguments.binary}")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
