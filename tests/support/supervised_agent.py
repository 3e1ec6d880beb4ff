"""A supervisor whose agent process is a small script that the test writes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

SUPERVISOR = """
import json, sys
from executor.processes.supervisor import supervise
sys.exit(supervise([sys.executable, sys.argv[1]], **json.loads(sys.argv[2])))
"""

#: The beginning of the program of each test agent. `life` is the number of this start, from 1.
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
    '''Start a child, and an orphan in a session of its own, without environment variables; both ignore TERM.'''
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
        """The process ids of the agents that the supervisor has started so far."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log lines of the supervisor, which are JSON; the output of the agent is left out."""
        lines = (self.folder / "stdout").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        return [line for line in self.events if line["event"] == event]

    def has(self, name: str) -> Path | None:
        """Return the path of the file that the agent has written with `note`, None if it has not."""
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


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    limit = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.02)
    return value
