"""Real processes: agents that end, die, hang and leave strays, under the real supervisor."""

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

from executor.processes.supervisor import FIRST_PAUSE_S, GOOD_LIFE_S, LONGEST_PAUSE_S, SHORT_LIFE_S, Pause

SUPERVISOR = """
import json, sys
from executor.processes.supervisor import supervise
sys.exit(supervise([sys.executable, sys.argv[1]], **json.loads(sys.argv[2])))
"""

#: What every agent of these tests can do. `life` counts the starts from 1.
AGENT = """
import os, pathlib, signal, subprocess, sys, time
from executor.processes.progress import Progress

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

def leave_strays():
    '''A child, and one in a session of its own without its parent and without an environment; they ignore TERM.'''
    script = 'trap "" TERM; echo $$ > "$0.new"; mv "$0.new" "$0"; sleep 600'
    subprocess.Popen(["sh", "-c", script, str(folder / "child.pid")])
    path = folder / "lost.pid"
    subprocess.run(["sh", "-c", "env -i PATH=/usr/bin:/bin setsid sh -c '" + script + f"' {path} & exit 0"])
    while not (path.exists() and (folder / "child.pid").exists()):
        time.sleep(0.02)

"""


class Supervised:
    """A supervisor with an agent of a few lines."""

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
        """Start, and wait for the end."""
        return self.start(body, **options).wait(60)

    def send(self, signum: int) -> None:
        """Signal the supervisor."""
        assert self.process is not None
        self.process.send_signal(signum)

    def wait(self) -> int:
        """The supervisor's exit code."""
        assert self.process is not None
        return self.process.wait(60)

    @property
    def pids(self) -> list[int]:
        """The agents so far."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the supervisor has logged; other lines are the agent's."""
        lines = (self.folder / "stdout").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind."""
        return [line for line in self.events if line["event"] == event]

    def has(self, name: str) -> Path | None:
        """A note of the agent's."""
        return self.folder / name if (self.folder / name).exists() else None

    def end(self) -> None:
        """Leave nothing of this test alive."""
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
                stray = psutil.Process(int(file.read_text()))
                for process in (*stray.children(recursive=True), stray):
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
def test_an_agent_that_ended_for_good_is_not_started_again(supervised: Supervised, code: int) -> None:
    assert supervised.run(f"sys.exit({code})") == code

    assert len(supervised.pids) == 1


def test_an_agent_that_asks_for_a_restart_is_started_again(supervised: Supervised) -> None:
    assert supervised.run("sys.exit(10 if life < 3 else 0)") == 0

    assert len(set(supervised.pids)) == 3
    assert [line["exit_code"] for line in supervised.named("agent_exited")] == [10, 10, 0]
    assert {line["level"] for line in supervised.named("agent_exited")} == {"info"}


