"""Runs creates on three machines and one PostgreSQL, while the machines are killed, suspended and cut off.

    PYTHONPATH=tests python -m faults.many_machines --jobs 300 [--seed N] [--check FILE]

Each machine is a network namespace with the real executor. Simulator, stand-in and PostgreSQL run in a namespace of
their own. The history is written to a file, which `--check` checks again without a run. The seed determines the faults;
the operating system schedules the processes, so a replay is similar, not identical. Exit code 0: no promise was
violated, at least 80 % of the jobs completed and, with leases of 30 s, jobs of killed machines were taken over in time.
Exit code 2: the history for `--check` cannot be read. Exit code 3: the trial cannot run on this machine, for the reason
that is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from faults.chaos.__main__ import ROOT, print_line, progress_printer
from faults.many_machines import network, recorder
from faults.many_machines.check import takeover_problems
from faults.many_machines.report import Report, make_report
from faults.many_machines.run import Size, run
from support.databases import postgres_binaries

NO_HISTORY, CANNOT_RUN = 2, 3
DEFAULT_LEASE_S = 30.0
#: So many creates are requested for each fault that some are running almost always.
JOBS_PER_FAULT = 8


def main() -> int:
    """Run the trial or check a history, print the report and write it to bench/results."""
    arguments = _arguments()
    if arguments.check:
        try:
            history = recorder.read(arguments.check)
        except (OSError, ValueError) as error:
            print_line(f"no history can be read from {arguments.check}: {error}")
            return NO_HISTORY
        return _result(make_report(history, [], seed=arguments.seed or 0, lease_s=arguments.lease, took_s=0, faults={}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the networks are removed
    reason = network.enter() or ("" if postgres_binaries() else "there is no PostgreSQL server on this machine")
    if reason:
        print_line(f"NOT TESTED: several machines: {reason}")
        return CANNOT_RUN
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    faults = arguments.faults or max(1, arguments.jobs // JOBS_PER_FAULT)
    size = Size(jobs=arguments.jobs, faults=faults, seed=seed, lease_s=arguments.lease, time_scale=arguments.time_scale)
    print_line(f"seed {seed}: `make many-machines JOBS={size.jobs} SEED={seed}` repeats this run")
    history_file = arguments.record.with_suffix(".jsonl")
    history_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="many-machines-") as folder:
        report = run(Path(folder), size, history_file, progress_printer())
    arguments.record.write_text(json.dumps(report.record(), indent=1) + "\n", encoding="utf-8")
    print_line(f"written: {arguments.record}, {history_file}")
    return _result(report)


def _arguments() -> Any:
    name = f"many-machines-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name, in local time)
    parser = argparse.ArgumentParser(
        prog="make many-machines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=300, help="creates to request (300)")
    parser.add_argument("--faults", type=int, default=None, help="faults to inject (one for eight creates)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    parser.add_argument("--lease", type=float, default=DEFAULT_LEASE_S, help="SMITH_LEASE_S (30)")
    parser.add_argument("--time-scale", type=float, default=1.0, help="seconds for a second of Proxmox (1)")
    parser.add_argument("--record", type=Path, default=ROOT / "bench" / "results" / name, help="file of the report")
    parser.add_argument("--check", type=Path, default=None, help="check this recorded history only")
    return parser.parse_args()


def _result(report: Report) -> int:
    print_line(f"\n{report.text()}")
    slow = takeover_problems(report.takeovers) if report.lease_s == DEFAULT_LEASE_S else []
    for text in slow:
        print_line(text)
    return 0 if report.is_passed and not slow else 1


if __name__ == "__main__":
    sys.exit(main())
