"""The run folder: its name, its lock, and what an agent removes from it at its start. With real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from executor.errors import SettingsError
from executor.runs.private_folder import CREATED_BY_AGENT_FILE
from executor.runs.run_folder_record import RECORD_FILE, current_and_earlier_values_of_run_dir
from executor.runs.runner import Runner, RunnerPaths

#: An agent process. It starts a process with the environment variable by which an agent finds the processes of a run,
#: and waits. Arguments: run folder, data folder.
AGENT = """
import os, subprocess, sys, time
from pathlib import Path
from executor.runs.private_folder import CREDENTIALS_VARIABLE, private_folder
from executor.runs.run_folder import RunFolder

run_folder = RunFolder(Path(sys.argv[1]), Path(sys.argv[2]))
with private_folder(run_folder.path, "run-1") as folder:
    (folder / "kept").mkdir()
    (folder / "credentials.yml").touch()
    mark = {CREDENTIALS_VARIABLE: str(folder / "credentials.yml")}
    run = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, env={**os.environ, **mark})
    print(run.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def tmpfs_folder() -> Iterator[Path]:
    """Return a new folder on a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="smith-test-", dir="/dev/shm") as folder:
        yield Path(folder)


class OtherAgent:
    """Another agent process with one run, which is a process that sleeps."""

    def __init__(self, run_dir: Path, data_dir: Path) -> None:
        command = [sys.executable, "-c", AGENT, str(run_dir), str(data_dir)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.run_pid = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def is_run_alive(self) -> bool:
        try:
            state = Path(f"/proc/{self.run_pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    def end(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.is_run_alive():
            os.kill(self.run_pid, 9)


@pytest.fixture
def other_agent(tmpfs_folder: Path, tmp_path: Path) -> Iterator[OtherAgent]:
    """Start another agent of this user, with another data folder and the same run folder."""
    agent = OtherAgent(tmpfs_folder / "run", tmp_path / "other-data")
    yield agent
    agent.end()


def runner_in(run_dir: Path, data_dir: Path | None) -> Runner:
    folder = data_dir or run_dir.parent
    return Runner(
        RunnerPaths(collection_folder=folder, run_dir=run_dir, artifacts_dir=folder / "artifacts", data_dir=data_dir),
        dict,
    )


def test_two_agents_of_one_user_with_one_run_folder_setting_get_two_folders_and_their_runs_continue(
    tmpfs_folder: Path, tmp_path: Path, other_agent: OtherAgent
) -> None:
    with capture_logs() as logs:
        ended_runs = runner_in(tmpfs_folder / "run", tmp_path / "data").end_earlier_runs()

    assert ended_runs == []
    assert other_agent.is_run_alive()
    assert (tmpfs_folder / "run" / "run-1" / "credentials.yml").exists()
    assert current_and_earlier_values_of_run_dir(tmp_path / "data") == [tmpfs_folder / "run-2"]
    (warning,) = [entry for entry in logs if entry["event"] == "run_folder_not_usable"]
    assert (warning["reason"], warning["used"]) == ("another agent uses it", str(tmpfs_folder / "run-2"))


def test_a_second_agent_with_the_same_data_folder_does_not_start(
    tmpfs_folder: Path, tmp_path: Path, other_agent: OtherAgent
) -> None:
    with pytest.raises(SettingsError, match=r"SMITH_DATA_DIR .* is in use by another agent"):
        runner_in(tmpfs_folder / "elsewhere", tmp_path / "other-data").end_earlier_runs()

    assert other_agent.is_run_alive()


def test_a_restart_with_another_run_folder_ends_the_runs_in_the_earlier_one(
    tmpfs_folder: Path, tmp_path: Path, other_agent: OtherAgent
) -> None:
    other_agent.kill()
    data_dir = tmp_path / "other-data"

    assert runner_in(tmpfs_folder / "new", data_dir).end_earlier_runs() == ["run-1"]

    deadline = time.monotonic() + 10
    while other_agent.is_run_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (data_dir / "artifacts" / "run-1" / "status").read_text() == "failed"
    assert not (tmpfs_folder / "run").exists()
    assert current_and_earlier_values_of_run_dir(data_dir) == [tmpfs_folder / "new"]


def test_an_earlier_run_folder_that_another_agent_uses_now_is_not_touched(
    tmpfs_folder: Path, tmp_path: Path, other_agent: OtherAgent
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / RECORD_FILE).write_text(f"{tmpfs_folder / 'run'}\n")

    assert runner_in(tmpfs_folder / "new", data_dir).end_earlier_runs() == []

    assert other_agent.is_run_alive()
    assert (tmpfs_folder / "run" / "run-1").is_dir()


@pytest.mark.parametrize("kind", ["link", "broken link", "file", "folder of another user", "folder open to others"])
def test_a_path_that_is_not_a_private_folder_is_not_touched_and_another_name_is_used(
    tmpfs_folder: Path, tmp_path: Path, kind: str
) -> None:
    existing, target = tmpfs_folder / "run", tmp_path / "target"
    if kind.endswith("link"):
        existing.symlink_to(target)
    if kind in {"link"}:
        (target / "run-1" / "kept").mkdir(parents=True)
        (target / "run-1" / CREATED_BY_AGENT_FILE).touch()
    elif kind == "file":
        existing.write_text("existing")
    elif kind.startswith("folder"):
        (existing / "run-1").mkdir(parents=True)
        (existing / "run-1" / CREATED_BY_AGENT_FILE).touch()
        existing.chmod(0o777)
        if kind == "folder of another user":
            if os.geteuid() != 0:
                pytest.skip("only root can make a folder of another user")
            os.chown(existing, 12345, 12345)
    before = existing.lstat()

    with capture_logs() as logs:
        assert runner_in(existing, tmp_path / "data").end_earlier_runs() == []

    assert "run_folder_not_usable" in {entry["event"] for entry in logs}
    after = existing.lstat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert kind != "link" or (target / "run-1" / CREATED_BY_AGENT_FILE).exists()
    assert not kind.startswith("folder") or (existing / "run-1" / CREATED_BY_AGENT_FILE).exists()
    used = tmpfs_folder / "run-2"
    assert used.stat().st_mode & 0o777 == 0o700
    assert current_and_earlier_values_of_run_dir(tmp_path / "data") == [used]


def test_an_unusable_run_folder_on_a_disk_is_not_replaced_by_another_one(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "target")

    with pytest.raises(SettingsError, match=r"SMITH_RUN_DIR .*/run cannot be used: it is a link"):
        runner_in(tmp_path / "run", tmp_path / "data").end_earlier_runs()

    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "run-2").exists()


def test_a_run_folder_on_a_disk_is_used_with_a_warning(tmp_path: Path) -> None:
    with capture_logs() as logs:
        runner_in(tmp_path / "run", tmp_path / "data").end_earlier_runs()

    assert [entry["folder"] for entry in logs if entry["event"] == "run_folder_on_disk"] == [str(tmp_path / "run")]


def test_an_agents_start_removes_only_what_an_agent_has_created(tmpfs_folder: Path, tmp_path: Path) -> None:
    run_dir = tmpfs_folder / "run"
    for name in ("run-1", "run-without-stamp", "not a run", ".warm"):
        (run_dir / name).mkdir(parents=True)
    for name in ("run-1", "not a run"):
        (run_dir / name / CREATED_BY_AGENT_FILE).touch()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / CREATED_BY_AGENT_FILE).touch()
    (run_dir / "run-link").symlink_to(tmp_path / "target")
    (run_dir / "file").touch()
    run_dir.chmod(0o700)

    assert runner_in(run_dir, tmp_path / "data").end_earlier_runs() == ["run-1"]

    assert {path.name for path in run_dir.iterdir()} == {"run-without-stamp", "not a run", "run-link", "file"}
    assert (tmp_path / "target" / CREATED_BY_AGENT_FILE).exists()


def test_the_lock_of_a_run_folder_ends_with_its_agent(
    tmpfs_folder: Path, tmp_path: Path, other_agent: OtherAgent
) -> None:
    other_agent.kill()

    assert runner_in(tmpfs_folder / "run", tmp_path / "data").end_earlier_runs() == ["run-1"]

    assert current_and_earlier_values_of_run_dir(tmp_path / "data") == [tmpfs_folder / "run"]
