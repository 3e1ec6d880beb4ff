"""FulcrumCore or Proxmox is away, and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from executor.lab.system import LabSystem, wait_for

MakeLab = Callable[..., LabSystem]

OUTAGE_S = 60.0


def test_fulcrum_down_at_start_and_for_a_minute_in_between_loses_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(time_scale=0.2)
    first = lab.order("early")
    lab.core.pause()
    process = lab.start_executor()
    wait_for(lambda: lab.log_events("fulcrum_stopped_answering"), 30, "the outage to be noticed")
    lab.core.resume()
    assert lab.settled(first, 120)["status"] == "Stopped"

    second = lab.order("during")
    wait_for(lambda: lab.log_events("playbook_started")[1:], 60, "the second create to begin")
    lab.core.pause()
    time.sleep(OUTAGE_S)  # the subject of the test
    assert process.poll() is None
    outages = lab.log_events("fulcrum_stopped_answering")
    assert len(outages) == 2, "one line a change of state"
    lab.core.resume()

    assert lab.settled(second, 120)["status"] == "Stopped"
    for service_id in (first, second):
        (job,) = lab.admin.jobs(service_id)
        assert job["status"] == "Completed"
        accepted = [call for call in lab.reports(job["id"]) if call["status"] == 204]
        assert len(accepted) == 1
    assert len(lab.vms()) == 2
    noisy = [event for event in lab.log_events() if event.get("level") in ("warning", "error")]
    assert len(noisy) <= 8, [event["event"] for event in noisy]


def test_a_claim_whose_answer_was_lost_is_still_ours(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.core.fault("drop_after", method="POST", path=".*/claim$", times=1)
    lab.start_executor()

    service_id = lab.order("lost-claim")

    assert lab.settled(service_id)["status"] == "Stopped"
    (job,) = lab.admin.jobs(service_id)
    assert job["status"] == "Completed"
    claims = [call for call in lab.core.history(method="POST") if call["path"].endswith(f"/{job['id']}/claim")]
    assert len(claims) == 1


def test_a_report_whose_answer_was_lost_is_settled_by_asking(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.core.fault("drop_after", method="POST", path=".*/complete$", times=1)
    lab.start_executor()

    service_id = lab.order("lost-report")
    lab.settled(service_id)

    wait_for(lambda: not lab.smith("jobs", "list", "--unreported"), 60, "the report to be settled")
    (row,) = lab.smith("jobs", "list")
    assert (row["status"], row["report_state"]) == ("completed", "reported")


def test_a_job_that_fulcrum_timed_out_is_kept_and_its_vm_found_again(make_lab: MakeLab) -> None:
    lab = make_lab(time_scale=1.0)
    lab.start_executor()
    service_id = lab.order("timed-out")
    wait_for(lambda: lab.log_events("playbook_started"), 60, "the create to begin")
    (job,) = lab.admin.jobs(service_id)
    lab.core.expire_job(job["id"])

    wait_for(lambda: lab.log_events("job_reported"), 120, "the late result to be settled")

    (row,) = lab.smith("jobs", "list")
    assert (row["status"], row["report_state"]) == ("completed", "orphaned")
    assert lab.admin.get_service(service_id)["status"] == "New"
    assert lab.act(service_id, "create")["status"] == "Completed"
    assert len(lab.vms()) == 1
    assert lab.admin.get_service(service_id)["agentInstanceId"].endswith(f"/{lab.vms()[0]['vmid']}")


def test_proxmox_away_for_a_moment_is_tried_again_inside_the_deadline(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.proxmox.fail("GET", "/version", status=0, times=2)
    lab.start_executor()

    service_id = lab.order("patient")

    assert lab.settled(service_id, 200)["status"] == "Stopped"
    assert len(lab.vms()) == 1


def test_a_disabled_agent_claims_nothing_and_leaves_its_status_alone(make_lab: MakeLab) -> None:
    lab = make_lab(FULCRUM_HEARTBEAT_INTERVAL_S="1")
    lab.start_executor()
    wait_for(lambda: lab.log_events("agent_recognised"), 30, "the first heartbeat")

    def disable() -> list[dict[str, Any]]:
        # FulcrumCore saves a heartbeat's whole row: one that is under way takes our word back.
        lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disabled"})
        return lab.log_events("agent_disabled")

    wait_for(disable, 30, "the executor to notice", pause_s=2)

    service_id = lab.order("resting")
    time.sleep(5)  # several polls' time in which nothing may happen

    assert lab.last_job(service_id)["status"] == "Pending"
    assert lab.admin.call("GET", f"/agents/{lab.ids.agent_id}")["status"] == "Disabled"
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Connected"})
    assert lab.settled(service_id)["status"] == "Stopped"
