"""Artifacts that cannot be moved to their folder stay in the run folder, up to a maximum size, and are moved later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from executor.runs import artifact_store
from executor.runs.artifact_store import UNMOVED_FOLDER, ArtifactStore

#: A Unix time in seconds, of the year 2001.
LONG_AGO = 1_000_000_000.0


class Folders:
    """A run folder, and an artifacts folder that cannot be created before `remove_blocking_file`: it is a file."""

    def __init__(self, folder: Path) -> None:
        self.run_dir, self.artifacts_dir = folder / "run", folder / "artifacts"
        self.unmoved = self.run_dir / UNMOVED_FOLDER
        self.run_dir.mkdir()
        self.artifacts_dir.touch()
        self.store = ArtifactStore(self.artifacts_dir, lambda: self.run_dir)

    def store_run(self, ident: str, *, mtime: float | None = None, size: int = 10) -> Path:
        artifacts = self.run_dir / ident / "kept"
        artifacts.mkdir(parents=True)
        (artifacts / "status").write_text("successful")
        (artifacts / "stdout").write_bytes(b"x" * size)
        stored = self.store.store(artifacts, ident)
        if mtime is not None:
            os.utime(stored, (mtime, mtime))
        return stored

    def remove_blocking_file(self) -> None:
        self.artifacts_dir.unlink()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_unmoved_artifacts_are_moved_by_a_retry(folders: Folders) -> None:
    stored = folders.store_run("run-1", mtime=LONG_AGO)
    assert stored == folders.unmoved / "run-1"
    folders.store.retry_artifact_moves()
    assert stored.is_dir()
    folders.remove_blocking_file()

    folders.store.retry_artifact_moves()

    assert (folders.artifacts_dir / "run-1" / "status").read_text() == "successful"
    assert not folders.unmoved.exists()


def test_unmoved_artifacts_are_moved_when_those_of_a_later_run_can_be_moved(folders: Folders) -> None:
    folders.store_run("run-1", mtime=LONG_AGO)
    folders.remove_blocking_file()

    folders.store_run("run-2")

    assert {path.name for path in folders.artifacts_dir.iterdir()} == {"run-1", "run-2"}


def test_artifacts_of_a_recent_run_are_not_moved_because_their_result_may_be_unread(folders: Folders) -> None:
    stored = folders.store_run("run-1")
    folders.remove_blocking_file()

    folders.store.retry_artifact_moves()

    assert stored.is_dir()


def test_the_oldest_unmoved_artifacts_above_the_maximum_size_are_deleted(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_store, "MAX_UNMOVED_BYTES", 2500)
    with capture_logs() as logs:
        for number in range(1, 5):
            folders.store_run(f"run-{number}", mtime=LONG_AGO + number, size=1000)
        folders.store_run("run-5", size=1000)

    assert {path.name for path in folders.unmoved.iterdir()} == {"run-3", "run-4", "run-5"}
    assert sum(entry["count"] for entry in logs if entry["event"] == "unmoved_artifacts_deleted") == 2


def test_a_failed_copy_leaves_nothing_in_the_folder_of_artifacts(folders: Folders) -> None:
    folders.remove_blocking_file()
    artifacts = folders.run_dir / "run-1" / "kept"
    artifacts.mkdir(parents=True)
    (artifacts / "stdout").write_text("")
    (artifacts / "broken").symlink_to(folders.run_dir / "missing")  # copytree cannot copy it

    folders.store.store(artifacts, "run-1")

    assert list(folders.artifacts_dir.iterdir()) == []
