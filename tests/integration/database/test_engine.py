"""The database: its file, errors, transactions and repeated writes, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from support.databases import PostgresCluster, new_job, submit

import executor
from executor.database import database_check, job_queue, schema
from executor.database.engine import (
    BUSY_TIMEOUT_MS,
    file_system_of,
    open_engine,
    read_only_session,
    sqlite_file,
    transaction,
    write_with_retry,
)
from executor.database.tables.jobs import Job, Run
from executor.database.times import db_now, utc_now
from executor.errors import DatabaseError, DatabaseUnavailable, StaleJob, StatementRefused

#: The uid and gid of the user `nobody`, which has no rights.
NOBODY = 65534


@pytest.fixture
def engine_without_busy_timeout(sqlite_engine: Engine) -> Engine:
    """Return an engine that fails at once on a locked database, without the wait of 15 s."""
    return sqlite_engine.execution_options(smith_busy_timeout_ms=0)


def test_the_error_about_a_folder_in_place_of_the_database_file_contains_its_path(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=rf"cannot write the database {tmp_path}: Is a directory"):
        open_engine(f"sqlite:///{tmp_path}")


def test_the_error_about_a_file_in_place_of_the_data_folder_contains_the_path(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DatabaseError, match=r"cannot write the database .*data/smith.db: .*SMITH_DATA_DIR"):
        open_engine(f"sqlite:///{tmp_path / 'data' / 'smith.db'}")


@pytest.mark.parametrize(
    "content", [b"this is no database, and it is longer than a header " * 100, b"SQLite format 3\x00"]
)
def test_the_error_about_a_file_that_is_no_database_contains_its_path_and_the_file_does_not_change(
    tmp_path: Path, opened: Callable[[str], Engine], content: bytes
) -> None:
    file = tmp_path / "smith.db"
    file.write_bytes(content)
    engine = opened(f"sqlite:///{file}")
    for use_database in (schema.upgrade, database_check.find_problems, schema.current_revision):
        with pytest.raises(DatabaseError, match=rf"the database sqlite:///{file} cannot be used: "):
            use_database(engine)
    assert file.read_bytes() == content


def test_the_check_of_a_damaged_database_returns_problems(sqlite_engine: Engine) -> None:
    for _ in range(200):
        submit(sqlite_engine)
    sqlite_engine.dispose()
    file = Path(str(sqlite_engine.url.database))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = b"\xff" * 8192
    file.write_bytes(content)
    try:
        problems = database_check.find_problems(sqlite_engine)
    except DatabaseError as error:
        problems = [str(error)]
    assert problems


def test_the_error_about_a_folder_of_another_user_contains_our_uid(tmp_path: Path) -> None:
    """Root can write everywhere, so as root the test runs a process of the user `nobody`."""
    if os.getuid() == 0:
        (tmp_path / "closed").mkdir(mode=0o700)
        file, our_uid = tmp_path / "closed" / "smith.db", NOBODY
        code = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})"
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        file, our_uid, code = tmp_path / "closed" / "smith.db", os.getuid(), "pass"
    code = f"from executor.database.engine import open_engine; {code}; open_engine('sqlite:///{file}')"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(executor.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    last = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 1
    assert last.startswith(f"executor.errors.DatabaseError: cannot write the database {file}: Permission denied")
    assert f"must belong to uid {our_uid}" in last


def test_the_error_about_an_unreachable_server_does_not_contain_the_password(tmp_path: Path) -> None:
    engine = open_engine(f"postgresql://smith:open-sesame@/smith?host={tmp_path}")
    with pytest.raises(DatabaseError, match=r"cannot be used: .*No such file") as caught:
        schema.current_revision(engine)
    assert "open-sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "no url", "mysql://a:open-sesame@b/c", "open-sesame"])
def test_an_invalid_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"SQLite|sqlite") as caught:
        open_engine(url)
    assert "open-sesame" not in str(caught.value)


def test_only_the_owner_may_read_the_database_and_its_companion_files(
    tmp_path: Path, engine_of_missing_file: Engine
) -> None:
    shutil.rmtree(tmp_path / "new")
    before = os.umask(0)
    try:
        engine = open_engine(engine_of_missing_file.url)
        schema.upgrade(engine)
        with transaction(engine) as session:
            job_queue.submit(session, new_job())
            files = list((tmp_path / "new").iterdir())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(before)
    engine.dispose()
    assert modes == {"smith.db": 0o600, "smith.db-wal": 0o600, "smith.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", BUSY_TIMEOUT_MS)],
)
def test_every_sqlite_connection_has_the_pragma_values(sqlite_engine: Engine, pragma: str, value: Any) -> None:
    with transaction(sqlite_engine) as one, read_only_session(sqlite_engine) as another:
        assert [session.scalar(text(f"PRAGMA {pragma}")) for session in (one, another)] == [value, value]


def test_the_busy_timeout_is_set_only_when_it_changes(sqlite_engine: Engine) -> None:
    short_engine = sqlite_engine.execution_options(smith_busy_timeout_ms=7)
    statements: list[str] = []
    event.listen(sqlite_engine, "before_cursor_execute", lambda *values: statements.append(values[2]))
    found = []
    for used_engine in (sqlite_engine, sqlite_engine, short_engine, short_engine, sqlite_engine):
        with transaction(used_engine) as session:
            found.append(session.scalar(text("PRAGMA busy_timeout")))
    assert found == [BUSY_TIMEOUT_MS, BUSY_TIMEOUT_MS, 7, 7, BUSY_TIMEOUT_MS]
    changes = [statement for statement in statements if statement.startswith("PRAGMA busy_timeout=")]
    assert changes == ["PRAGMA busy_timeout=7", f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}"]


def test_file_system_of_returns_the_type_of_a_file_system() -> None:
    assert file_system_of(Path("/proc/self/status")) == "proc"


def is_write_locked_by_another_connection(file: str) -> bool:
    """Return whether another connection has the write lock."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as second_connection:
        try:
            second_connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


