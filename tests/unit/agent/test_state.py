"""Whether an outside system answers, and which log events a change causes."""

from __future__ import annotations

import pytest
import structlog

from executor.agent import state
from executor.agent.state import Link, LinkEvents, fulcrum_events, proxmox_events


def test_a_failure_right_after_an_outage_belongs_to_that_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(fulcrum_events())
    with structlog.testing.capture_logs() as logs:
        link.note_up()
        link.note_down("timeout")
        link.note_up()
        link.note_down("the answer of a call from before")
        assert link.is_up
        monkeypatch.setattr(state, "LATE_FAILURE_S", 0.0)
        link.note_down("a new outage")
        assert not link.is_up
    assert link.reason == "a new outage"
    assert [entry["event"] for entry in logs].count("fulcrum_stopped_answering") == 2


@pytest.mark.parametrize(("name", "events"), [("fulcrum", fulcrum_events()), ("proxmox", proxmox_events())])
def test_an_outage_a_refused_login_and_a_start_without_an_answer_are_different_events(
    name: str, events: LinkEvents
) -> None:
    link = Link(events)
    with structlog.testing.capture_logs() as logs:
        link.note_down("refused")
        link.note_down("refused again")
        link.note_up()
    assert [entry["event"] for entry in logs] == [f"{name}_not_answering", f"{name}_answered_again"]
    refused = Link(events)
    with structlog.testing.capture_logs() as logs:
        refused.note_down("HTTP 403", is_login_refused=True)
    assert [entry["event"] for entry in logs] in (["fulcrum_token_refused"], ["proxmox_login_refused"])
