"""`smith status`, `smith critical` and `smith runs`: whether the agent works, and what it has done."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli

from executor.database import job_queue, mappings, nodes, outbox, periods
from executor.database.tables.agents import AgentProcessRow, CriticalJob
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode

#: Longer than an agent may be silent before it counts as vanished.
LONG = timedelta(days=1)


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_status_counts_jobs_reports_and_vms(smith: Cli) -> None:
    smith.finished(JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full"))
    smith.submit()
    with smith.database_session() as session:
        mappings.reserve(session, service_id="s-1", cluster="default", vmid=100001, name="web")
    document = smith.json("status")
    assert set(document) == {
        "agents_running",
        "slots",
        "paused",
        "fulcrum",
        "proxmox",
        "critical_failing",
        "jobs",
        "reports_due",
        "reports_postponed",
        "claimed_elsewhere",
        "mappings",
        "nodes",
        "critical_overdue",
    }
    assert document["jobs"] == {"pending": 1, "processing": 0, "completed": 0, "failed": 1}
    assert document["reports_due"] == 1
    assert document["mappings"] == {"reserved": 1, "active": 0, "pending_deletion": 0, "deleted": 0, "vm_lost": 0}
    output = smith.ok("status")
    assert "1 pending" in output
    assert "no agent has run yet" in output
    assert "no agent is running" in output
    assert (document["agents_running"], document["slots"]) == (0, 0)
    assert (document["fulcrum"]["state"], document["proxmox"]["state"]) == ("unknown", "unknown")


def record_heartbeats(smith: Cli, *errors: str | None) -> None:
    """Store one execution of the critical job Heartbeat for each error; None is a successful heartbeat."""
    with smith.database_session() as session:
        for error in errors:
            periods.record_executions(
                session, "Heartbeat", 10.0, started_at=datetime.now(UTC), execution_count=1, error=error
            )


def test_status_shows_a_failing_heartbeat_with_its_error_and_the_last_success(smith: Cli) -> None:
    with smith.database_session() as session:
        session.add(_node("alive", datetime.now(UTC)))
    record_heartbeats(smith, None)
    assert smith.json("status")["fulcrum"]["state"] == "ok"
    assert "the last accepted heartbeat was" in smith.ok("status")
    record_heartbeats(smith, "HTTP 502: bad gateway")
    document = smith.json("status")
    assert (document["fulcrum"]["state"], document["fulcrum"]["error"]) == ("failing", "HTTP 502: bad gateway")
    assert [(job["name"], job["last_error"]) for job in document["critical_failing"]] == [
        ("Heartbeat", "HTTP 502: bad gateway")
    ]
    output = smith.ok("status")
    assert "the heartbeat fails, the last accepted heartbeat was" in output
    assert "Critical jobs that fail" in output


def test_status_shows_whether_proxmox_answered_the_agent(smith: Cli) -> None:
    now = datetime.now(UTC)
    with smith.database_session() as session:
        session.add(_node("alive", now))
    assert smith.json("status")["proxmox"]["state"] == "unknown"
    for error, state, text in (
        ("PVE_UNREACHABLE: refused", "failing", ": PVE_UNREACHABLE: refused"),
        (None, "ok", "ok, "),
    ):
        with smith.database_session() as session:
            nodes.store_proxmox_check(session, "alive", proxmox_error=error)
        assert smith.json("status")["proxmox"]["state"] == state
        assert text in smith.ok("status")


def test_a_killed_agent_of_this_host_has_vanished_after_two_missed_updates(smith: Cli) -> None:
    """Its process id no longer exists on this host. An agent that is only silent may be slow, or on another host."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    seen_at = datetime.now(UTC) - timedelta(seconds=15)  # with a lease of 30 s, an agent writes every 5 s
    host = socket.gethostname()
    with smith.database_session() as session:
        session.add(_node("killed", seen_at, host=host, pid=ended.pid))
        session.add(_node("slow", seen_at, host=host, pid=os.getpid()))
        session.add(_node("elsewhere", seen_at, host="another", pid=ended.pid))
    states = {node["id"]: node["state"] for node in smith.json("status")["nodes"]}
    assert states == {"killed": "vanished", "slow": "running", "elsewhere": "running"}


