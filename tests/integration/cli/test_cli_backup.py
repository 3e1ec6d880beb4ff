"""`smith db backup` and `restore` during writes of another process, and a power loss during a write to the database."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli

from executor.model import JobResult

#: A program that stores jobs, claims and finishes them. After each commit, it prints what it did, and the job's id.
#: Its rows are large, so that SQLite often moves the content of the WAL file into the database (a checkpoint).
WRITER = """
import sys, uuid
from executor.database import job_queue
from executor.database.engine import open_engine, transaction
from executor.database.times import utc_now
from executor.database.job_queue import NewJob
from executor.model import JobResult

engine, now = open_engine(f"sqlite:///{sys.argv[1]}"), utc_now()
while True:
    job_id, text = str(uuid.uuid4()), uuid.uuid4().hex * 700
    new = NewJob(fulcrum_id=job_id, service_id=str(uuid.uuid4()), group_id=None, action="create", params={"text": text},
                 service=None, defect=None, priority=1, core_created_at=now, deadline_at=now)
    with transaction(engine) as session:
        job_queue.submit(session, new)
    print("submitted", job_id, flush=True)
    with transaction(engine) as session:
        job = job_queue.claim(session, "node", lease_s=30)
        job_queue.finish(session, job_queue.lease_of(job), JobResult(succeeded=True, vm={"vmid": 100}))
    print("completed", job_id, flush=True)
"""
#: How many power losses are simulated.
POWER_LOSSES = 20


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


class Writer:
    """A process that commits as fast as it can, and the commits that it has acknowledged on its output."""

    def __init__(self, file: Path) -> None:
        self.acknowledged: dict[str, str] = {}
        self._process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        self._rest = b""

    def read(self, *, within_s: float = 0) -> int:
        """Read the output of the process so far; return the number of all jobs that the output has named."""
        while select.select([self._pipe], [], [], within_s)[0]:
            chunk = os.read(self._pipe, 65536)
            assert chunk, "the writer has ended"
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                word, job_id = line.decode().split()
                self.acknowledged[job_id] = word
            within_s = 0
        return len(self.acknowledged)

    def wait_for(self, count: int) -> None:
        while self.read(within_s=GIVE_UP_S) < count:
            pass

    def pause(self) -> None:
        """Suspend the process between any two of its instructions, and wait until it is suspended."""
        self._process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            pass

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def writer(smith: Cli) -> Iterator[Writer]:
    with smith.engine():
        pass
    writer = Writer(smith.file)
    yield writer
    writer.kill()


def jobs_in(file: Path) -> dict[str, str]:
    """Return the status of every job in this database, by `fulcrum_id`. Fails if SQLite finds an error in the file."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return dict(connection.execute("SELECT fulcrum_id, status FROM jobs").fetchall())


def assert_acknowledged_commits_are_in(statuses: dict[str, str], acknowledged: dict[str, str]) -> None:
    """Fail if an acknowledged commit is missing. A job may be completed although only its submission was read."""
    assert acknowledged.keys() <= statuses.keys()
    assert {job for job, word in acknowledged.items() if word == "completed"} <= {
        job for job, status in statuses.items() if status == "completed"
    }


