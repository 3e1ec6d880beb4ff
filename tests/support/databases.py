"""Databases for tests: a migrated SQLite file, and a PostgreSQL cluster of our own that lives as long as the session.

The schema is created once for each of them. A test gets a copy of the file (SQLite) or the emptied tables (PostgreSQL),
which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from executor.database import job_queue, schema
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.job_queue import NewJob
from executor.database.tables.all_tables import METADATA
from executor.database.tables.jobs import Job

START_OR_STOP_TIMEOUT_S = 60
TEMPLATE = "smith_template"
SHARED = "smith_shared"
#: Before all other times in the tests. The age of test jobs counts from here.
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
#: A test's cluster need not survive a crash, so it need not write to disk.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "max_connections=80")


def postgres_binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL server on this machine, None without one."""
    on_path = shutil.which("initdb")
    installed = [Path(on_path).resolve().parent] if on_path else []
    installed += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name)
    return next((folder for folder in reversed(installed) if (folder / "postgres").exists()), None)


@dataclass
class PostgresCluster:
    """A running server that listens on a socket in its folder, and on `address` if there is one."""

    folder: Path
    binaries: Path
    options: tuple[str, ...] = FAST
    address: str = ""  #: in a network namespace of the test, because every client that reaches it may connect
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = itertools.chain.from_iterable(("-c", setting) for setting in self.options)
        locations = ["-D", self.folder / "data", "-k", self.folder, "-c", f"listen_addresses={self.address}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_prefix_that_ends_the_server_with_this_process(), self.binaries / "postgres", *locations, *settings],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **_as_server_user(self.folder),
            )
        _wait_until_it_answers(self, self.process)

    def stop(self, signum: signal.Signals = signal.SIGQUIT) -> None:
        """Cut every connection and end the server. SIGINT keeps what was committed; the default may lose it."""
        if self.process is not None:
            self.process.send_signal(signum)
            self.process.wait(timeout=START_OR_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill every process of the server at once, as a crash of the machine does."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=START_OR_STOP_TIMEOUT_S)
        psutil.wait_procs(processes[1:], timeout=START_OR_STOP_TIMEOUT_S)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend every process of the server while the block runs: it answers nothing, but no connection is cut."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        server.suspend()  # first, so that it starts no other process
        processes = [server, *server.children(recursive=True)]
        try:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def url(self, name: str) -> str:
        """Return the address, for SQLAlchemy, of the database with this name."""
        return f"postgresql+psycopg://smith@/{name}?host={self.address or self.folder}"

    def execute(self, *statements: str) -> None:
        """Run statements that PostgreSQL refuses in a transaction, such as CREATE DATABASE, as the cluster's owner."""
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def empty_shared_database(self) -> str:
        """Empty the database that all tests share, and cut the connections to it; return its address."""
        engine = create_engine(self.url(SHARED), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        end_other_connections = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
        )
        tables = ", ".join(table.name for table in METADATA.sorted_tables)
        with engine.connect() as connection:
            connection.execute(text(end_other_connections), {"name": SHARED})
            # This disables the triggers of the audit, which refuse TRUNCATE.
            connection.execute(text("SET session_replication_role = replica"))
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
        return self.url(SHARED)

    @contextlib.contextmanager
    def fresh_database(self, template: str = TEMPLATE) -> Iterator[str]:
        """Create a database for one test, such as one that changes the schema; yield its address, then drop it.

        It has the current schema; with the template `template0`, it is empty.
        """
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def postgres_cluster(binaries: Path, *, address: str = "") -> Iterator[PostgresCluster]:
    """Start a server with the migrated template; stop it by its pid."""
    with empty_cluster(binaries, address=address) as cluster:
        _make_template(cluster)
        yield cluster


@contextlib.contextmanager
def empty_cluster(binaries: Path, options: tuple[str, ...] = FAST, *, address: str = "") -> Iterator[PostgresCluster]:
    """Start a server with these options, in which no database of an agent exists; stop it by its pid."""
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  mkdtemp creates the folder
    folder = Path(tempfile.mkdtemp(prefix="smith-pg-", dir=in_memory))
    cluster = PostgresCluster(folder, binaries, options, address)
    try:
        initdb = [binaries / "initdb", "--username=smith", "--auth=trust", "--no-sync", "--locale=C.UTF-8"]
        owner = _as_server_user(folder)
        subprocess.run([*initdb, "-D", folder / "data"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)
        if address:
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all all trust\n")
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _as_server_user(folder: Path) -> dict[str, Any]:
    """Return the arguments of `subprocess` that set the server's user. PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody") and user.pw_uid)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _prefix_that_ends_the_server_with_this_process() -> list[str]:
    """Return a command prefix that stops the server when the test run is killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "INT", "--"] if setpriv else []


def _wait_until_it_answers(cluster: PostgresCluster, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_OR_STOP_TIMEOUT_S
    while True:
        try:
            return cluster.execute("SELECT 1")
        except OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((cluster.folder / "log").read_text()) from None
            time.sleep(0.05)


def _make_template(cluster: PostgresCluster) -> None:
    cluster.execute(f"CREATE DATABASE {TEMPLATE}")
    engine = open_engine(cluster.url(TEMPLATE))
    schema.upgrade(engine)
    engine.dispose()  # a database with an open connection cannot be copied
    cluster.execute(f"CREATE DATABASE {SHARED} TEMPLATE {TEMPLATE}")


def migrated_sqlite_file(folder: Path) -> Path:
    """Create a migrated SQLite file in `folder`; tests copy it."""
    file = folder / "template.db"
    engine = open_engine(f"sqlite:///{file}")
    schema.upgrade(engine)
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    engine.dispose()
    return file


# --- rows ---------------------------------------------------------------------------------------------------------


def new_job(**wanted: Any) -> NewJob:
    """Return a job as the poller creates it, with `wanted` values. `age` counts minutes from `LONG_AGO`."""
    created = LONG_AGO + timedelta(minutes=wanted.pop("age", 0))
    values: dict[str, Any] = {
        "fulcrum_id": str(uuid.uuid4()),
        "service_id": str(uuid.uuid4()),
        "group_id": None,
        "tenant_id": None,
        "action": "create",
        "params": None,
        "service": None,
        "defect": None,
        "priority": 1,
        "core_created_at": created,
        "deadline_at": created + timedelta(minutes=5),
    }
    return NewJob(**(values | wanted))


def submit(engine: Engine, **wanted: Any) -> int:
    """Insert a job and return its id."""
    with transaction(engine) as session:
        job_id = job_queue.submit(session, new_job(**wanted))
    assert job_id is not None
    return job_id


def row(engine: Engine, job_id: int) -> Job:
    """Read a job from the database."""
    with read_only_session(engine) as session:
        job = session.get(Job, job_id)
    assert job is not None
    return job
