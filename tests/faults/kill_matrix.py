"""The kill matrix: kills each kind of process at each point of a create, a start, an update and a delete.

A cell is an action, a point and a kind of process. A lane is a running system that tests one cell after the other.

    PYTHONPATH=tests python tests/faults/kill_matrix.py [--lanes N] [--minutes N] [--seed N]

The points are those that one job of each action shows without a fault, and the kinds those of the tree that runs while
a job is held at the point. Warm runs are tested at every point. Cold runs have other processes: these are tested while
a request that changes something waits for its answer. Exit code 0: every tested cell ended as expected.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from faults.matrix_lane import ACTIONS, Cell, Lane, NotReached, running_lane
from faults.matrix_points import Point, Request, requests_seen, steps

ROOT = Path(__file__).resolve().parents[2]
MODES = ("auto", "off")
#: These processes do not depend on whether runs are warm or cold, so they are killed in one of the two modes only.
KINDS_OF_EVERY_MODE = frozenset({"supervisor", "agent"})
#: How often a cell is tried. A try fails if no process of the kind runs when the next job is held at the point.
TRIES = 2

#: What a worker tests: the mode (a value of SMITH_WARM), the action, and the point.
Work = tuple[str, str, Point]


@dataclass
class Matrix:
    """The cells that were found, and how each tested cell ended. Several workers write to it."""

    possible: set[Cell] = field(default_factory=set)
    done: dict[Cell, list[str]] = field(default_factory=dict)  #: how each tested cell deviates; empty if it does not
    unreached: dict[Cell, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def deviating(self) -> dict[Cell, list[str]]:
        return {cell: found for cell, found in self.done.items() if found}

    def text(self) -> str:
        """Return the result as text: the counts, and each cell that deviates or was not reached."""
        kinds = sorted({cell.kind for cell in self.possible})
        lines = [f"{len(self.done)} cells done of {len(self.possible)} possible, {len(self.deviating)} deviating"]
        for action in ACTIONS:
            cells = [cell for cell in self.possible if cell.action == action]
            points = {cell.point for cell in cells}
            lines.append(f"{action}: {sum(c in self.done for c in cells)} of {len(cells)} at {len(points)} points")
        lines.append(f"kinds: {', '.join(kinds)}")
        lines += [f"not reached: {cell}: {reason}" for cell, reason in self.unreached.items()]
        for cell, found in self.deviating.items():
            lines += [f"DEVIATES: {cell}", *(f"    {text}" for text in found)]
        return "\n".join(lines)


class Worker:
    """Works through a queue of points with one lane at a time. A lane in which a cell deviated is replaced."""

    def __init__(self, matrix: Matrix, folder: Path, number: int, seed: int, log: Callable[[str], None]) -> None:
        self._matrix, self._folder, self._number, self._seed, self._log = matrix, folder, number, seed, log
        self._lanes: dict[str, tuple[Lane, ExitStack]] = {}
        self._started = 0

    def lane(self, warm: str) -> Lane:
        """Return the lane of a mode. Start it first if there is none, and stop the lane of the other mode."""
        if warm not in self._lanes:
            self.close()
            self._started += 1
            folder = self._folder / f"{self._number}-{self._started}"
            folder.mkdir()
            stack = ExitStack()
            self._lanes[warm] = (stack.enter_context(running_lane(folder, warm, self._seed)), stack)
        return self._lanes[warm][0]

    def close(self) -> None:
        """Stop the lane."""
        for _lane, stack in self._lanes.values():
            stack.close()
        self._lanes.clear()

    def test_point(self, work: Work, *, deadline: float) -> None:
        """Test every kind of process at one point, until `deadline` on the monotonic clock."""
        tries: dict[str, int] = {}
        kind: str | None = None
        while time.monotonic() < deadline:
            untested_kinds = self._test_cell(work, kind, tries)
            if not untested_kinds:
                return
            kind = untested_kinds[0]

    def test_kind(self, work: Work, kind: str) -> None:
        """Test one cell."""
        self._test_cell(work, kind, {})

    def _test_cell(self, work: Work, kind: str | None, tries: dict[str, int]) -> list[str]:
        """Test one cell; return the kinds at the point that were not tested yet."""
        warm, action, point = work
        started = time.monotonic()
        try:
            kinds, killed, deviations = self.lane(warm).test_cell(action, point, kind)
        except NotReached as reason:
            return self._not_reached(work, kind, tries, str(reason))
        except Exception as error:  # the lane is in an unknown state, and the other cells are still wanted
            deviations, killed, kinds = [f"{type(error).__name__}: {error}"], kind or "?", {}
        self._record(work, killed, set(kinds) | {killed}, deviations)
        self._log(f"{time.monotonic() - started:.1f} s: {Cell(*work, killed)}{'  DEVIATES' if deviations else ''}")
        if deviations:
            self.close()
        return self._untested(work)

    def _not_reached(self, work: Work, kind: str | None, tries: dict[str, int], reason: str) -> list[str]:
        if kind is None:
            return []  # the action does not have this point
        tries[kind] = tries.get(kind, 0) + 1
        if tries[kind] >= TRIES or kind not in {cell.kind for cell in self._matrix.possible}:
            with self._matrix.lock:
                self._matrix.unreached[Cell(*work, kind)] = reason
        return self._untested(work)

    def _record(self, work: Work, killed: str, kinds: set[str], deviations: list[str]) -> None:
        with self._matrix.lock:
            found = {Cell(*work, kind) for kind in kinds if _is_tested_in_mode(work, kind)}
            self._matrix.possible |= found
            self._matrix.done[Cell(*work, killed)] = deviations
            self._matrix.possible.add(Cell(*work, killed))

    def _untested(self, work: Work) -> list[str]:
        with self._matrix.lock:
            cells = [cell for cell in self._matrix.possible if (cell.warm, cell.action, cell.point) == work]
            return sorted(
                cell.kind for cell in cells if cell not in self._matrix.done and cell not in self._matrix.unreached
            )


def _is_tested_in_mode(work: Work, kind: str) -> bool:
    return work[0] != "off" or kind not in KINDS_OF_EVERY_MODE


def find_work(worker: Worker, mode: str) -> list[Work]:
    """Run one job of each action without faults; return the points of each."""
    found: list[Work] = []
    for action in ACTIONS:
        lane = worker.lane(mode)
        lane.run_undisturbed(action)
        points = requests_seen(lane.system)
        if mode == "off":
            points = [point for point in points if isinstance(point, Request) and point.method != "GET"]
        else:
            points = steps() + points
        found += [(mode, action, point) for point in points]
    return found


def run(folder: Path, *, lanes: int, minutes: float, seed: int, log: Callable[[str], None]) -> Matrix:
    """Test as many cells as fit into the time, in an order that the seed determines."""
    matrix, deadline = Matrix(), time.monotonic() + minutes * 60
    workers = [Worker(matrix, folder, number, seed, log) for number in range(lanes)]
    work_queue: queue.SimpleQueue[Work] = queue.SimpleQueue()
    for mode in MODES:
        work = find_work(workers[0], mode)
        random.Random(seed).shuffle(work)  # noqa: S311 (an order)
        for item in work:
            work_queue.put(item)
    threads = [threading.Thread(target=_run_worker, args=(worker, work_queue, deadline)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return matrix


def _run_worker(worker: Worker, work_queue: queue.SimpleQueue[Work], deadline: float) -> None:
    try:
        while time.monotonic() < deadline:
            worker.test_point(work_queue.get_nowait(), deadline=deadline)
    except queue.Empty:
        pass
    finally:
        worker.close()


def main() -> int:
    """Run the matrix, print its result and write it to bench/results."""
    parser = argparse.ArgumentParser(prog="make kill-matrix", description=__doc__)
    parser.add_argument("--lanes", type=int, default=3, help="systems that run at the same time (3)")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time (60)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order of the points (1)")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as folder:
        matrix = run(Path(folder), lanes=arguments.lanes, minutes=arguments.minutes, seed=arguments.seed, log=_print)
    took_s = time.monotonic() - started
    text = f"{matrix.text()}\nseed {arguments.seed}, {took_s:.0f} s"
    _print(f"\n{text}")
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"kill-matrix-{datetime.now():%Y%m%d-%H%M%S}.json"  # noqa: DTZ005 (a file's name, in local time)
    cells = {f"{'warm' if cell.warm == 'auto' else 'cold'} | {cell}": found for cell, found in matrix.done.items()}
    file.write_text(json.dumps({"text": text, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    _print(f"written: {file.relative_to(ROOT)}")
    return 0 if matrix.done and not matrix.deviating else 1


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
