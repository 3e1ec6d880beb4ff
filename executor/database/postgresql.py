"""Opens connections to PostgreSQL with time limits, so that a server that does not answer blocks no thread for long.

Several limits work together. CONNECT_TIMEOUT_S limits a new connection. The server itself ends a statement after
STATEMENT_TIMEOUT_S, and the wait for a lock after LOCK_TIMEOUT_S. If a client process is suspended within a
transaction, the server ends the session of this process after IDLE_TRANSACTION_TIMEOUT_S. The session's locks are then
free for other processes. TCP keepalives and `tcp_user_timeout` end a connection to a machine that has disappeared. None
of these limits ends the wait for a suspended server process: the kernel of the server's machine still acknowledges each
packet. So the client closes a connection on which no answer has arrived for RESPONSE_TIMEOUT_S.

This module is imported only for a PostgreSQL database, because the driver psycopg is optional.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from executor.errors import DatabaseError

#: The driver gives up when connecting to PostgreSQL takes longer than this.
CONNECT_TIMEOUT_S = 5
#: PostgreSQL cancels a statement that takes longer than this.
STATEMENT_TIMEOUT_S = 15
#: PostgreSQL ends a session with an open transaction in which the client sends no statement for this time.
IDLE_TRANSACTION_TIMEOUT_S = 5
#: A statement that waits longer than this for a lock fails. The time is longer than IDLE_TRANSACTION_TIMEOUT_S: if the
#: process that has the lock was suspended, or its machine has disappeared, the server first ends the session of this
#: process, and the statement that waits succeeds.
LOCK_TIMEOUT_S = 6
#: The client closes a connection when an answer takes longer than this. The time is longer than STATEMENT_TIMEOUT_S: a
#: server that is not suspended ends a slow statement before this time is over, and the connection stays usable.
RESPONSE_TIMEOUT_S = 17.0
#: With these options, the kernel ends a connection when the server's machine acknowledges nothing: after 5 s without
#: data, the kernel sends a probe every 2 s, and gives up after 3 probes. It also ends a connection on which data was
#: not acknowledged within 10 s.
TCP_LIMITS = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
#: The server's settings for each session.
SESSION_SETTINGS: Mapping[str, str] = {
    "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
    "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_TIMEOUT_S}s",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "timezone": "UTC",
    # TCP_LIMITS is for the client, and these values are for the server. If the client's machine disappears, the server
    # ends the session within half a minute. With PostgreSQL's defaults, the session would keep its locks, and its place
    # in `max_connections`, for two hours.
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
}
#: The parameter of SMITH_DATABASE_URL that says after how many executions a statement is prepared in the server. With
#: the value `none`, no statement is prepared. A PgBouncer that cannot track prepared statements needs this value.
PREPARE_PARAMETER = "prepare_threshold"

_Result = TypeVar("_Result")


class TimeLimitedConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer in time. The driver then raises OperationalError."""

    response_timeout_s: float | None = None  #: None: no limit

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait until a request of the driver is answered. The driver calls this method for each request."""
        return super().wait(self._with_time_limit(gen), *arguments, **options)

    def _with_time_limit(self, request: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        """Run the driver's generator `request`, and raise OperationalError when `response_timeout_s` has passed.

        While the server sends nothing, the driver sends READY_NONE into the generator every 0.1 s.
        """
        started_at = time.monotonic()
        try:
            awaited_event = next(request)
            while True:
                ready_events = yield awaited_event
                if ready_events == waiting.READY_NONE and self._is_overdue(started_at):
                    self.pgconn.finish()  # a late answer must not become the answer to the next request
                    raise psycopg.OperationalError(f"the server did not answer within {self.response_timeout_s:g} s")
                awaited_event = request.send(ready_events)
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _is_overdue(self, started_at: float) -> bool:
        return self.response_timeout_s is not None and time.monotonic() - started_at >= self.response_timeout_s


def open_postgresql_engine(
    url: URL,
    *,
    pool_size: int,
    max_overflow: int,
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
    session_settings: Mapping[str, str] = SESSION_SETTINGS,
) -> Engine:
    """Return an engine for a PostgreSQL database. Raises DatabaseError for a wrong parameter in the URL."""
    engine = create_engine(
        url.difference_update_query([PREPARE_PARAMETER]),
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=max_overflow,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": " ".join(f"-c {name}={value}" for name, value in session_settings.items()),
            **TCP_LIMITS,
            **_prepare_threshold_argument(url),
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> TimeLimitedConnection:
        connection = TimeLimitedConnection.connect(*arguments, **parameters)
        connection.response_timeout_s = response_timeout_s
        return connection

    return engine


def _prepare_threshold_argument(url: URL) -> dict[str, int | None]:
    """Return the driver's argument for PREPARE_PARAMETER; an empty dict if the URL does not contain the parameter."""
    value = url.query.get(PREPARE_PARAMETER)
    if value is None:
        return {}
    if value == "none":
        return {PREPARE_PARAMETER: None}
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return {PREPARE_PARAMETER: int(value)}
    raise DatabaseError(f"the parameter {PREPARE_PARAMETER} in the database's URL must be a number or the word none")


@contextlib.contextmanager
def without_timeouts(connection: Connection) -> Iterator[None]:
    """Remove the time limits of the connection's current transaction.

    The server's limits are removed until the transaction ends, and the client's limit until the `with` block ends.
    """
    driver_connection = connection.connection.driver_connection
    assert isinstance(driver_connection, TimeLimitedConnection)  # noqa: S101 (the engine opens only such connections)
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
    response_timeout_s, driver_connection.response_timeout_s = driver_connection.response_timeout_s, None
    try:
        yield
    finally:
        driver_connection.response_timeout_s = response_timeout_s
