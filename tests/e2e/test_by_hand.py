"""An operator runs an action with `smith play` while the agent has a job for the same VM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from smith_lab.system import LabSystem, outcome_of, wait_for
from support.played_vms import WAITING_ACTION

MakeLab = Callable[..., LabSystem]


def test_the_agents_job_waits_until_the_action_by_hand_has_ended(make_lab: MakeLab, tmp_path: Path) -> None:
    actions = tmp_path / "actions"
    actions.mkdir(mode=0o755)
    (actions / "hold.yml").write_text(WAITING_ACTION)
    (actions / "hold.yml").chmod(0o644)
    lab = make_lab(SMITH_ACTIONS_PATH=str(actions))
    lab.start_executor()
    service_id, other_id = lab.order_service("by-hand"), lab.order_service("other")
    for ordered_id in (service_id, other_id):
        lab.wait_for_jobs(ordered_id)
    arguments = ["play", "hold", "--service", service_id, "-e", f"properties.folder={tmp_path}", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "executor", *arguments],
        env=lab.environment(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as by_hand:
        try:
            wait_for((tmp_path / "running").exists, 120, "the playbook by hand")
            lab.admin.request_action(service_id, "start")
            # The agent completes a job of another service meanwhile, so it has also polled the job that waits.
            assert outcome_of(lab.run_action(other_id, "start")) == "Completed"
            job = lab.last_job(service_id)
            assert job["status"] == "Pending"
            assert lab.guests_of(service_id)[0]["status"] == "stopped"
            (tmp_path / "end").touch()
            assert by_hand.wait(120) == 0
        finally:
            by_hand.kill()
    lab.wait_for_jobs(service_id)
    assert outcome_of(lab.last_job(service_id)) == "Completed"
    assert lab.guests_of(service_id)[0]["status"] == "running"
    runs = lab.run_smith_json("runs", "list")
    (by_hand_run,) = [run for run in runs if run["job_id"] is None]
    (start_run,) = [run for run in runs if run["ident"] == lab.run_smith_json("jobs", "show", job["id"])["run_ident"]]
    assert by_hand_run["ended_at"] <= start_run["started_at"]
