"""The link state of an outside system."""

from __future__ import annotations

import pytest
import structlog

from executor.agent import state
from executor.agent.state import Link


def test_a_failure_right_after_an_outage_belongs_to_that_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link("fulcrum")
    with structlog.testing.capture_logs() as logs:
        link.note_down("timeout")
        link.note_up()
        link.note_down("the answer of a call from before")
        assert link.is_up
        monkeypatch.setattr(state, "LATE_FAILURE_S", 0.0)
        link.note_down("a new outage")
        assert not link.is_up
    assert link.reason == "a new outage"
    assert [entry["event"] for entry in logs].count("fulcrum_stopped_answering") == 2
