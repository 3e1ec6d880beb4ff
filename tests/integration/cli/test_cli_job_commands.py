"""`smith jobs retry` and `smith jobs cancel`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.cli_results import BAD, GOOD
from support.cli_world import GIVE_UP_S, Cli, claim, submit

from executor.database import job_queue, nodes, outbox
from executor.database.nodes import AgentProcess
from executor.model import JobStatus, ReportState
from executor.shared.error_codes import ErrorCode


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_retry_skips_the_wait_for_the_next_attempt(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        job_queue.requeue(session, claim(session), backoff_s=3600, reason="VM_LOCKED: later")
    assert smith.row(job_id).available_at is not None
    assert "next attempt" in smith.ok("jobs", "retry", str(job_id))
    assert smith.row(job_id).available_at is None


def test_retry_skips_the_wait_for_the_next_report(smith: Cli) -> None:
    job_id = smith.finished(GOOD)
    with smith.database_session() as session:
        outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 502")
    assert "report to FulcrumCore" in smith.ok("jobs", "retry", str(job_id))
    assert smith.row(job_id).report_after is None


def test_retry_of_an_abandoned_or_a_running_job_fails_and_says_why(smith: Cli) -> None:
    abandoned = smith.finished(BAD)
    with smith.database_session() as session:
        outbox.set_report_state(session, abandoned, ReportState.ABANDONED)
    refused = smith("jobs", "retry", str(abandoned))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "FulcrumCore does not expect its result; repeat the action in FulcrumCore" in refused.stderr
    assert f"/api/v1/services/{smith.row(abandoned).service_id}/create" in refused.stderr
    assert smith.row(abandoned).status == JobStatus.FAILED
    running = smith.submit()
    with smith.database_session() as session:
        claim(session)
    job_with_shell_characters = smith.submit(action="start; touch x #")
    with smith.database_session() as session:
        job_queue.finish(session, claim(session), BAD)
        outbox.set_report_state(session, job_with_shell_characters, ReportState.ABANDONED)
    command = (
        smith("jobs", "retry", str(job_with_shell_characters))
        .stderr.partition("creates a new job: ")[2]
        .partition(" (with a")[0]
    )
    assert shlex.split(command)[-1].endswith("/start%3B%20touch%20x%20%23")
    busy = smith("jobs", "retry", str(running))
    assert busy.returncode == 1
    assert "is running" in busy.stderr


@pytest.mark.parametrize("state", [ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM])
def test_retry_sends_the_result_of_an_ended_job_again(smith: Cli, state: ReportState) -> None:
    """FulcrumCore may have lost the result, for example if its database was restored from a backup."""
    reported = smith.finished(BAD)
    with smith.database_session() as session:
        outbox.set_report_state(session, reported, state)
    service_id = smith.row(reported).service_id
    output = smith.ok("jobs", "retry", str(reported), FULCRUM_API_URL="https://core.example.net")
    assert "its report to FulcrumCore is due now" in output
    assert f"https://core.example.net/api/v1/services/{service_id}/create" in output, "how the action is repeated"
    assert '-H @<(echo "Authorization: Bearer $TOKEN")' in output, (
        "curl reads the token from its input, so no argument shows it"
    )
    row = smith.row(reported)
    assert (row.status, row.report_state) == (JobStatus.FAILED, ReportState.DUE)


def test_cancel_needs_yes_without_a_terminal(smith: Cli) -> None:
    job_id = smith.submit()
    done = smith("jobs", "cancel", str(job_id), stdin="y\n")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert smith.row(job_id).status == JobStatus.PENDING


def test_cancel_ends_a_pending_job_at_once_and_requests_the_end_of_a_running_one(smith: Cli) -> None:
    running = smith.submit()
    with smith.database_session() as session:
        claim(session)
    waiting = smith.submit()
    assert "is cancelled" in smith.ok("jobs", "cancel", str(waiting), "--yes")
    assert smith.row(waiting).error_code == ErrorCode.CANCELLED
    assert smith.row(waiting).report_state == ReportState.DUE
    assert "has a cancel request" in smith.ok("jobs", "cancel", str(running), "--yes")
    assert smith.row(running).cancel_requested
    assert smith.row(running).status == JobStatus.PROCESSING


def test_cancel_says_whether_an_agent_runs_that_will_end_the_job(smith: Cli) -> None:
    running = smith.submit()
    with smith.database_session() as session:
        claim(session)
    assert "no agent is running" in smith.ok("jobs", "cancel", str(running), "--yes")
    with smith.database_session() as session:
        agent = AgentProcess(boot_id="a", host="pve-host", pid=1, version="1", concurrency=1)
        nodes.store_agent_start(session, agent)
    assert "stops the playbook within seconds" in smith.ok("jobs", "cancel", str(running), "--yes")


def test_a_job_that_has_ended_cannot_be_cancelled(smith: Cli) -> None:
    job_id = smith.finished(GOOD)
    done = smith("jobs", "cancel", str(job_id), "--yes")
    assert done.returncode == 1
    assert "has ended already: it is completed" in done.stderr
    assert smith.row(job_id).status == JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("answer", "code", "status"), [("y\n", 0, JobStatus.FAILED), ("n\n", 1, JobStatus.PENDING), ("", 1, None)]
)
def test_cancel_asks_on_a_terminal(answer: str, code: int, status: JobStatus | None, smith: Cli) -> None:
    """An end of input (Ctrl-D) does not confirm the question."""
    job_id = smith.submit()
    with _waiting_for_answer(smith, "jobs", "cancel", str(job_id)) as (process, terminal):
        os.write(terminal, answer.encode() or b"\x04")
        ended = process.wait(GIVE_UP_S)
    assert ended == (130 if status is None else code)
    assert smith.row(job_id).status == (status or JobStatus.PENDING)


def test_an_interrupt_at_the_question_exits_with_130(smith: Cli) -> None:
    job_id = smith.submit()
    with _waiting_for_answer(smith, "jobs", "cancel", str(job_id)) as (process, _terminal):
        assert _interrupt(process) == 130
    assert smith.row(job_id).status == JobStatus.PENDING


def test_a_job_claimed_during_the_question_gets_a_cancel_request(smith: Cli) -> None:
    """No transaction is open while the command waits for the answer. So an agent can claim the job meanwhile."""
    job_id = smith.submit()
    with _waiting_for_answer(smith, "jobs", "cancel", str(job_id)) as (process, terminal):
        with smith.database_session() as session:
            claim(session)
            submit(session)
        os.write(terminal, b"y\n")
        assert process.wait(GIVE_UP_S) == 0
    assert smith.row(job_id).cancel_requested


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """Send SIGINT, as Ctrl-C does, until the command ends; return the exit code.

    One signal may not be enough: one that arrives just before Python waits for input is noticed only with the next one.
    """
    for _ in range(GIVE_UP_S // 5):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(5)
    raise AssertionError("the command does not end")


@contextmanager
def _waiting_for_answer(smith: Cli, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command on a terminal and wait for its question; yield its process and the terminal."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        smith.command(*args),
        env=smith.environment(),
        cwd=smith.folder,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(slave)
    try:
        output = b""
        while b"[y/N]" not in output:
            output += os.read(master, 4096)
        yield process, master
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(GIVE_UP_S)
        os.close(master)
