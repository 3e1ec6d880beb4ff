"""Whether an outside system answers, and which log events a change causes."""

from __future__ import annotations

import pytest
import structlog

from executor.agent import state
from executor.agent.state import Link, LinkLogFunctions, fulcrum_log_functions, proxmox_log_functions


def test_a_failure_right_after_an_outage_belongs_to_that_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(fulcrum_log_functions())
    with structlog.testing.capture_logs() as logs:
        link.record_answer()
        link.record_failed_call("timeout")
        link.record_answer()
        link.record_failed_call("the answer of a call from before")
        assert link.is_up
        monkeypatch.setattr(state, "LATE_FAILURE_S", 0.0)
        link.record_failed_call("a new outage")
        assert not link.is_up
    assert link.reason == "a new outage"
    assert [entry["event"] for entry in logs].count("fulcrum_stopped_answering") == 2


@pytest.mark.parametrize(
    ("name", "events"), [("fulcrum", fulcrum_log_functions()), ("proxmox", proxmox_log_functions())]
)
def test_an_outage_a_refused_login_and_a_start_without_an_answer_are_different_events(
    name: str, events: LinkLogFunctions
) -> None:
    link = Link(events)
    with structlog.testing.capture_logs() as logs:
        link.record_failed_call("refused")
        link.record_failed_call("refused again")
        link.record_answer()
    assert [entry["event"] for entry in logs] == [f"{name}_not_answering", f"{name}_answered_again"]
    refused_link = Link(events)
    with structlog.testing.capture_logs() as logs:
        refused_link.record_failed_call("HTTP 403", has_refused_credentials=True)
    assert [entry["event"] for entry in logs] in (["fulcrum_token_refused"], ["proxmox_login_refused"])
