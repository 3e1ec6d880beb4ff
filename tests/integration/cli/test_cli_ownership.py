"""Who owns the database's files: commands that root runs must leave them usable for the user of the agent.

If a command or the agent cannot use a file, its message names the file and the command that repairs it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.cli_world import Cli

import executor

#: The user and group id of `nobody`, which stands for the user that the agent runs as.
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.data.mkdir(mode=0o700)
    return cli


def owners(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_uid for file in folder.iterdir()}


def open_as_nobody(file: Path) -> str:
    """Open the database in a process (as `nobody` if the test runs as root); return its last line of stderr."""
    change_user = f"os.setgid({NOBODY}); os.setuid({NOBODY})" if os.geteuid() == 0 else "pass"
    imports = "import os, sqlite3; from executor.database.engine import open_engine"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {change_user}; open_engine('sqlite:///{file}')"],
        cwd=Path(executor.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stderr.strip().splitlines() or [""])[-1]


@needs_root
def test_files_that_root_creates_belong_to_the_owner_of_the_folder(smith: Cli, tmp_path: Path) -> None:
    os.chown(smith.data, NOBODY, NOBODY)
    smith.ok("db", "upgrade")
    assert set(owners(smith.data).values()) == {NOBODY}
    backup = tmp_path / "backup.db"
    smith.ok("db", "backup", str(backup))
    smith.ok("db", "restore", str(backup), "--yes")
    owners_of_files = owners(smith.data)
    assert len([name for name in owners_of_files if ".before-" in name]) == 1
    assert set(owners_of_files.values()) == {NOBODY}


@needs_root
def test_root_does_not_follow_a_symbolic_link_in_the_folder_of_another_user(smith: Cli, tmp_path: Path) -> None:
    smith.ok("db", "upgrade")
    (tmp_path / "target").write_text("of another program")
    smith.data.joinpath("smith.db.lock").unlink(missing_ok=True)
    smith.data.joinpath("smith.db.lock").symlink_to(tmp_path / "target")
    done = smith("db", "downgrade", "--yes")
    assert (done.returncode, "cannot lock the database" in done.stderr) == (6, True)
    assert (tmp_path / "target").read_text() == "of another program"


@needs_root
def test_a_file_of_another_user_is_named_with_the_chown_command_that_repairs_it() -> None:
    with tempfile.TemporaryDirectory() as folder:  # other users may not enter the folders of pytest
        data = Path(folder)
        os.chown(data, NOBODY, NOBODY)
        assert open_as_nobody(data / "smith.db") == ""
        for name in ("smith.db-wal", "smith.db"):
            (data / name).touch()
            (data / name).chmod(0o600)
            os.chown(data / name, 0, 0)
            error = open_as_nobody(data / "smith.db")
            assert f"{data / name} belongs to root (uid 0), not to" in error
            assert f"as root: chown {NOBODY}:{NOBODY} {data / name}" in error


def test_a_file_that_its_owner_cannot_write_is_named_with_the_chmod_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.database import file_ownership  # noqa: PLC0415 (only this test calls it directly)

    file = tmp_path / "smith.db"
    file.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may always write
    assert (
        file_ownership.why_database_unusable(file)
        == f"{file} is not readable and writable for its owner: chmod 600 {file}"
    )


def test_the_database_of_another_program_is_not_migrated(smith: Cli) -> None:
    with contextlib.closing(sqlite3.connect(smith.file)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    for command in (("db", "upgrade"), ("db", "check")):
        done = smith(*command)
        assert done.returncode == 6
        assert "has the tables of another program (bookmarks): set SMITH_DATABASE_URL" in done.stderr
    with contextlib.closing(sqlite3.connect(smith.file)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]


def test_the_message_about_a_damaged_database_names_the_command_that_restores_a_backup(smith: Cli) -> None:
    smith.file.write_text("this is not a database" * 100)
    done = smith("status")
    assert done.returncode == 6
    assert "restore a backup: smith db restore FILE" in done.stderr
