"""FulcrumCore is unavailable and recovers, or disables the agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from smith_lab.system import LabSystem, outcome_of, wait_for

MakeLab = Callable[..., LabSystem]

OUTAGE_S = 60.0


def test_f11_fulcrumcore_outages_at_the_start_and_during_a_job_lose_nothing(make_lab: MakeLab) -> None:
    """FulcrumCore is unavailable at the start and during a job → no exit, no loss, one log line per outage."""
    lab = make_lab(time_scale=0.2)
    first = lab.order_service("early")
    lab.core.pause()
    process = lab.start_executor()
    wait_for(lambda: lab.log_events("fulcrum_not_answering"), 30, "the outage to be noticed")
    lab.core.resume()
    assert lab.wait_for_jobs(first, 120)["status"] == "Stopped"

    second = lab.order_service("during")
    wait_for(lambda: lab.log_events("playbook_started")[1:], 60, "the second create to begin")
    lab.core.pause()
    time.sleep(OUTAGE_S)  # the duration of the outage is what is tested
    assert process.poll() is None
    outages = [*lab.log_events("fulcrum_not_answering"), *lab.log_events("fulcrum_stopped_answering")]
    assert len(outages) == 2, "one log line per outage"
    lab.core.resume()

    assert lab.wait_for_jobs(second, 120)["status"] == "Stopped"
    for service_id in (first, second):
        (job,) = lab.admin.list_jobs(service_id)
        assert outcome_of(job) == "Completed"
        accepted = [call for call in lab.reports(job["id"]) if call["status"] == 204]
        assert len(accepted) == 1
    assert len(lab.guests()) == 2
    warnings_and_errors = [event for event in lab.log_events() if event.get("level") in ("warning", "error")]
    assert len(warnings_and_errors) <= 8, [event["event"] for event in warnings_and_errors]


def test_a_heartbeat_follows_each_outage_at_once(make_lab: MakeLab) -> None:
    """The agent does not wait for its interval (25 s): without a heartbeat for 30 s it would count as disconnected."""
    lab = make_lab(FULCRUM_HEARTBEAT_INTERVAL_S="25", FULCRUM_POLL_INTERVAL_S="0.5")
    lab.start_executor()
    wait_for(lambda: lab.core.history(path_end="/agents/me/status"), 30, "the first heartbeat")
    lab.core.clear_history()
    lab.core.pause()
    wait_for(lambda: lab.log_events("fulcrum_stopped_answering"), 30, "the outage to be noticed")
    lab.core.resume()

    wait_for(lambda: lab.core.history(path_end="/agents/me/status"), 60, "a heartbeat")

    paths = [call["path"] for call in lab.core.history()]
    earlier = paths[: next(number for number, path in enumerate(paths) if path.endswith("/agents/me/status"))]
    assert sum(path.endswith("/jobs/pending") for path in earlier) < 20, "the heartbeat waited for its interval"


def test_a_disabled_agent_claims_nothing_and_does_not_change_its_status(make_lab: MakeLab) -> None:
    lab = make_lab(FULCRUM_HEARTBEAT_INTERVAL_S="1")
    lab.start_executor()
    wait_for(lambda: lab.log_events("agent_identified"), 30, "the first heartbeat")

    def disable() -> list[dict[str, Any]]:
        # FulcrumCore saves the whole agent row at a heartbeat, so a concurrent heartbeat may overwrite this status.
        lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disabled"})
        return lab.log_events("agent_disabled")

    wait_for(disable, 30, "the executor to notice", interval_s=2)

    service_id = lab.order_service("disabled")
    time.sleep(5)  # several polls, in which no job may be claimed

    assert lab.last_job(service_id)["status"] == "Pending"
    assert lab.admin.call("GET", f"/agents/{lab.ids.agent_id}")["status"] == "Disabled"
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Connected"})
    assert lab.wait_for_jobs(service_id)["status"] == "Stopped"