def test_a_writer_has_the_lock_from_its_first_statement_on(sqlite_engine: Engine) -> None:
    """A reading transaction that starts to write later would fail at once with "database is locked"."""
    file = str(sqlite_engine.url.database)
    with transaction(sqlite_engine) as session:
        session.scalar(select(func.count()).select_from(Job))
        assert is_write_locked_by_another_connection(file)
    assert not is_write_locked_by_another_connection(file)


def test_a_reader_neither_takes_the_lock_nor_waits_for_a_writer(sqlite_engine: Engine) -> None:
    job_id = submit(sqlite_engine)
    with read_only_session(sqlite_engine) as session:
        assert session.get(Job, job_id) is not None
        assert not is_write_locked_by_another_connection(str(sqlite_engine.url.database))
    with transaction(sqlite_engine) as writer:
        job_queue.submit(writer, new_job())
        writer.flush()
        with read_only_session(sqlite_engine) as session:
            assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_the_check_of_a_database_does_not_wait_for_a_writer(sqlite_engine: Engine) -> None:
    """The check of a large file takes long. If it took the lock, an agent that is running could not write meanwhile."""
    engine_with_1_ms_timeout = sqlite_engine.execution_options(smith_busy_timeout_ms=1)
    with transaction(sqlite_engine):
        assert database_check.find_problems(engine_with_1_ms_timeout) == []


def test_a_transaction_whose_block_raises_stores_nothing(engine: Engine) -> None:
    def raise_in_block() -> None:
        with transaction(engine) as session:
            job_queue.submit(session, new_job())
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        raise_in_block()
    with read_only_session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_a_run_without_its_job_is_refused(engine: Engine) -> None:
    with pytest.raises(StatementRefused) as caught, transaction(engine) as session:
        session.add(Run(job_id=4711, ident="x", attempt=1, playbook="p", started_at=utc_now()))
    assert isinstance(caught.value.__cause__, IntegrityError)


@pytest.mark.parametrize("offset_s", [0.0, 30.5, -3600.0])
def test_the_clock_of_the_database_is_utc_and_can_be_compared_with_stored_times(
    engine: Engine, offset_s: float
) -> None:
    with transaction(engine) as session:
        before = utc_now().timestamp()
        database_time = session.scalar(select(db_now(offset_s)))
        after = utc_now().timestamp()
        job_id = job_queue.submit(session, new_job(core_created_at=utc_now()))
        is_near = select(Job.core_created_at < db_now(3600), Job.core_created_at > db_now(-3600))
        assert session.execute(is_near.where(Job.id == job_id)).one() == (True, True)
    assert database_time is not None
    assert before - 0.002 <= database_time.timestamp() - offset_s <= after + 0.002  # SQLite's clock counts milliseconds


