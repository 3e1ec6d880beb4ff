"""What `smith jobs show` reports about a create, and a pause of the agent."""

from __future__ import annotations

import pytest
from smith_lab.system import LabSystem, outcome_of, wait_for

#: All tests share one running system.
pytestmark = pytest.mark.xdist_group("live")


def test_jobs_show_lists_the_ansible_tasks_steps_and_proxmox_tasks_of_a_create(lab: LabSystem) -> None:
    service_id = lab.order_service("story")
    lab.wait_for_jobs(service_id)
    shown = lab.run_smith_json("jobs", "show", lab.last_job(service_id)["id"])
    assert (shown["service_name"], shown["events"]) == ("story", [])
    (vm,) = lab.guests_of(service_id)
    assert shown["vmid"] == vm["vmid"]
    (run,) = shown["runs"]
    story = run["story"]
    assert {row["outcome"] for row in story["tasks"]} <= {"ok", "changed", "skipped"}
    assert any("cloning the template" in row["text"] for row in story["steps"])
    assert {row["upid"] for row in story["proxmox_tasks"]} <= set(run["upids"])
    assert any(":qmclone:" in row["upid"] for row in story["proxmox_tasks"])


def test_a_paused_agent_claims_nothing_until_it_is_resumed(lab: LabSystem) -> None:
    lab.run_smith_json("pause", "--reason", "maintenance", "--wait")
    try:
        service_id = lab.order_service("later")
        wait_for(lambda: lab.run_smith_json("status")["jobs"]["pending"], 60, "the agent to have polled the job")
        job = lab.last_job(service_id)
        assert (job["status"], lab.run_smith_json("status")["paused"]["reason"]) == ("Pending", "maintenance")
    finally:
        lab.run_smith_json("resume")
    lab.wait_for_jobs(service_id)
    assert outcome_of(lab.last_job(service_id)) == "Completed"
