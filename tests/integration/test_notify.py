"""What a service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smith_lab.simulator.control import running_simulator

from executor.processes.progress import MOST_MESSAGE_BYTES, Listener
from executor.processes.sd_notify import MOST_STATUS_CHARS, PINGS, Notifier

GIVE_UP_S = 60

SUPERVISOR = """
import sys
from executor.processes.supervisor import supervise
sys.exit(supervise([sys.executable, "-c", sys.argv[1]], stop_timeout_s=30, stall_timeout_s=0))
"""
#: An agent that says what the test wants, and what it finds in its environment.
AGENT = """
import os, sys, time
from executor.processes.progress import Progress
progress = Progress()
progress.beat()
progress.status("sees " + ",".join(sorted(name for name in os.environ if "NOTIFY" in name or "WATCHDOG" in name)) + ".")
progress.beat()
progress.ready()
progress.ready()
while True:
    progress.beat()
    time.sleep(0.05)
"""
SILENT_AGENT = "import time; time.sleep(600)"


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(GIVE_UP_S)
        self.heard: list[str] = []

    def hear(self) -> str:
        self.heard.append(self.socket.recv(4096).decode())
        return self.heard[-1]

    def until(self, wanted: Callable[[str], bool] | str) -> str:
        """Wait for a line; those before it are in `heard`."""
        while True:
            line = self.hear()
            if line == wanted or (callable(wanted) and wanted(line)):
                return line

    def nothing_more(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.hear()
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(GIVE_UP_S)
        return False


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(path: str) -> Iterator[Manager]:
    manager = Manager(path)
    yield manager
    manager.socket.close()


# The voice itself


def test_without_a_socket_nothing_is_said_and_nothing_fails() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/not/there"}):
        voice = Notifier({**environ, "WATCHDOG_USEC": "1000"})
        voice.ready()
        voice.status("at work")
        voice.ping()
        voice.stopping()


def test_each_thing_is_said_once(manager: Manager, path: str) -> None:
    voice = Notifier({"NOTIFY_SOCKET": path})
    for _ in range(3):
        voice.ready()
        voice.status("at work")
        voice.ping()
    voice.status("two\nlines\x1b[31m" + "x" * 500)
    assert [manager.hear(), manager.hear()] == ["READY=1", "STATUS=at work"]
    line = manager.hear()
    assert line.startswith("STATUS=two lines [31mx"), "a line break would begin another assignment"
    assert len(line) == len("STATUS=") + MOST_STATUS_CHARS
    assert manager.nothing_more(), "without WATCHDOG_USEC nobody waits for a ping"


def test_an_abstract_socket_is_reached() -> None:
    name = f"smith-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.hear() == "READY=1"
    manager.socket.close()


@pytest.mark.parametrize(("pid", "pings"), [("", 1), (str(os.getpid()), 1), ("1", 0)], ids=["any", "ours", "another"])
def test_the_watchdog_is_fed_only_by_the_process_that_it_watches(
    pid: str, pings: int, manager: Manager, path: str
) -> None:
    voice = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(3600 * 10**6 * PINGS), "WATCHDOG_PID": pid})
    for _ in range(5):
        voice.ping()
    voice.stopping()
    manager.until("STOPPING=1")
    assert manager.heard.count("WATCHDOG=1") == pings


def test_a_manager_that_does_not_read_delays_nobody(manager: Manager, path: str) -> None:
    voice = Notifier({"NOTIFY_SOCKET": path})
    for number in range(5000):  # more than any socket's queue holds
        voice.status(f"line {number}")
    assert manager.hear() == "STATUS=line 0"


def test_messages_are_found_among_beats_wherever_the_pipe_was_cut(manager: Manager, path: str) -> None:
    said = b"...STATUS=1.5 jobs...\n..READY=1\n.EVIL=1\n.."
    for cut in range(1, len(said)):
        voice = Notifier({"NOTIFY_SOCKET": path})
        listener = Listener(voice)
        for start in range(0, len(said), cut):
            listener.take(said[start : start + cut])
        assert [manager.hear(), manager.hear()] == ["STATUS=1.5 jobs...", "READY=1"], cut
        assert manager.nothing_more(), "only these two are passed on"


def test_a_message_without_an_end_takes_no_memory(path: str) -> None:
    listener = Listener(Notifier({}))
    for _ in range(100):
        listener.take(b"x" * 1000)
    assert len(listener._rest) == MOST_MESSAGE_BYTES


# Through the supervisor


@pytest.fixture
def supervised(manager: Manager, path: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes = []

    def start(agent: str, **environ: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "NOTIFY_SOCKET": path, **environ}
        processes.append(
            subprocess.Popen([sys.executable, "-c", SUPERVISOR, agent], env=env, stdout=subprocess.DEVNULL)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


Start = Callable[..., "subprocess.Popen[bytes]"]


def test_the_supervisor_passes_on_what_the_agent_says_and_feeds_the_watchdog(
    supervised: Start, manager: Manager
) -> None:
    process = supervised(AGENT, WATCHDOG_USEC="300000")
    manager.until("READY=1")
    for _ in range(3):
        manager.until("WATCHDOG=1")
    process.terminate()
    manager.until("STOPPING=1")
    assert process.wait(GIVE_UP_S) == 0
    assert manager.heard.count("READY=1") == 1
    assert "STATUS=sees ." in manager.heard, "the agent's children must not speak in our name"


def test_after_a_death_the_manager_hears_of_the_pause_and_not_of_a_second_start(
    supervised: Start, manager: Manager
) -> None:
    process = supervised(AGENT.replace("while True:", "sys.exit(10)\nwhile True:"))
    for _ in range(2):
        manager.until(lambda line: line.startswith("STATUS=the agent left with code 10"))
    process.terminate()
    assert process.wait(GIVE_UP_S) == 0
    while not manager.nothing_more():
        pass
    assert manager.heard.count("READY=1") == 1


def test_an_agent_that_says_nothing_is_not_ready(supervised: Start, manager: Manager) -> None:
    process = supervised(SILENT_AGENT, WATCHDOG_USEC="300000")
    manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGQUIT)
    manager.until("STOPPING=1")
    process.wait(GIVE_UP_S)
    assert "READY=1" not in manager.heard


# The whole program


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-supervisor"]])
def test_smith_run_is_ready_even_while_fulcrum_is_away(
    arguments: list[str], manager: Manager, path: str, tmp_path: Path
) -> None:
    with running_simulator() as sim:
        sim.pause()
        process = subprocess.Popen(
            [sys.executable, "-m", "executor", *arguments],
            env=_environment(tmp_path, sim.url) | {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"},
            stdout=subprocess.DEVNULL,
        )
        killer = threading.Timer(GIVE_UP_S, process.kill)
        killer.start()
        try:
            manager.until("READY=1")
            line = manager.until(lambda line: line.startswith("STATUS="))
            assert line.startswith("STATUS=at work, 0 jobs under way, FulcrumCore does not answer")
            manager.until("WATCHDOG=1")
            process.terminate()
            if "--no-supervisor" not in arguments:
                manager.until("STOPPING=1")
            assert process.wait() == 0
        finally:
            killer.cancel()
            process.kill()
            process.wait()


def _environment(folder: Path, url: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "FULCRUM_API_URL": url,
        "FULCRUM_API_TOKEN": "a-token-of-the-test",
        "PROXMOX_HOST": "127.0.0.1",
        "PROXMOX_PORT": "9",
        "PROXMOX_USER": "smith@pve",
        "PROXMOX_PASSWORD": "not-a-secret",
        "SMITH_DATA_DIR": str(folder / "data"),
        "SMITH_RUN_DIR": str(folder / "run"),
        "SMITH_HTTP_ADDR": "off",
    }
