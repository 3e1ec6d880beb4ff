"""`smith pause`, during which no agent of the database starts a job, and `smith resume`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli, claim

from executor.database import agent_queries, job_queue
from executor.database.engine import read_only_session
from executor.model import JobResult


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.submit()
    return cli


def is_paused(smith: Cli) -> bool:
    with smith.engine() as engine, read_only_session(engine) as session:
        return agent_queries.find_pause(session) is not None


def test_a_pause_needs_a_reason_and_is_audited(smith: Cli) -> None:
    assert smith("pause").returncode == 2
    output = smith.ok("pause", "--reason", "update of pve2")
    assert "update of pve2" in output
    assert "no job is running" in output
    assert is_paused(smith)
    assert "already paused" in smith.ok("pause", "--reason", "again")
    assert "the agents were paused since" in smith.ok("resume")
    assert not is_paused(smith)
    assert "nothing to resume" in smith.ok("resume")
    verbs = [(entry["verb"], entry["subject_kind"]) for entry in smith.json("audit", "list")]
    assert verbs == [("resume", "agents"), ("pause", "agents")]


def test_a_pause_is_shown_by_status(smith: Cli) -> None:
    assert "paused" not in smith.ok("status")
    smith.ok("pause", "--reason", "update of pve2")
    assert "update of pve2" in smith.ok("status")
    assert smith.json("status")["paused"]["reason"] == "update of pve2"


def test_a_pause_is_shown_by_doctor(smith: Cli) -> None:
    smith.ok("pause", "--reason", "update of pve2")
    done = smith("doctor")
    (line,) = [line for line in done.stdout.splitlines() if "update of pve2" in line]
    assert "warning" in line
    assert "smith resume" in done.stdout


def test_pause_with_wait_shows_the_running_jobs_and_ends_after_the_last_one(smith: Cli) -> None:
    with smith.database_session() as session:
        lease = claim(session)
    timed_out = smith("pause", "--reason", "x", "--wait", "--timeout", "0.1")
    assert timed_out.returncode == 1
    assert f"waiting for 1 running job: job {lease.job_id} (create" in timed_out.stdout
    process = subprocess.Popen(
        smith.command("pause", "--reason", "x", "--wait", "--json"),
        env=smith.environment(),
        cwd=smith.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    with smith.database_session() as session:
        job_queue.finish(session, lease, JobResult(succeeded=True, vm={"vmid": 101}))
    printed, _ = process.communicate(timeout=GIVE_UP_S)
    assert process.returncode == 0
    assert '"running": 0' in printed
