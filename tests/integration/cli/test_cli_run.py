"""`smith run`: checks the settings, then runs an agent below a supervisor until a signal stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.cli_world import GIVE_UP_S, Cli

#: No server listens on these ports: an agent also runs while FulcrumCore and Proxmox cannot be reached.
SETTINGS = {
    "FULCRUM_API_URL": "http://127.0.0.1:9",
    "FULCRUM_API_TOKEN": "a-token-that-nobody-may-see",
    "PROXMOX_HOST": "127.0.0.1",
    "PROXMOX_PORT": "9",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "agent",
    "PROXMOX_TOKEN_SECRET": "a-secret-that-nobody-may-see",
    "SMITH_HTTP_ADDR": "off",
}


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


class SmithRun:
    """`smith run` as a process whose output is written to a file."""

    def __init__(self, smith: Cli, *args: str) -> None:
        self.log = smith.folder / "log"
        self.file = smith.file
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                smith.command("run", *args),
                env=smith.environment(**SETTINGS),
                cwd=smith.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                umask=0o022,
            )

    def events(self) -> list[dict[str, object]]:
        lines = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def wait_for_critical_jobs(self) -> None:
        """Wait until the database has an execution of the critical jobs Heartbeat and GetPendingJobs."""
        limit = time.monotonic() + GIVE_UP_S
        while time.monotonic() < limit:
            if {"Heartbeat", "GetPendingJobs"} <= self._critical_jobs():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"the agent has executed no critical job:\n{self.log.read_text()}")

    def _critical_jobs(self) -> set[str]:
        if not self.file.exists():
            return set()
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            try:
                return {name for (name,) in connection.execute("SELECT name FROM critical_jobs")}
            except sqlite3.OperationalError:
                return set()  # not migrated yet


@pytest.fixture
def smith_run(smith: Cli, request: pytest.FixtureRequest) -> Iterator[SmithRun]:
    smith_run = SmithRun(smith, *getattr(request, "param", ()))
    yield smith_run
    if smith_run.process.poll() is None:
        smith_run.process.kill()
        smith_run.process.wait(GIVE_UP_S)


def test_smith_run_with_missing_settings_exits_with_3_and_creates_nothing(smith: Cli) -> None:
    done = smith("run")
    assert done.returncode == 3
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("smith: ") for line in lines)
    for name in ("FULCRUM_API_URL", "FULCRUM_API_TOKEN", "PROXMOX_HOST", "PROXMOX_USER"):
        assert any(line.startswith(f"smith: {name} is missing") for line in lines), name
    assert not smith.data.exists()


def test_smith_run_with_an_invalid_setting_exits_with_3_and_does_not_show_a_value_that_may_be_secret(
    smith: Cli,
) -> None:
    done = smith("run", **SETTINGS | {"FULCRUM_API_URL": "https://me:hunter2@core.example.net"})
    assert done.returncode == 3
    assert "FULCRUM_API_URL" in done.stderr
    assert "hunter2" not in done.stderr


def test_once_and_until_idle_exclude_each_other(smith: Cli) -> None:
    done = smith("run", "--once", "--until-idle", **SETTINGS)
    assert done.returncode == 2
    assert not smith.data.exists()


@pytest.mark.parametrize("smith_run", [(), ("--no-supervisor",), ("--until-idle",)], indirect=True)
def test_smith_run_works_until_a_signal_stops_it(smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    smith_run.process.send_signal(signal.SIGTERM)
    assert smith_run.process.wait(GIVE_UP_S) == 0
    assert any(event["event"] == "agent_stopped" for event in smith_run.events())


def test_the_arguments_of_the_agent_process_contain_its_mode_and_no_secret(smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    agents = psutil.Process(smith_run.process.pid).children()
    assert len(agents) == 1
    command = agents[0].cmdline()
    assert command[-4:] == ["executor", "agent-process", "--mode", "serve"]
    assert not any(SETTINGS[name] in " ".join(command) for name in ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET"))


def test_the_files_of_an_agent_are_private_and_have_no_secret(smith: Cli, smith_run: SmithRun) -> None:
    """The process was started with a umask with which other users could read new files."""
    smith_run.wait_for_critical_jobs()
    smith_run.process.send_signal(signal.SIGTERM)
    smith_run.process.wait(GIVE_UP_S)
    written = [path for path in (*smith.data.rglob("*"), *(smith.folder / "run").rglob("*")) if path.is_file()]
    assert smith.file in written
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for secret in (SETTINGS["FULCRUM_API_TOKEN"], SETTINGS["PROXMOX_TOKEN_SECRET"]):
        assert not any(secret.encode() in path.read_bytes() for path in [*written, smith_run.log])


def test_smith_run_exits_with_6_if_another_agent_has_locked_the_database(smith: Cli, smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    second = smith("run", **SETTINGS)
    assert second.returncode == 6
    assert "in use by pid" in second.stderr


def test_queries_work_while_an_agent_runs(smith: Cli, smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    status = smith.json("status")
    assert [node["state"] for node in status["nodes"]] == ["running"]
    assert {job["name"] for job in smith.json("critical", "list")} >= {"Heartbeat", "GetPendingJobs"}
    assert smith_run.process.poll() is None


def test_a_downgrade_is_refused_while_an_agent_runs(smith: Cli, smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    done = smith("db", "downgrade", "--yes")
    assert done.returncode == 6
    assert "stop the agent first" in done.stderr
    assert smith.json("db", "current")["current"] == smith.json("db", "current")["newest"]


def test_the_agent_process_ends_when_its_supervisor_is_killed(smith_run: SmithRun) -> None:
    smith_run.wait_for_critical_jobs()
    agent = psutil.Process(smith_run.process.pid).children()[0]
    os.kill(smith_run.process.pid, signal.SIGKILL)
    smith_run.process.wait(GIVE_UP_S)
    ended, alive = psutil.wait_procs([agent], timeout=GIVE_UP_S)
    assert (len(ended), alive) == (1, [])
