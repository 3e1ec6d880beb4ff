"""The messages to the service manager (systemd), which the tests receive on a real datagram socket."""

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

from executor.processes.progress import MAX_MESSAGE_BYTES, ProgressParser
from executor.processes.sd_notify import MAX_STATUS_CHARS, PINGS_PER_TIMEOUT, Notifier

MAX_WAIT_S = 60

SUPERVISOR = """
import sys
from executor.processes.supervisor import supervise
sys.exit(supervise([sys.executable, "-c", sys.argv[1]], stop_timeout_s=30, stall_timeout_s=0))
"""
#: A test agent that reports its status and the variables of its environment.
AGENT = """
import os, sys, time
from executor.processes.progress import ProgressSender
progress = ProgressSender()
progress.report_progress()
names = sorted(name for name in os.environ if "NOTIFY" in name or "WATCHDOG" in name)
progress.report_status("sees " + ",".join(names) + ".")
progress.report_progress()
progress.report_ready()
progress.report_ready()
while True:
    progress.report_progress()
    time.sleep(0.05)
"""
SILENT_AGENT = "import time; time.sleep(600)"


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(MAX_WAIT_S)
        self.received: list[str] = []

    def receive(self) -> str:
        self.received.append(self.socket.recv(4096).decode())
        return self.received[-1]

    def receive_until(self, wanted: Callable[[str], bool] | str) -> str:
        """Wait for a line; earlier lines are in `received`."""
        while True:
            line = self.receive()
            if line == wanted or (callable(wanted) and wanted(line)):
                return line

    def receives_nothing_more(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.receive()
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(MAX_WAIT_S)
        return False


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(socket_path: str) -> Iterator[Manager]:
    manager = Manager(socket_path)
    yield manager
    manager.socket.close()


# The client


def test_without_a_socket_nothing_is_sent_and_nothing_fails() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/not/there"}):
        notifier = Notifier({**environ, "WATCHDOG_USEC": "1000"})
        notifier.send_ready()
        notifier.send_status("working")
        notifier.send_watchdog_ping()
        notifier.send_stopping()


def test_a_repeated_state_is_sent_only_once(manager: Manager, socket_path: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": socket_path})
    for _ in range(3):
        notifier.send_ready()
        notifier.send_status("working")
        notifier.send_watchdog_ping()
    notifier.send_status("two\nlines\x1b[31m" + "x" * 500)
    assert [manager.receive(), manager.receive()] == ["READY=1", "STATUS=working"]
    line = manager.receive()
    assert line.startswith("STATUS=two lines [31mx"), "a line break would start another assignment"
    assert len(line) == len("STATUS=") + MAX_STATUS_CHARS
    assert manager.receives_nothing_more(), "without WATCHDOG_USEC there are no pings"


def test_ready_is_sent_to_an_abstract_socket() -> None:
    name = f"smith-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    Notifier({"NOTIFY_SOCKET": f"@{name}"}).send_ready()
    assert manager.receive() == "READY=1"
    manager.socket.close()


@pytest.mark.parametrize(
    ("pid", "expected_pings"), [("", 1), (str(os.getpid()), 1), ("1", 0)], ids=["no-pid", "own-pid", "another-pid"]
)
def test_only_the_process_named_by_watchdog_pid_sends_pings(
    pid: str, expected_pings: int, manager: Manager, socket_path: str
) -> None:
    timeout_us = 3600 * 10**6 * PINGS_PER_TIMEOUT
    notifier = Notifier({"NOTIFY_SOCKET": socket_path, "WATCHDOG_USEC": str(timeout_us), "WATCHDOG_PID": pid})
    for _ in range(5):
        notifier.send_watchdog_ping()
    notifier.send_stopping()
    manager.receive_until("STOPPING=1")
    assert manager.received.count("WATCHDOG=1") == expected_pings


def test_a_service_manager_that_does_not_read_causes_no_delay(manager: Manager, socket_path: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": socket_path})
    for number in range(5000):  # more than any socket's queue holds
        notifier.send_status(f"line {number}")
    assert manager.receive() == "STATUS=line 0"


def test_messages_are_parsed_wherever_the_reads_split_them(manager: Manager, socket_path: str) -> None:
    data = b"...STATUS=1.5 jobs...\n..READY=1\n.EVIL=1\n.."
    for read_size in range(1, len(data)):
        notifier = Notifier({"NOTIFY_SOCKET": socket_path})
        parser = ProgressParser(notifier)
        for start in range(0, len(data), read_size):
            parser.parse(data[start : start + read_size])
        assert [manager.receive(), manager.receive()] == ["STATUS=1.5 jobs...", "READY=1"], read_size
        assert manager.receives_nothing_more(), "only these two are forwarded"


def test_a_message_without_an_end_uses_bounded_memory(socket_path: str) -> None:
    parser = ProgressParser(Notifier({}))
    for _ in range(100):
        parser.parse(b"x" * 1000)
    assert len(parser._incomplete_line) == MAX_MESSAGE_BYTES


# Through the supervisor


@pytest.fixture
def start_supervisor(manager: Manager, socket_path: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes = []

    def start(agent: str, **environ: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "NOTIFY_SOCKET": socket_path, **environ}
        processes.append(
            subprocess.Popen([sys.executable, "-c", SUPERVISOR, agent], env=env, stdout=subprocess.DEVNULL)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


StartSupervisor = Callable[..., "subprocess.Popen[bytes]"]


def test_the_supervisor_forwards_messages_and_pings_the_watchdog(
    start_supervisor: StartSupervisor, manager: Manager
) -> None:
    process = start_supervisor(AGENT, WATCHDOG_USEC="300000")
    manager.receive_until("READY=1")
    for _ in range(3):
        manager.receive_until("WATCHDOG=1")
    process.terminate()
    manager.receive_until("STOPPING=1")
    assert process.wait(MAX_WAIT_S) == 0
    assert manager.received.count("READY=1") == 1
    assert "STATUS=sees ." in manager.received, "child processes must not be able to send messages in our name"


def test_after_a_restart_the_status_shows_the_backoff_and_ready_is_not_sent_again(
    start_supervisor: StartSupervisor, manager: Manager
) -> None:
    process = start_supervisor(AGENT.replace("while True:", "sys.exit(10)\nwhile True:"))
    for _ in range(2):
        manager.receive_until(lambda line: line.startswith("STATUS=the agent exited with code 10"))
    process.terminate()
    assert process.wait(MAX_WAIT_S) == 0
    while not manager.receives_nothing_more():
        pass
    assert manager.received.count("READY=1") == 1


def test_the_supervisor_of_an_agent_that_sends_no_messages_does_not_send_ready(
    start_supervisor: StartSupervisor, manager: Manager
) -> None:
    process = start_supervisor(SILENT_AGENT, WATCHDOG_USEC="300000")
    manager.receive_until("WATCHDOG=1")
    process.send_signal(signal.SIGQUIT)
    manager.receive_until("STOPPING=1")
    process.wait(MAX_WAIT_S)
    assert "READY=1" not in manager.received


# The whole program


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-supervisor"]])
def test_smith_run_becomes_ready_while_fulcrum_does_not_answer(
    arguments: list[str], manager: Manager, socket_path: str, tmp_path: Path
) -> None:
    with running_simulator() as sim:
        sim.pause()
        process = subprocess.Popen(
            [sys.executable, "-m", "executor", *arguments],
            env=_environment(tmp_path, sim.url) | {"NOTIFY_SOCKET": socket_path, "WATCHDOG_USEC": "600000"},
            stdout=subprocess.DEVNULL,
        )
        killer = threading.Timer(MAX_WAIT_S, process.kill)
        killer.start()
        try:
            manager.receive_until("READY=1")
            line = manager.receive_until(lambda line: line.startswith("STATUS="))
            assert line.startswith("STATUS=working, 0 running jobs, FulcrumCore cannot be used: ")
            manager.receive_until("WATCHDOG=1")
            process.terminate()
            if "--no-supervisor" not in arguments:
                manager.receive_until("STOPPING=1")
            assert process.wait() == 0
        finally:
            killer.cancel()
            process.kill()
            process.wait()


def _environment(folder: Path, url: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[3]),
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
