"""Makes the executor's database unavailable: it does not answer for a time, or it is stopped and started again."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psutil
from support.databases import PostgresCluster, postgres_binaries, postgres_cluster

LOCK_WAIT_S = 5.0


class Database(Protocol):
    """A database of the executor whose answers a test can stop. `make_available` ends both kinds of fault."""

    def hang(self) -> bool:
        """Leave requests without an answer. Return False if that is not possible now."""

    def make_unavailable(self) -> bool:
        """Refuse connections, or hang if the database cannot refuse them. Return False if that is not possible now."""

    def make_available(self) -> None:
        """Answer again."""


class SqliteFile:
    """The executor's SQLite file. It hangs while a connection of this process holds the write lock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def hang(self) -> bool:
        if self._connection is not None or not self._file.exists():
            return False
        connection = sqlite3.connect(self._file, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # the disk is full, or the executor holds the lock
            connection.close()
            return False
        self._connection = connection
        return True

    make_unavailable = hang

    def make_available(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("ROLLBACK")
            connection.close()


class PostgresServer:
    """A PostgreSQL server that only this test uses. It hangs while all its processes are suspended."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self._cluster = cluster
        self._suspended: list[psutil.Process] = []
        self._is_stopped = False

    def hang(self) -> bool:
        if self._suspended or self._is_stopped or self._cluster.process is None:
            return False
        server = psutil.Process(self._cluster.process.pid)
        # The server is suspended first, so that it starts no process meanwhile.
        server.suspend()
        self._suspended = [server, *server.children(recursive=True)]
        for process in self._suspended[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        return True

    def make_unavailable(self) -> bool:
        if self._suspended or self._is_stopped:
            return False
        self._cluster.stop(signal.SIGINT)
        self._is_stopped = True
        return True

    def make_available(self) -> None:
        for process in self._suspended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._suspended = []
        if self._is_stopped:
            self._cluster.start()
            self._is_stopped = False


@contextmanager
def running_postgres() -> Iterator[tuple[str, PostgresServer]]:
    """Run a PostgreSQL server; yield the URL of an empty database and the server. Raises RuntimeError without one."""
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL server on this machine")
    with postgres_cluster(binaries) as cluster:
        server = PostgresServer(cluster)
        try:
            with cluster.fresh_database() as url:
                yield url, server
        finally:
            server.make_available()
