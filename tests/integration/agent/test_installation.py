"""The file in the agent's data folder that contains the id of the installation.

An installation is a data folder on one host. The file also contains its own device and inode numbers, so that a copy
of it is recognised.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from executor.agent.installation import INSTALLATION_FILE, installation_id


def test_the_id_is_created_at_the_first_start_and_does_not_change(tmp_path: Path) -> None:
    first = installation_id(tmp_path)
    assert first is not None
    assert len(first) == 32
    assert installation_id(tmp_path) == first
    assert stat.S_IMODE((tmp_path / INSTALLATION_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [INSTALLATION_FILE]


def test_a_copy_of_the_data_folder_is_another_installation(tmp_path: Path) -> None:
    original, copy = tmp_path / "data", tmp_path / "copy"
    original.mkdir()
    first = installation_id(original)
    shutil.copytree(original, copy)
    assert installation_id(copy) not in (None, first)
    assert installation_id(original) == first


@pytest.mark.parametrize("content", ["", "x\n", "a" * 32 + "\n", "a" * 32 + " 1 2\n", "\xff" * 300])
def test_a_file_with_invalid_content_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / INSTALLATION_FILE).write_text(content, encoding="latin-1")
    first = installation_id(tmp_path)
    assert first not in (None, "a" * 32)
    assert installation_id(tmp_path) == first


def test_a_temporary_file_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{INSTALLATION_FILE}.new").write_text("a")
    assert installation_id(tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == [INSTALLATION_FILE]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_file_that_cannot_be_used_is_reported_and_the_agent_has_no_id(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "link":
        (tmp_path / "target").write_text("a")
        (tmp_path / INSTALLATION_FILE).symlink_to(tmp_path / "target")
    else:
        (tmp_path / INSTALLATION_FILE).mkdir()
    assert installation_id(tmp_path) is None
    assert "installation_id_not_usable" in caplog.text
    if kind == "link":
        assert (tmp_path / "target").read_text() == "a"


def test_a_pipe_in_the_place_of_the_file_does_not_block_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INSTALLATION_FILE)
    assert installation_id(tmp_path) is not None