@contextlib.contextmanager
def hold_agent_lock(smith: Cli) -> Iterator[None]:
    """Hold the lock that an agent holds on its database file while it runs."""
    with Path(f"{smith.file}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- power loss ---------------------------------------------------------------------------------------------------


def test_f32_a_power_loss_at_any_moment_loses_no_acknowledged_commit(
    smith: Cli, writer: Writer, tmp_path: Path
) -> None:
    """Power is lost while the database is written → it opens without errors, and has each acknowledged commit."""
    wal_sizes = []
    for moment in range(POWER_LOSSES):
        writer.wait_for(len(writer.acknowledged) + random.randint(1, 12))  # noqa: S311 (any moment will do)
        writer.pause()
        writer.read()
        acknowledged = dict(writer.acknowledged)
        # This copy, made while the writer is suspended, stands for the disk after the power loss.
        folder = tmp_path / f"moment-{moment}"
        folder.mkdir()
        for name in (smith.file.name, f"{smith.file.name}-wal"):
            shutil.copyfile(smith.file.with_name(name), folder / name)
        writer.resume()
        wal_sizes.append((folder / f"{smith.file.name}-wal").stat().st_size)
        assert_acknowledged_commits_are_in(jobs_in(folder / smith.file.name), acknowledged)
        shutil.rmtree(folder)
    assert max(wal_sizes) > 0


def test_a_truncated_wal_file_leaves_a_valid_database(smith: Cli, writer: Writer, tmp_path: Path) -> None:
    """The end of the WAL file had not reached the disk: only the newest transactions are lost, each one completely."""
    writer.wait_for(30)
    writer.pause()
    content = Path(f"{smith.file}-wal").read_bytes()
    jobs_with_longer_wal = None
    cuts = [random.randrange(len(content)) for _ in range(10)]  # noqa: S311 (any place will do)
    for cut in sorted(cuts, reverse=True):
        file = Path(shutil.copyfile(smith.file, tmp_path / "cut.db"))
        Path(f"{file}-wal").write_bytes(content[:cut] + os.urandom(100))
        stored_jobs = jobs_in(file)
        assert jobs_with_longer_wal is None or stored_jobs.keys() <= jobs_with_longer_wal.keys()
        jobs_with_longer_wal = stored_jobs
    writer.resume()


# --- backup -------------------------------------------------------------------------------------------------------


def test_a_backup_beside_a_writing_agent_is_complete_and_delays_no_writer(
    smith: Cli, writer: Writer, tmp_path: Path
) -> None:
    writer.wait_for(20)
    acknowledged = dict(writer.acknowledged)
    file = tmp_path / "backup.db"

    assert "bytes, checked" in smith.ok("db", "backup", str(file))

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("backup.db*")] == ["backup.db"]
    assert_acknowledged_commits_are_in(jobs_in(file), acknowledged)
    writer.wait_for(writer.read() + 5)


def test_a_backup_overwrites_no_file_and_leaves_no_partial_file(smith: Cli, tmp_path: Path) -> None:
    smith.submit()
    file = tmp_path / "backup.db"
    file.write_text("last week's")
    for path, expected_error in ((file, "exists"), (tmp_path / "no-folder" / "backup.db", "No such file")):
        done = smith("db", "backup", str(path))
        assert (done.returncode, done.stdout) == (6, "")
        assert expected_error in done.stderr
        assert done.stderr.count("\n") == 1
    assert file.read_text() == "last week's"
    assert [entry.name for entry in tmp_path.glob("backup*")] == ["backup.db"]


def test_no_backup_is_made_of_a_damaged_database(smith: Cli, tmp_path: Path) -> None:
    for _ in range(40):
        smith.submit(params={"text": "x" * 3000})
    size = smith.file.stat().st_size
    with smith.file.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    done = smith("db", "backup", str(tmp_path / "backup.db"))
    assert done.returncode == 6
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "backup.db").exists()


