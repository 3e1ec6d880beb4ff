"""A test can stop a thread of the agent at a named point until the test releases it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from executor.agent import crash_points

POINT = crash_points.POINTS[0]
WAIT_S = 30


def test_a_thread_is_held_once_at_its_point_until_the_test_releases_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, held = tmp_path / "crash.json", tmp_path / "held"
    file.write_text(json.dumps([{"point": POINT, "times": 1, "hold": str(held)}]))
    monkeypatch.setenv(crash_points.CRASH_FILE_VARIABLE, str(file))
    crash_points.crash_if_requested(crash_points.POINTS[1])  # another point is not held
    thread = threading.Thread(target=crash_points.crash_if_requested, args=(POINT,), daemon=True)
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not held.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.exists()
    assert thread.is_alive()
    crash_points.crash_if_requested(POINT)  # `times` is used up, and other threads are not blocked
    held.unlink()
    thread.join(WAIT_S)
    assert not thread.is_alive()