@pytest.mark.parametrize("death", ["sys.exit(1)", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_r5_an_agent_that_dies_is_started_again_soon(supervised: Supervised, death: str) -> None:
    assert supervised.run(f"if life == 1: {death}") == 0

    assert len(supervised.pids) == 2
    assert [line["pause_s"] for line in supervised.named("agent_restarting")] == [FIRST_PAUSE_S]
    assert supervised.named("agent_exited")[0]["level"] == "error"


def test_an_agent_that_keeps_dying_is_started_less_and_less_often(supervised: Supervised) -> None:
    assert supervised.run("sys.exit(1 if life < 4 else 3)") == 3

    assert [line["pause_s"] for line in supervised.named("agent_restarting")] == [0.5, 1.0, 2.0]


def test_the_pause_grows_to_its_limit_and_a_good_life_resets_it() -> None:
    pause = Pause()

    grown = [pause.after(1.0, wanted=False) for _ in range(9)]

    assert grown == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert pause.after(GOOD_LIFE_S, wanted=False) == FIRST_PAUSE_S
    assert pause.after(SHORT_LIFE_S, wanted=True) == 0.0
    assert pause.after(0.1, wanted=True) == 2 * FIRST_PAUSE_S


def test_r5_agents_that_are_killed_at_work_are_started_again_soon_however_often() -> None:
    pause = Pause()

    grown = [pause.after(1.0, wanted=False, had_begun=True) for _ in range(6)]

    assert grown == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pause.after(1.0, wanted=False) == 8.0  # this one died in its start


def test_an_agent_that_said_that_it_has_begun_is_known_to_have(supervised: Supervised) -> None:
    assert supervised.run("if life < 6: Progress().ready(); sys.exit(1)") == 0

    assert [line["pause_s"] for line in supervised.named("agent_restarting")] == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_command_that_cannot_be_started_is_tried_again_until_told_to_stop(tmp_path: Path) -> None:
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


# --- strays -----------------------------------------------------------------------------------------------------------


def test_r7_a_killed_agent_leaves_no_descendant_and_the_next_starts_after_they_are_gone(supervised: Supervised) -> None:
    body = """
if life == 1:
    leave_strays()
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
    assert ended["left"] == []


@pytest.mark.parametrize("code", [0, 10, 3])
def test_an_agent_that_ends_by_itself_leaves_no_descendant_either(supervised: Supervised, code: int) -> None:
    supervised.run(f"leave_strays() if life == 1 else sys.exit(0)\nsys.exit({code})")

    pids = [int(file.read_text()) for file in supervised.folder.glob("*.pid")]
    assert len(pids) == 2
    assert not any(_is_alive(pid) for pid in pids)


def test_a_killed_supervisor_takes_its_agent_along(supervised: Supervised) -> None:
    process = supervised.start("note('ready')\nwait()")
    _eventually(lambda: supervised.has("ready"))

    process.kill()

    _eventually(lambda: not _is_alive(supervised.pids[0]))


def test_processes_that_lost_their_parent_are_reaped_while_the_agent_works(supervised: Supervised) -> None:
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


def test_r8_a_first_term_lets_the_agent_drain_and_its_exit_code_is_ours(supervised: Supervised) -> None:
    supervised.start(_counting(1, code=1))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 1
    assert (supervised.folder / "got").read_text() == "['SIGTERM']"
    assert len(supervised.pids) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_reaches_the_agent_as_a_second_term(supervised: Supervised, signum: signal.Signals) -> None:
    supervised.start(_counting(2))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signum)
    _eventually(lambda: "SIGTERM" in (supervised.folder / "got").read_text())
    supervised.send(signum)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGTERM', 'SIGTERM']"


def test_quit_hup_and_usr1_are_passed_on(supervised: Supervised) -> None:
    supervised.start(_counting(3))
    _eventually(lambda: supervised.has("ready"))
    for number, signum in enumerate((signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT), start=1):
        supervised.send(signum)
        _eventually(lambda number=number: (supervised.folder / "got").read_text().count("SIG") == number)

    assert supervised.wait() == 0
    assert (supervised.folder / "got").read_text() == "['SIGHUP', 'SIGUSR1', 'SIGQUIT']"


def test_hup_does_not_kill_an_agent_that_knows_nothing_of_it(supervised: Supervised) -> None:
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


def test_a_stop_during_the_pause_before_a_restart_ends_at_once(supervised: Supervised) -> None:
    supervised.start("sys.exit(1)")
    _eventually(lambda: len(supervised.named("agent_restarting")) == 4)
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 4


def test_an_agent_that_wants_a_restart_while_it_is_stopped_is_not_started_again(supervised: Supervised) -> None:
    supervised.start(_counting(1, code=10))
    _eventually(lambda: supervised.has("ready"))
    supervised.send(signal.SIGTERM)

    assert supervised.wait() == 0
    assert len(supervised.pids) == 1


# --- watchdog ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_hangs_is_asked_for_a_dump_killed_and_started_again(supervised: Supervised) -> None:
    body = """
progress = Progress()
progress.beat()
def stuck_here():
    time.sleep(600)
if life == 1:
    stuck_here()
"""
    assert supervised.run(body, stall_timeout_s=1) == 0

    assert len(supervised.pids) == 2
    assert supervised.named("agent_stalled")[0]["pid"] == supervised.pids[0]
    assert "stuck_here" in (supervised.folder / "stderr").read_text()


def test_an_agent_that_moves_is_left_alone_however_long_it_works(supervised: Supervised) -> None:
    body = "progress = Progress()\nfor _ in range(40):\n    progress.beat()\n    time.sleep(0.1)\n"

    assert supervised.run(body, stall_timeout_s=2) == 0

    assert len(supervised.pids) == 1
    assert supervised.named("agent_stalled") == []


def test_f28_an_agent_that_was_paused_with_us_is_not_taken_for_hanging(supervised: Supervised) -> None:
    """Supervisor and agent are stopped for longer than an agent may hang → it is not taken for hanging."""
    body = "progress = Progress()\nnote('ready')\nwhile True:\n    progress.beat()\n    time.sleep(0.1)\n"
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


def test_progress_without_a_supervisor_writes_nowhere(tmp_path: Path) -> None:
    """The number may be inherited without its pipe: the file that bears it now must not be written to."""
    script = "import os\nfrom executor.processes.progress import Progress\nProgress().beat()\n"
    victim = tmp_path / "database"
    with victim.open("wb") as file:
        for value in (str(file.fileno()), "", "x", "-1", "99999999999999999999", "987"):
            env = os.environ | {"SMITH_PROGRESS_FD": value}
            subprocess.run([sys.executable, "-c", script], env=env, pass_fds=[file.fileno()], check=True)

    assert victim.read_bytes() == b""


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_r13_the_agent_makes_private_files_and_no_core_dumps(supervised: Supervised) -> None:
    supervised.run("import resource\nnote('seen', [os.umask(0), resource.getrlimit(resource.RLIMIT_CORE)])")

    assert (supervised.folder / "seen").read_text() == str([0o077, (0, 0)])


def test_the_agent_has_the_environment_it_was_given_and_a_session_of_its_own(supervised: Supervised) -> None:
    body = "note('seen', [sorted(set(os.environ) - {'LC_CTYPE'}), os.getsid(0) == os.getpid()])"

    supervised.run(body, env={"GIVEN": "x"})

    assert (supervised.folder / "seen").read_text() == "[['GIVEN', 'SMITH_PROGRESS_FD'], True]"


def test_every_line_has_the_shape_of_the_agents_log(supervised: Supervised) -> None:
    supervised.run("leave_strays() if life == 1 else None\nsys.exit(1 if life == 1 else 0)")

    assert {"agent_started", "agent_exited", "orphan_processes_killed", "agent_restarting"} <= {
        line["event"] for line in supervised.events
    }
    for line in supervised.events:
        assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
        assert line["timestamp"].endswith("Z")
        assert line["level"] in {"info", "warning", "error"}