@pytest.mark.parametrize(("verb", "tool"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_backup_and_restore_of_postgresql_are_refused_and_postgresqls_tools_are_named(
    verb: str, tool: str, smith: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg")
    file = tmp_path / "file"
    if verb == "restore":
        file.touch()
    done = smith("db", verb, str(file), SMITH_DATABASE_URL="postgresql://smith:hunter2pass@127.0.0.1:9/smith")
    assert done.returncode == 6
    assert tool in done.stderr
    assert "hunter2pass" not in done.stderr


# --- restore ------------------------------------------------------------------------------------------------------


def make_backup_and_newer_job(smith: Cli, tmp_path: Path) -> tuple[Path, int]:
    """Make a backup of a database with one job, then add a second job. Return the backup and the first job's id."""
    first, file = smith.submit(), tmp_path / "backup.db"
    smith.ok("db", "backup", str(file))
    smith.finished(JobResult(succeeded=True, vm={"vmid": 100}))
    return file, first


def test_a_restore_replaces_the_database_and_keeps_the_old_one(smith: Cli, tmp_path: Path) -> None:
    file, first = make_backup_and_newer_job(smith, tmp_path)

    output = smith.ok("db", "restore", str(file), "--yes")

    assert [job["id"] for job in smith.json("jobs", "list")] == [first]
    assert smith.ok("db", "check") == "the database has no errors and is up to date\n"
    (old_database,) = [
        path for path in smith.data.glob("smith.db.before-*") if not path.name.endswith(("-wal", "-shm"))
    ]
    assert str(old_database) in output
    assert "smith drift" in output
    assert len(jobs_in(old_database)) == 2
    assert file.exists()
    assert not list(smith.data.glob("*.restoring*"))
    assert smith.submit() > first


def test_the_old_wal_file_is_kept_and_not_applied_to_the_new_database(smith: Cli, tmp_path: Path) -> None:
    """A killed agent leaves its WAL file beside the database. SQLite would apply it to the restored database, too."""
    file, first = make_backup_and_newer_job(smith, tmp_path)
    with contextlib.closing(sqlite3.connect(smith.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        # During this transaction, SQLite cannot move the content of the WAL file into the database file.
        reader.execute("SELECT count(*) FROM jobs").fetchall()
        newest_id = smith.submit()
        assert Path(f"{smith.file}-wal").stat().st_size > 0
        smith.ok("db", "restore", str(file), "--yes")
    assert [job["id"] for job in smith.json("jobs", "list")] == [first]
    (old_database,) = [
        path for path in smith.data.glob("smith.db.before-*") if not path.name.endswith(("-wal", "-shm"))
    ]
    assert len(jobs_in(old_database)) == newest_id  # the ids count from 1


def test_a_restore_is_refused_while_an_agent_uses_the_database(smith: Cli, tmp_path: Path) -> None:
    file, _first = make_backup_and_newer_job(smith, tmp_path)
    before = smith.file.read_bytes()
    with hold_agent_lock(smith):
        done = smith("db", "restore", str(file), "--yes")
    assert (done.returncode, done.stdout) == (6, "")
    assert "an agent uses this database" in done.stderr
    assert smith.file.read_bytes() == before


def test_a_restore_needs_a_confirmation(smith: Cli, tmp_path: Path) -> None:
    file, _first = make_backup_and_newer_job(smith, tmp_path)
    done = smith("db", "restore", str(file))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert len(smith.json("jobs", "list")) == 2
    assert not list(smith.data.glob("*.restoring*"))


def replace_by_garbage(file: Path) -> None:
    file.write_bytes(b"this is no database, and it is longer than a header " * 100)


def make_empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_other_programs_database(file: Path) -> None:
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE songs (name TEXT)")


def set_newer_schema(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def cut_in_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage", [replace_by_garbage, make_empty, replace_by_other_programs_database, set_newer_schema, cut_in_half]
)
def test_a_file_that_is_no_usable_backup_is_not_restored(damage: object, smith: Cli, tmp_path: Path) -> None:
    file, _first = make_backup_and_newer_job(smith, tmp_path)
    assert callable(damage)
    damage(file)
    done = smith("db", "restore", str(file), "--yes")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1
    assert len(smith.json("jobs", "list")) == 2
    assert not list(smith.data.glob("smith.db.*before*")) + list(smith.data.glob("*.restoring*"))


def test_a_damaged_or_missing_database_is_replaced(smith: Cli, tmp_path: Path) -> None:
    file, first = make_backup_and_newer_job(smith, tmp_path)
    replace_by_garbage(smith.file)
    assert smith("jobs", "list").returncode == 6
    smith.ok("db", "restore", str(file), "--yes")
    assert [job["id"] for job in smith.json("jobs", "list")] == [first]
    shutil.rmtree(smith.data)
    smith.ok("db", "restore", str(file), "--yes")
    assert [job["id"] for job in smith.json("jobs", "list")] == [first]
    assert stat.S_IMODE(smith.file.stat().st_mode) == 0o600


def test_a_backup_of_an_older_schema_is_restored_and_can_be_upgraded(smith: Cli, tmp_path: Path) -> None:
    smith.submit()
    smith.ok("db", "downgrade", "--yes")
    smith.ok("db", "backup", str(tmp_path / "old.db"))
    smith.ok("db", "upgrade")
    assert "smith db upgrade" in smith.ok("db", "restore", str(tmp_path / "old.db"), "--yes")
    smith.ok("db", "upgrade")
    assert len(smith.json("jobs", "list")) == 1
