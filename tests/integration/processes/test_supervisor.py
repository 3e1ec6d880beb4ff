"""Real processes: agents that exit, die, hang and leave orphan processes, under the real supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from executor.processes.supervisor import MAX_BACKOFF_S, MIN_BACKOFF_S, MIN_RUNTIME_S, STABLE_RUNTIME_S, Backoff

SUPERVISOR = """
import json, sys
from executor.processes.supervisor import supervise
sys.exit(supervise([sys.executable, sys.argv[1]], **json.loads(sys.argv[2])))
"""

#: Start of each test agent's program. `life` counts the starts from 1.
AGENT = """
import os, pathlib, signal, subprocess, sys, time
from executor.processes.progress import ProgressSender

folder = pathlib.Path(__file__).parent
with (folder / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
life = len((folder / "pids").read_text().split())

def note(name, text=""):
    (folder / f"{name}.new").write_text(str(text))
    (folder / f"{name}.new").rename(folder / name)

def wait():
    while True:
        time.sleep(0.05)

def leave_orphans():
    '''A child, and one in a session of its own without its parent and without an environment; they ignore TERM.'''
    script = 'trap "" TERM; echo $$ > "$0.new"; mv "$0.new" "$0"; sleep 600'
    subprocess.Popen(["sh", "-c", script, str(folder / "child.pid")])
    path = folder / "lost.pid"
    subprocess.run(["sh", "-c", "env -i PATH=/usr/bin:/bin setsid sh -c '" + script + f"' {path} & exit 0"])
    while not (path.exists() and (folder / "child.pid").exists()):
        time.sleep(0.02)

"""


class Supervised:
    """A supervisor with a small test agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, body: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a supervisor over an agent with this body; options are those of `supervise`."""
        agent = self.folder / "agent.py"
        agent.write_text(AGENT + body)
        options = {"stop_timeout_s": 60, "stall_timeout_s": 0} | options
        command = [sys.executable, "-W", "error", "-c", SUPERVISOR, str(agent), json.dumps(options)]
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err)
        return self.process

    def run(self, body: str, **options: Any) -> int:
        """Start a supervisor and wait for its end."""
        return self.start(body, **options).wait(60)

    def send(self, signum: int) -> None:
        """Signal the supervisor."""
        assert self.process is not None
        self.process.send_signal(signum)

    def wait(self) -> int:
        """Wait for the supervisor's end; return its exit code."""
        assert self.process is not None
        return self.process.wait(60)

    @property
    def pids(self) -> list[int]:
        """Process ids of the agents started so far."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def events(self) -> list[dict[str, Any]]:
        """Log lines of the supervisor; other lines are the agent's."""
        lines = (self.folder / "stdout").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        return [line for line in self.events if line["event"] == event]

    def has(self, name: str) -> Path | None:
        """Return the path of a note that the agent has written, None before."""
        return self.folder / name if (self.folder / name).exists() else None

    def end(self) -> None:
        """Kill every process of this test."""
        if self.process is not None and self.process.poll() is None:
            for process in [
                psutil.Process(self.process.pid),
                *psutil.Process(self.process.pid).children(recursive=True),
            ]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        for file in self.folder.glob("*.pid"):
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan = psutil.Process(int(file.read_text()))
                for process in (*orphan.children(recursive=True), orphan):
                    process.kill()


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _eventually(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    limit = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


# --- ends and restarts ------------------------------------------------------------------------------------------------


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


def test_the_backoff_grows_to_its_maximum_and_a_long_life_resets_it() -> None:
    backoff = Backoff()

    grown = [backoff.after(1.0, is_restart_requested=False) for _ in range(9)]

    assert grown == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_BACKOFF_S, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert backoff.after(STABLE_RUNTIME_S, is_restart_requested=False) == MIN_BACKOFF_S
    assert backoff.after(MIN_RUNTIME_S, is_restart_requested=True) == 0.0
    assert backoff.after(0.1, is_restart_requested=True) == 2 * MIN_BACKOFF_S


def test_r5_the_backoff_stays_short_for_agents_that_were_ready_before_they_died() -> None:
    backoff = Backoff()

    grown = [backoff.after(1.0, is_restart_requested=False, was_ready=True) for _ in range(6)]

    assert grown == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert backoff.after(1.0, is_restart_requested=False) == 8.0  # this one died before it was ready


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


# --- orphan processes--------------------------------------------------------------------------------------------------


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
    _eventually(lambda: supervised.has("ready"))
    os.kill(supervised.pids[0], signal.SIGKILL)

    assert supervised.wait() == 0
    assert (supervised.folder / "seen-by-next").read_text() == "[]"
    (ended,) = supervised.named("orphan_processes_killed")
    assert len(ended["pids"]) >= 2
    assert ended["live_pids"] == []


@pytest.mark.parametrize("code", [0, 10, 3])
def test_the_descendants_of_an_agent_that_exits_end_too(supervised: Supervised, code: int) -> None:
    supervised.run(f"leave_orphans() if life == 1 else sys.exit(0)\nsys.exit({code})")

    pids = [int(file.read_text()) for file in supervised.folder.glob("*.pid")]
    assert len(pids) == 2
    assert not any(_is_alive(pid) for pid in pids)


def test_the_agent_of_a_killed_supervisor_dies(supervised: Supervised) -> None:
    process = supervised.start("note('ready')\nwait()")
    _eventually(lambda: supervised.has("ready"))

    process.kill()

    _eventually(lambda: not _is_alive(supervised.pids[0]))


def test_orphaned_processes_are_reaped_while_the_agent_runs(supervised: Supervised) -> None:
    body = """
for _ in range(20):
    subprocess.run(["sh", "-c", "(sleep 0.2) & exit 0"])
note("ready")
wait()
"""
    process = supervised.start(body)
    _eventually(lambda: supervised.has("ready"))

    _eventually(lambda: [child.pid for child in psutil.Process(process.pid).children()] == supervised.pids)
    assert len(supervised.pids) == 1


# --- signals ----------------------------------------------------------------------------------------------------------

COUNTING = """
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


def _counting(wanted: int, code: int = 0) -> str:
    return COUNTING.replace("WANTED", str(wanted)).replace("CODE", str(code))


def test_r8_a_first_term_reaches_the_agent_and_the_supervisor_exits_with_its_code(supervised: Supervised) -> None:
    supervised.start(_counting(1, code=1))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 1
    assert (supervised.folder / "got").read_text() == "['SIGTERM']"
    assert len(supervised.pids) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_signal_reaches_the_agent_as_a_second_term(
    supervised: Supervised, signum: signal.Signals
) -> None:
    supervised.start(_counting(2))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signum)
    _eventually(lambda: "SIGTERM" in (supervised.folder / "got").read_text())
    supervised.send(signum)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGTERM', 'SIGTERM']"


def test_quit_hup_and_usr1_are_forwarded(supervised: Supervised) -> None:
    supervised.start(_counting(3))
    _eventually(lambda: supervised.has("ready"))
    for number, signum in enumerate((signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT), start=1):
        supervised.send(signum)
        _eventually(lambda number=number: (supervised.folder / "got").read_text().count("SIG") == number)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGHUP', 'SIGUSR1', 'SIGQUIT']"


def test_hup_does_not_kill_an_agent_without_a_handler(supervised: Supervised) -> None:
    supervised.start("note('ready')\nwait()")
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGHUP)
    _eventually(lambda: supervised.named("signal_forwarded"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 1


def test_an_agent_that_does_not_stop_in_time_is_killed(supervised: Supervised) -> None:
    supervised.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\nwait()", stop_timeout_s=1)
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 1
    assert supervised.named("agent_not_stopped_in_time")
    assert not _is_alive(supervised.pids[0])


def test_a_stop_signal_during_the_backoff_ends_the_supervisor_at_once(supervised: Supervised) -> None:
    supervised.start("sys.exit(1)")
    _eventually(lambda: len(supervised.named("agent_restarting")) == 4)
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 4


def test_a_restart_request_after_a_stop_signal_is_ignored(supervised: Supervised) -> None:
    supervised.start(_counting(1, code=10))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 1


# --- watchdog ---------------------------------------------------------------------------------------------------------


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
    _eventually(lambda: supervised.has("ready"))
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
    """The variable may be inherited without its pipe: another file with that descriptor must not be written to."""
    script = "import os\nfrom executor.processes.progress import ProgressSender\nProgressSender().report_progress()\n"
    victim = tmp_path / "database"
    with victim.open("wb") as file:
        for value in (str(file.fileno()), "", "x", "-1", "99999999999999999999", "987"):
            env = os.environ | {"SMITH_PROGRESS_FD": value}
            subprocess.run([sys.executable, "-c", script], env=env, pass_fds=[file.fileno()], check=True)

    assert victim.read_bytes() == b""


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_r13_the_agent_creates_private_files_and_no_core_dumps(supervised: Supervised) -> None:
    supervised.run("import resource\nnote('seen', [os.umask(0), resource.getrlimit(resource.RLIMIT_CORE)])")

    assert (supervised.folder / "seen").read_text() == str([0o077, (0, 0)])


def test_the_agent_gets_the_given_environment_and_its_own_session(supervised: Supervised) -> None:
    body = "note('seen', [sorted(set(os.environ) - {'LC_CTYPE'}), os.getsid(0) == os.getpid()])"

    supervised.run(body, env={"GIVEN": "x"})

    assert (supervised.folder / "seen").read_text() == "[['GIVEN', 'SMITH_PROGRESS_FD'], True]"


def test_every_line_has_the_format_of_the_agents_log(supervised: Supervised) -> None:
    supervised.run("leave_orphans() if life == 1 else None\nsys.exit(1 if life == 1 else 0)")

    assert {"agent_started", "agent_exited", "orphan_processes_killed", "agent_restarting"} <= {
        line["event"] for line in supervised.events
    }
    for line in supervised.events:
        assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
        assert line["timestamp"].endswith("Z")
        assert line["level"] in {"info", "warning", "error"}
