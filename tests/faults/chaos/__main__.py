"""Chaos: runs many jobs under random faults and checks that no promise is violated.

    PYTHONPATH=tests python -m faults.chaos --jobs 2000 --kills 300 [--seed N] [--database postgresql]

FulcrumCore simulator, Proxmox stand-in and the real executor run as in the other fault tests. The executor reaches
simulator and stand-in through proxies.
The seed determines the load and the faults. The operating system schedules the processes, so a replay is similar, not
identical. Exit code 0: no promise was violated, and at least 80 % of the jobs completed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from faults.chaos.run import Size, run
from support.small_disks import enter_mount_namespace

ROOT = Path(__file__).resolve().parents[3]
PROGRESS_INTERVAL_S = 10.0


def main() -> int:
    """Run the chaos, print its report and write it to bench/results."""
    size, record = _size_and_record()
    text = f"JOBS={size.jobs} KILLS={size.kills} SEED={size.seed} DATABASE={size.database}"
    print_line(f"seed {size.seed}: `make chaos {text}` repeats this run")
    if size.no_small_disks_reason:
        print_line(f"NOT TESTED: full folders: {size.no_small_disks_reason}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = run(Path(folder), size, progress_printer())
    print_line(f"\n{report.text()}")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(report.record(), indent=1) + "\n", encoding="utf-8")
    print_line(f"written: {record}")
    return 0 if report.is_passed else 1


def _size_and_record() -> tuple[Size, Path]:
    """Read the command line. The mount namespace is made here, before any thread is started."""
    name = f"chaos-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name, in local time)
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300, help="jobs to request (300)")
    parser.add_argument("--kills", type=int, default=40, help="processes to kill (40)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    parser.add_argument(
        "--database", choices=("sqlite", "postgresql"), default="sqlite", help="the executor's database"
    )
    parser.add_argument("--record", type=Path, default=ROOT / "bench" / "results" / name, help="file of the report")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    size = Size(
        jobs=arguments.jobs,
        kills=arguments.kills,
        seed=seed,
        database=arguments.database,
        no_small_disks_reason=enter_mount_namespace(),
    )
    return size, arguments.record


def progress_printer() -> Callable[[str], None]:
    """Return a function that prints a text at most every ten seconds."""
    printed_at = 0.0

    def progress(text: str) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= PROGRESS_INTERVAL_S:
            printed_at = time.monotonic()
            print_line(text)

    return progress


def print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