def test_status_with_watch_is_shown_again_until_an_interrupt(smith: Cli) -> None:
    smith.submit()
    assert smith("status", "--watch", "--json").returncode == 2
    master, slave = os.openpty()
    process = subprocess.Popen(
        smith.command("status", "--watch"), env=smith.environment(), cwd=smith.folder, stdin=slave, stdout=slave
    )
    os.close(slave)
    output = b""
    while output.count(b"1 pending") < 2:
        output += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(GIVE_UP_S) == 0
    os.close(master)
    assert b"\x1b[H" in output


def test_status_shows_the_results_that_fulcrumcore_has_not_accepted_with_the_cause(smith: Cli) -> None:
    failed = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")
    due, refused = smith.finished(failed), smith.finished(failed)
    with smith.database_session() as session:
        outbox.postpone_report(session, refused, backoff_s=600, note="HTTP 400: the action does not exist")
    document = smith.json("status")
    assert document["reports_due"] == 2
    assert [(report["id"], report["attempts"], report["reason"]) for report in document["reports_postponed"]] == [
        (refused, 1, "HTTP 400: the action does not exist")
    ]
    assert due != refused
    output = smith.ok("status")
    assert "Results that FulcrumCore has not accepted" in output
    assert "the action does not exist" in output


def test_status_shows_the_jobs_that_another_executor_has_claimed(smith: Cli) -> None:
    job_id = smith.submit()
    assert smith.json("status")["claimed_elsewhere"] == []
    claimed_elsewhere = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")
    with smith.database_session() as session:
        job = job_queue.claim(session, "me", lease_s=30)
        assert job is not None
        job_queue.finish(session, job_queue.lease_of(job), claimed_elsewhere, ReportState.CLAIMED_ELSEWHERE)
    (row,) = smith.json("status")["claimed_elsewhere"]
    assert (row["id"], row["fulcrum_id"]) == (job_id, job.fulcrum_id)
    assert "another installation with this agent's token has claimed" in smith.ok("status")
    assert "its next attempt is due now" in smith.ok("jobs", "retry", str(job_id))
    assert smith.json("status")["claimed_elsewhere"] == []


def test_status_shows_running_stopped_and_vanished_agents(smith: Cli) -> None:
    now = datetime.now(UTC)
    with smith.database_session() as session:
        session.add_all([_node("alive", now), _node("killed", now - LONG), _node("left", now - LONG, stopped_at=now)])
        session.add(_node("leaving", now, draining=True))
    states = {node["id"]: node["state"] for node in smith.json("status")["nodes"]}
    assert states == {"alive": "running", "killed": "vanished", "left": "stopped", "leaving": "draining"}
    assert "vanished" in smith.ok("status")


def test_a_killed_agent_of_this_host_has_vanished_before_its_leases_expire(smith: Cli) -> None:
    silent = datetime.now(UTC) - timedelta(seconds=15)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"host": socket.gethostname()}
    with smith.database_session() as session:
        session.add(_node("killed", silent, pid=ended.pid, **here))
        session.add(_node("silent", silent, pid=os.getpid(), **here))
        session.add(_node("other host", silent, pid=ended.pid))
        session.add(_node("seen", datetime.now(UTC), pid=ended.pid, **here))
    states = {node["id"]: node["state"] for node in smith.json("status", SMITH_LEASE_S="30")["nodes"]}
    assert states == {"killed": "vanished", "silent": "running", "other host": "running", "seen": "running"}


