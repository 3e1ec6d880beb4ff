"""The supervisor: ends and restarts of the agent, orphan processes, and the agent's environment.

The tests give the code of the agent as text. In it, `life` is 1 at the first start of the agent, 2 at the second, etc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.supervised_agent import Supervised, eventually, is_alive

from executor.processes.supervisor import (
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    MIN_RUNTIME_FOR_RESTART_AT_ONCE_S,
    STABLE_RUNTIME_S,
    Backoff,
)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


@pytest.mark.parametrize("code", [0, 2, 3, 6])
def test_an_agent_with_a_final_exit_code_is_not_restarted(supervised: Supervised, code: int) -> None:
    assert supervised.run(f"sys.exit({code})") == code

    assert len(supervised.pids) == 1


def test_an_agent_that_requests_a_restart_is_restarted(supervised: Supervised) -> None:
    assert supervised.run("sys.exit(10 if life < 3 else 0)") == 0

    assert len(set(supervised.pids)) == 3
    assert [line["exit_code"] for line in supervised.named("agent_exited")] == [10, 10, 0]
    assert {line["level"] for line in supervised.named("agent_exited")} == {"info"}


@pytest.mark.parametrize("death", ["sys.exit(1)", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_r5_an_agent_that_dies_is_restarted_after_the_minimum_backoff(supervised: Supervised, death: str) -> None:
    assert supervised.run(f"if life == 1: {death}") == 0

    assert len(supervised.pids) == 2
    assert [line["backoff_s"] for line in supervised.named("agent_restarting")] == [MIN_BACKOFF_S]
    assert supervised.named("agent_exited")[0]["level"] == "error"


def test_the_backoff_grows_while_the_agent_keeps_dying(supervised: Supervised) -> None:
    assert supervised.run("sys.exit(1 if life < 4 else 3)") == 3

    assert [line["backoff_s"] for line in supervised.named("agent_restarting")] == [0.5, 1.0, 2.0]


def test_the_backoff_grows_to_its_maximum_and_a_long_runtime_resets_it() -> None:
    backoff = Backoff()

    backoffs = [backoff.compute_backoff_s(1.0, is_restart_requested=False) for _ in range(9)]

    assert backoffs == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_BACKOFF_S, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert backoff.compute_backoff_s(STABLE_RUNTIME_S, is_restart_requested=False) == MIN_BACKOFF_S
    assert backoff.compute_backoff_s(MIN_RUNTIME_FOR_RESTART_AT_ONCE_S, is_restart_requested=True) == 0.0
    assert backoff.compute_backoff_s(0.1, is_restart_requested=True) == 2 * MIN_BACKOFF_S


def test_r5_the_backoff_stays_short_for_agents_that_were_ready_before_they_died() -> None:
    backoff = Backoff()

    backoffs = [backoff.compute_backoff_s(1.0, is_restart_requested=False, was_ready=True) for _ in range(6)]

    assert backoffs == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert backoff.compute_backoff_s(1.0, is_restart_requested=False) == 8.0  # this agent died before it was ready


def test_the_supervisor_remembers_that_the_agent_was_ready(supervised: Supervised) -> None:
    assert supervised.run("if life < 6: ProgressSender().report_ready(); sys.exit(1)") == 0

    assert [line["backoff_s"] for line in supervised.named("agent_restarting")] == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_command_that_cannot_be_started_is_retried_until_a_stop_signal(tmp_path: Path) -> None:
    script = (
        "from executor.processes.supervisor import supervise;"
        " raise SystemExit(supervise(['/no/such'], stop_timeout_s=5))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        next(line for line in lines if b"agent_restarting" in line)
        next(line for line in lines if b"agent_restarting" in line)
        process.terminate()
        assert process.wait(30) == 0


def test_r7_a_killed_agents_descendants_end_before_the_next_agent_starts(supervised: Supervised) -> None:
    body = """
if life == 1:
    leave_orphans()
    note("ready")
    wait()
alive = [name for name in ("child.pid", "lost.pid") if os.path.exists(f"/proc/{(folder / name).read_text().strip()}")]
note("seen-by-next", alive)
"""
    supervised.start(body)
    eventually(lambda: supervised.has("ready"))
    os.kill(supervised.pids[0], signal.SIGKILL)

    assert supervised.wait() == 0
    assert (supervised.folder / "seen-by-next").read_text() == "[]"
    (kill_event,) = supervised.named("orphan_processes_killed")
    assert len(kill_event["pids"]) >= 2
    assert kill_event["live_pids"] == []


@pytest.mark.parametrize("code", [0, 10, 3])
def test_the_descendants_of_an_agent_that_exits_end_too(supervised: Supervised, code: int) -> None:
    supervised.run(f"leave_orphans() if life == 1 else sys.exit(0)\nsys.exit({code})")

    pids = [int(file.read_text()) for file in supervised.folder.glob("*.pid")]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_the_agent_of_a_killed_supervisor_dies(supervised: Supervised) -> None:
    process = supervised.start("note('ready')\nwait()")
    eventually(lambda: supervised.has("ready"))

    process.kill()

    eventually(lambda: not is_alive(supervised.pids[0]))


def test_orphaned_processes_are_reaped_while_the_agent_runs(supervised: Supervised) -> None:
    body = """
for _ in range(20):
    subprocess.run(["sh", "-c", "(sleep 0.2) & exit 0"])
note("ready")
wait()
"""
    process = supervised.start(body)
    eventually(lambda: supervised.has("ready"))

    eventually(lambda: [child.pid for child in psutil.Process(process.pid).children()] == supervised.pids)
    assert len(supervised.pids) == 1


def test_r13_the_agent_creates_private_files_and_no_core_dumps(supervised: Supervised) -> None:
    supervised.run("import resource\nnote('seen', [os.umask(0), resource.getrlimit(resource.RLIMIT_CORE)])")

    assert (supervised.folder / "seen").read_text() == str([0o077, (0, 0)])


def test_the_agent_gets_the_environment_of_the_supervisor_and_a_session_of_its_own(supervised: Supervised) -> None:
    body = "note('seen', [sorted(set(os.environ) - {'LC_CTYPE'}), os.getsid(0) == os.getpid()])"

    supervised.run(body, env={"GIVEN": "x"})

    assert (supervised.folder / "seen").read_text() == "[['GIVEN', 'SMITH_PROGRESS_FD'], True]"


def test_every_log_line_of_the_supervisor_has_the_format_of_the_agents_log(supervised: Supervised) -> None:
    supervised.run("leave_orphans() if life == 1 else None\nsys.exit(1 if life == 1 else 0)")

    assert {"agent_started", "agent_exited", "orphan_processes_killed", "agent_restarting"} <= {
        line["event"] for line in supervised.events
    }
    for line in supervised.events:
        assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
        assert line["timestamp"].endswith("Z")
        assert line["level"] in {"info", "warning", "error"}
