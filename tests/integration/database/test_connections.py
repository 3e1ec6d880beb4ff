"""How many connections one agent opens to PostgreSQL."""

from __future__ import annotations

import threading

from sqlalchemy import Engine, text

from executor.database.engine import MAX_POSTGRESQL_POOL_OVERFLOW, POSTGRESQL_POOL_SIZE, transaction

THREADS = 30
MAX_POOL_CONNECTIONS = POSTGRESQL_POOL_SIZE + MAX_POSTGRESQL_POOL_OVERFLOW
#: With the connection that listens for notifications, an agent has 6 connections while it is idle, and at most 12.
assert (POSTGRESQL_POOL_SIZE, MAX_POOL_CONNECTIONS) == (5, 11)
COUNT_CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")


def test_many_threads_share_few_connections(postgres_engine: Engine) -> None:
    """The server has one process for each connection, and all agents share its limit of connections."""
    counts: list[int] = []

    def count_connections() -> None:
        with transaction(postgres_engine) as session:
            counts.append(session.scalar(COUNT_CONNECTIONS) or 0)
            session.execute(text("SELECT pg_sleep(0.05)"))

    threads = [threading.Thread(target=count_connections) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == THREADS
    assert max(counts) <= MAX_POOL_CONNECTIONS
    assert postgres_engine.pool.checkedin() <= POSTGRESQL_POOL_SIZE  # type: ignore[attr-defined]
