"""The supervisor: signals, stops and stalls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.supervised_agent import Supervised, eventually, is_alive


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


#: An agent that writes the names of the received signals to the file `got`. It exits with CODE after WANTED signals.
SIGNAL_COUNTING_AGENT = """
got = []
for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(signum, lambda number, frame: got.append(signal.Signals(number).name))
note("got", got)
note("ready")
while len(got) < WANTED:
    time.sleep(0.02)
    note("got", got)
note("got", got)
sys.exit(CODE)
"""


def _agent_that_counts_signals(wanted: int, code: int = 0) -> str:
    return SIGNAL_COUNTING_AGENT.replace("WANTED", str(wanted)).replace("CODE", str(code))


def test_r8_a_first_term_reaches_the_agent_and_the_supervisor_exits_with_its_code(supervised: Supervised) -> None:
    supervised.start(_agent_that_counts_signals(1, code=1))
    eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 1
    assert (supervised.folder / "got").read_text() == "['SIGTERM']"
    assert len(supervised.pids) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_signal_reaches_the_agent_as_a_second_term(
    supervised: Supervised, signum: signal.Signals
) -> None:
    supervised.start(_agent_that_counts_signals(2))
    eventually(lambda: supervised.has("ready"))
    supervised.send(signum)
    eventually(lambda: "SIGTERM" in (supervised.folder / "got").read_text())
    supervised.send(signum)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGTERM', 'SIGTERM']"


def test_quit_hup_and_usr1_are_forwarded(supervised: Supervised) -> None:
    supervised.start(_agent_that_counts_signals(3))
    eventually(lambda: supervised.has("ready"))
    for number, signum in enumerate((signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT), start=1):
        supervised.send(signum)
        eventually(lambda number=number: (supervised.folder / "got").read_text().count("SIG") == number)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGHUP', 'SIGUSR1', 'SIGQUIT']"


def test_hup_does_not_kill_an_agent_without_a_handler(supervised: Supervised) -> None:
    supervised.start("note('ready')\nwait()")
    eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGHUP)
    eventually(lambda: supervised.named("signal_forwarded"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 1


def test_an_agent_that_does_not_stop_in_time_is_killed(supervised: Supervised) -> None:
    supervised.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\nwait()", stop_timeout_s=1)
    eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 1
    assert supervised.named("agent_not_stopped_in_time")
    assert not is_alive(supervised.pids[0])


def test_a_stop_signal_during_the_backoff_ends_the_supervisor_at_once(supervised: Supervised) -> None:
    supervised.start("sys.exit(1)")
    eventually(lambda: len(supervised.named("agent_restarting")) == 4)
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 4


def test_a_restart_request_after_a_stop_signal_is_ignored(supervised: Supervised) -> None:
    supervised.start(_agent_that_counts_signals(1, code=10))
    eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 1


def test_a_stalled_agent_writes_a_dump_and_is_killed_and_restarted(supervised: Supervised) -> None:
    body = """
progress = ProgressSender()
progress.report_progress()
def stuck_here():
    time.sleep(600)
if life == 1:
    stuck_here()
"""
    assert supervised.run(body, stall_timeout_s=1) == 0

    assert len(supervised.pids) == 2
    assert supervised.named("agent_stalled")[0]["pid"] == supervised.pids[0]
    assert "stuck_here" in (supervised.folder / "stderr").read_text()


def test_an_agent_that_reports_progress_is_not_killed(supervised: Supervised) -> None:
    body = "progress = ProgressSender()\nfor _ in range(40):\n    progress.report_progress()\n    time.sleep(0.1)\n"

    assert supervised.run(body, stall_timeout_s=2) == 0

    assert len(supervised.pids) == 1
    assert supervised.named("agent_stalled") == []


def test_f28_suspending_supervisor_and_agent_together_is_no_stall(supervised: Supervised) -> None:
    """Supervisor and agent are suspended for longer than the stall timeout → the agent is not killed."""
    body = (
        "progress = ProgressSender()\nnote('ready')\nwhile True:\n    progress.report_progress()\n    time.sleep(0.1)\n"
    )
    process = supervised.start(body, stall_timeout_s=3)
    eventually(lambda: supervised.has("ready"))
    tree = [psutil.Process(process.pid), psutil.Process(supervised.pids[0])]
    for member in tree:
        member.suspend()
    time.sleep(6)
    for member in tree:
        member.resume()
    time.sleep(1)
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert supervised.named("agent_stalled") == []


def test_progress_without_a_supervisor_writes_to_no_other_file(tmp_path: Path) -> None:
    """SMITH_PROGRESS_FD may be inherited without the pipe: its number may then be that of another open file."""
    script = "import os\nfrom executor.processes.progress import ProgressSender\nProgressSender().report_progress()\n"
    unrelated_file = tmp_path / "database"
    with unrelated_file.open("wb") as file:
        for value in (str(file.fileno()), "", "x", "-1", "99999999999999999999", "987"):
            env = os.environ | {"SMITH_PROGRESS_FD": value}
            subprocess.run([sys.executable, "-c", script], env=env, pass_fds=[file.fileno()], check=True)

    assert unrelated_file.read_bytes() == b""
