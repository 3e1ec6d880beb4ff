"""Notifies all agent processes of a PostgreSQL database when jobs can be claimed, so that they search at once.

A lost notification only delays a job, because each agent process also searches for jobs at regular intervals. With a
PgBouncer in the mode "transaction", LISTEN has no effect: then agent processes find jobs only by these searches.
"""

from __future__ import annotations

import contextlib
import select as select_module
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from executor.database.engine import raise_as_database_error
from executor.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: The name of PostgreSQL's channel. A notification reaches only sessions that use the same database.
CHANNEL = "smith_jobs"


def notify_agent_processes_of_jobs(session: Session) -> None:
    """At the commit of this transaction, notify all agent processes that jobs can be claimed. No effect on SQLite."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_notify(CHANNEL, "")))


@dataclass(kw_only=True)
class NotificationListener:
    """Waits for notifications on a separate connection, outside of the engine's pool."""

    engine: Engine
    _connection: Any = None  #: None before the first wait and after an error

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notification, at most `timeout_s`. Return whether one has arrived.

        A call that opens the connection returns True without waiting, because a notification may have been sent while
        no connection was open. Raises a DatabaseError, such as DatabaseUnavailable.
        """
        is_new = self._connection is None
        if is_new:
            with raise_as_database_error(self.engine):
                connection = self.engine.raw_connection()
                connection.detach()  # removes the connection from the pool
            self._connection = connection
        try:
            if is_new:
                self._start_listening()
                return True
            return self._wait_for_notification(timeout_s)
        except Exception as error:  # the driver's package is optional, so its errors are not named here
            self.close()
            raise DatabaseUnavailable(f"the connection that waits for notifications was lost: {error}") from error

    def close(self) -> None:
        """Close the connection. The next wait opens a new connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _start_listening(self) -> None:
        driver_connection = self._connection.dbapi_connection
        driver_connection.autocommit = True
        driver_connection.execute(f"LISTEN {CHANNEL}")

    def _wait_for_notification(self, timeout_s: float) -> bool:
        """Wait until the server has sent data, at most `timeout_s`. Return whether the data contain a notification.

        This method waits with `select`, because the driver's own wait would wake up every 0.1 s.
        """
        driver_connection = self._connection.dbapi_connection
        readable, _, _ = select_module.select([driver_connection.fileno()], [], [], timeout_s)
        return bool(readable) and bool(list(driver_connection.notifies(timeout=0)))