def test_a_critical_job_without_an_agent_is_overdue(smith: Cli) -> None:
    with smith.database_session() as session:
        for name, interval_s in (("Heartbeat", 10.0), ("PruneCompletedJobs", 3600.0)):
            periods.try_start_period(session, name, interval_s)
            periods.record_period_result(session, name, error=None)
        periods.try_start_period(session, "GetPendingJobs", 2.0)
        periods.record_period_result(session, "GetPendingJobs", error="HTTP 502")
        heartbeat = session.get(CriticalJob, "Heartbeat")
        assert heartbeat is not None
        heartbeat.last_started_at = heartbeat.last_finished_at = datetime.now(UTC) - timedelta(seconds=120)
    jobs_by_name = {job["name"]: job for job in smith.json("critical", "list")}
    assert {name: job["overdue"] for name, job in jobs_by_name.items()} == {
        "GetPendingJobs": False,
        "Heartbeat": True,
        "PruneCompletedJobs": False,
    }
    assert jobs_by_name["GetPendingJobs"]["failures"] == 1
    assert jobs_by_name["GetPendingJobs"]["last_error"] == "HTTP 502"
    assert jobs_by_name["Heartbeat"]["last_ok_at"].endswith("Z")
    assert not jobs_by_name["PruneCompletedJobs"]["due"]
    assert smith.json("status")["critical_overdue"] == ["Heartbeat"]
    lines = {line.split()[0]: line for line in smith.ok("critical", "list").splitlines()}
    assert "overdue" in lines["Heartbeat"]
    assert "failing" in lines["GetPendingJobs"]
    assert " ok " in lines["PruneCompletedJobs"]


def test_runs_are_listed_newest_first_and_for_one_job(smith: Cli) -> None:
    first = smith.submit()
    smith.run_of(first, "create-1")
    second = smith.submit()
    smith.run_of(second, "create-2")
    smith.add_run(first, "create-3")
    assert [run["ident"] for run in smith.json("runs", "list")] == ["create-3", "create-2", "create-1"]
    assert [run["ident"] for run in smith.json("runs", "list", "--job", str(first))] == ["create-3", "create-1"]
    assert [run["ident"] for run in smith.json("runs", "list", "--limit", "1")] == ["create-3"]
    assert smith.json("runs", "list")[0]["fulcrum_id"] == smith.row(first).fulcrum_id
    assert "create-2" in smith.ok("runs", "list")
    assert smith("runs", "list", "--job", "4711").returncode == 1


def test_a_run_is_shown_with_its_artifacts_and_the_end_of_its_output(smith: Cli) -> None:
    smith.run_of(smith.submit(), "create-1", stdout="".join(f"line {number}\n" for number in range(50)))
    document = smith.json("runs", "show", "create-1", "--lines", "2")
    assert document["stdout_tail"] == ["line 48", "line 49"]
    assert {file["name"] for file in document["artifacts"]} == {"stdout", "events.jsonl"}
    assert document["rc"] == 0
    output = smith.ok("runs", "show", "create-1")
    assert "line 30\n" in output
    assert "line 29\n" not in output


def test_a_run_whose_artifacts_were_pruned_is_shown_without_them(smith: Cli) -> None:
    folder = smith.run_of(smith.submit(), "create-1", stdout="x")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    document = smith.json("runs", "show", "create-1")
    assert document["artifacts"] == []
    assert "deleted with old jobs" in document["artifacts_missing"]
    assert "deleted with old jobs" in smith.ok("runs", "show", "create-1")


def test_an_unknown_run_fails_with_a_hint(smith: Cli) -> None:
    smith.submit()
    done = smith("runs", "show", "../../etc/passwd")
    assert (done.returncode, done.stdout) == (1, "")
    assert "smith runs list" in done.stderr


def _node(name: str, seen_at: datetime, **more: object) -> AgentProcessRow:
    """Return the row of an agent process that last wrote to the database at `seen_at`."""
    values = {"host": "pve-host", "pid": 1, "version": "0.1.0", "concurrency_wanted": 8, "concurrency": 8} | more
    return AgentProcessRow(id=name, started_at=seen_at, seen_at=seen_at, **values)