@pytest.mark.parametrize("open_session", [transaction, read_only_session])
def test_an_error_of_the_database_is_one_line_without_password_and_parameters(
    engine: Engine, open_session: Callable[[Engine], Any]
) -> None:
    secret = f"secret-{uuid.uuid4()}"
    with pytest.raises(DatabaseError) as caught, open_session(engine) as session:
        session.execute(text("SELECT :value FROM no_such_table"), {"value": secret})
    shown = engine.url.render_as_string(hide_password=True)
    message = str(caught.value)
    assert message.startswith(f"the database {shown} cannot be used: "), message
    assert "no_such_table" in message
    assert (len(message.splitlines()), secret in message) == (1, False)
    assert isinstance(caught.value.__cause__, SQLAlchemyError)


def test_an_exception_that_is_not_of_sqlalchemy_is_not_translated(engine: Engine) -> None:
    with pytest.raises(StaleJob), read_only_session(engine):
        raise StaleJob("job 1 is no longer ours")
    with pytest.raises(DatabaseError) as caught, transaction(engine):
        raise DatabaseError("held by another installation")
    assert type(caught.value) is DatabaseError


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////srv/smith.db", Path("/srv/smith.db")),
        ("sqlite:///smith.db", Path("smith.db")),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql://smith@db/smith", None),
    ],
)
def test_sqlite_file_returns_the_path_in_an_sqlite_url_and_otherwise_none(url: str, file: Path | None) -> None:
    assert sqlite_file(url) == file


def test_a_retried_write_succeeds_when_the_lock_is_free(
    sqlite_engine: Engine, engine_without_busy_timeout: Engine
) -> None:
    file = str(sqlite_engine.url.database)
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(
            target=write_with_retry, args=(engine_without_busy_timeout, lambda s: job_queue.submit(s, new_job()))
        )
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        holder.execute("ROLLBACK")
        writer.join()
    with read_only_session(sqlite_engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_a_write_is_not_retried_after_its_time_limit(engine_without_busy_timeout: Engine) -> None:
    with closing(sqlite3.connect(str(engine_without_busy_timeout.url.database), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="database is locked"):
            write_with_retry(
                engine_without_busy_timeout, lambda session: job_queue.submit(session, new_job()), give_up_after_s=0
            )


def test_a_refused_write_is_not_retried(engine: Engine) -> None:
    attempts = []

    def write(session: Session) -> None:
        attempts.append(1)
        session.add(Run(job_id=4711, ident="x", attempt=1, playbook="p", started_at=utc_now()))

    with pytest.raises(StatementRefused):
        write_with_retry(engine, write)
    assert len(attempts) == 1


def test_an_exception_of_the_write_function_is_not_retried(engine: Engine) -> None:
    def write(session: Session) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_with_retry(engine, write)


def test_a_write_is_retried_on_a_standby_that_refuses_writes(postgres_engine_of_one_test: Engine) -> None:
    """After a failover, the server may be a standby. Its error is of another class than the error about a lock."""
    attempts = 0

    def write(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            session.execute(text("SET TRANSACTION READ ONLY"))
        job_queue.submit(session, new_job())

    write_with_retry(postgres_engine_of_one_test, write)
    with read_only_session(postgres_engine_of_one_test) as session:
        assert (session.scalar(select(func.count()).select_from(Job)), attempts) == (1, 2)


def test_a_write_is_retried_on_a_new_connection_if_the_server_has_closed_the_first_one(
    postgres_engine_of_one_test: Engine, postgres: PostgresCluster
) -> None:
    attempts = 0

    def write(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            postgres.execute(f"SELECT pg_terminate_backend({pid})")
        job_queue.submit(session, new_job())

    write_with_retry(postgres_engine_of_one_test, write)
    assert attempts == 2
    with read_only_session(postgres_engine_of_one_test) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
