"""`smith top`: the running jobs with their steps, the waiting jobs, the unreported results and the last failures."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import update
from support.cli_world import GIVE_UP_S, Cli, claim

from executor.database import job_queue, job_runs, mappings, nodes
from executor.database.nodes import AgentProcess
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Run
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    """Return a command line whose database has a failed job, a running one, and one that waits for its next attempt."""
    cli = Cli(tmp_path)
    cli.finished(JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space on local-zfs"))
    cli.submit(service={"name": "web shop"}, service_id="s-1", action="start")
    with cli.database_session() as session:
        mappings.reserve(session, service_id="s-1", cluster="default", vmid=100123, name="web-1")
        lease = claim(session)
        job_runs.store_run_start(session, lease, run_ident="start-1", playbook="start.yml")
        session.flush()
        upid = {"upid": "UPID:pve1:1", "at": 1, "percent": 40.0, "log": []}
        step = {"at": 1, "text": "waiting for Proxmox task UPID:pve1:1, 40 %"}
        story = {"tasks": [], "steps": [step], "proxmox_tasks": [upid]}
        session.execute(update(Run).values(story=story))
        agent = AgentProcess(boot_id="a", host="pve-host", pid=1, version="1", concurrency=8)
        nodes.store_agent_start(session, agent)
    cli.submit(action="stop")
    with cli.database_session() as session:
        job_queue.requeue(session, claim(session), backoff_s=3600, reason="VM_LOCKED: a backup runs")
    return cli


def test_one_view_shows_running_waiting_and_failed_jobs(smith: Cli) -> None:
    output = smith.ok("top", "--once")
    for text in ("1 of 8", "100123 web-1", "waiting for Proxmox task", "web shop", "VM_LOCKED: a backup runs"):
        assert text in output, text
    assert "CAPACITY: no space on local-zfs" in output
    (running,) = smith.json("top")["running"]
    assert (running["action"], running["percent"], running["guest"]) == ("start", 40.0, "100123 web-1")


def test_the_step_of_an_earlier_attempt_is_not_shown(smith: Cli) -> None:
    with smith.database_session() as session:
        session.execute(update(Run).values(attempt=0))
    (running,) = smith.json("top")["running"]
    assert (running["text"], running["percent"]) == ("no run in progress", None)


def test_every_running_agent_and_its_slots_are_counted(smith: Cli) -> None:
    with smith.database_session() as session:
        for number in range(14):
            agent = AgentProcess(boot_id=f"b{number}", host=f"host-{number}", pid=1, version="1", concurrency=8)
            nodes.store_agent_start(session, agent)
        session.flush()
        nodes.set_job_limit(session, session.get_one(AgentProcessRow, "b3"), 2)
    document = smith.json("top")
    assert (document["agents_running"], document["slots"]) == (15, 14 * 8 + 2)
    assert "15 running" in smith.ok("status")


def test_an_empty_database_is_shown(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    with cli.engine():
        pass
    output = cli.ok("top", "--once")
    assert "no agent is running" in output
    assert "no job is running" in output


def test_on_a_terminal_the_view_is_shown_again_until_an_interrupt(smith: Cli) -> None:
    master, slave = os.openpty()
    env = smith.environment(TERM="xterm-256color", COLUMNS="80", LINES="40")
    process = subprocess.Popen(smith.command("top"), env=env, cwd=smith.folder, stdin=slave, stdout=slave)
    os.close(slave)
    output = b""
    while output.count(b"Last failures") < 2:
        output += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(GIVE_UP_S) == 0
    os.close(master)
