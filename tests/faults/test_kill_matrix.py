"""A fixed part of the kill matrix: one process is killed at a point of a job. `make kill-matrix` tests all points."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.matrix_lane import Lane, running_lane
from faults.matrix_points import Point, Request, Step

CLONE = Request("POST", "/nodes/*/qemu/*/clone")
CONFIGURE = Request("PUT", "/nodes/*/qemu/*/config")
RESIZE = Request("PUT", "/nodes/*/qemu/*/resize")
START = Request("POST", "/nodes/*/qemu/*/status/start")
DESTROY = Request("DELETE", "/nodes/*/qemu/*")
STATE = Request("GET", "/nodes/*/qemu/*/status/current")
TASK = Request("GET", "/nodes/*/tasks/*/status")
CELLS: list[tuple[str, Point, str]] = [
    ("create", CLONE, "warm guard"),
    ("start", START, "warm client"),
    ("update", CONFIGURE, "warm run"),
    ("delete", DESTROY, "warm guard"),
    ("create", CLONE, "warm client"),
    ("create", CONFIGURE, "warm guard"),
    ("create", RESIZE, "warm run"),
    ("create", TASK, "warm client"),
    ("create", STATE, "warm run"),
    ("start", START, "warm guard"),
    ("start", STATE, "warm run"),
    ("update", CONFIGURE, "warm guard"),
    ("update", STATE, "warm client"),
    ("delete", DESTROY, "warm run"),
    ("delete", STATE, "warm client"),
    ("create", Step("vmid_reserved"), "agent"),
    ("start", START, "agent"),
    ("delete", DESTROY, "supervisor"),
    ("update", Step("job_finished"), "agent"),
    ("create", Step("run_ended"), "playbook server"),
]


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with running_lane(tmp_path_factory.mktemp("matrix"), "auto", 1) as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("action", "point", "kind"), CELLS, ids=[" ".join(map(str, cell)) for cell in CELLS])
def test_f35_any_process_of_the_tree_is_killed(lane: Lane, action: str, point: Point, kind: str) -> None:
    """Any process of the tree is killed at any point of a job
    → the job completes; one VM at most, no orphan process.
    """
    kinds, _killed, deviations = lane.test_cell(action, point, kind)
    assert deviations == []
    assert kinds.keys() >= {"supervisor", "agent"}
