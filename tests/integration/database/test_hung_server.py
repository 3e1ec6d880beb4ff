"""A PostgreSQL server that does not answer, or that is used through a connection pooler."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from support.databases import PostgresCluster

from executor.database import schema
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.postgresql import RESPONSE_TIMEOUT_S, STATEMENT_TIMEOUT_S, open_postgresql_engine
from executor.errors import DatabaseError, DatabaseUnavailable

RESPONSE_LIMIT_S = 1.0
MAX_DURATION_S = 30.0


@pytest.fixture
def short_limit_engine(postgres: PostgresCluster) -> Iterator[Engine]:
    """Open an empty PostgreSQL database with a client that waits at most RESPONSE_LIMIT_S for a response."""
    url = make_url(postgres.empty_shared_database())
    engine = open_postgresql_engine(url, pool_size=2, max_overflow=2, response_timeout_s=RESPONSE_LIMIT_S)
    yield engine
    engine.dispose()


def select_one(engine: Engine) -> int | None:
    with read_only_session(engine) as session:
        return session.scalar(text("SELECT 1"))


def test_a_statement_fails_when_the_server_is_suspended_and_succeeds_afterwards(
    short_limit_engine: Engine, postgres: PostgresCluster
) -> None:
    failing = pytest.raises(DatabaseUnavailable, match="did not answer within 1 s")
    with failing, transaction(short_limit_engine) as session:
        session.execute(text("SELECT 1"))
        with postgres.suspended():
            session.execute(text("SELECT 1"))
    assert select_one(short_limit_engine) == 1


def test_an_unused_connection_fails_when_the_server_is_suspended(
    short_limit_engine: Engine, postgres: PostgresCluster
) -> None:
    assert select_one(short_limit_engine) == 1
    with postgres.suspended(), pytest.raises(DatabaseUnavailable):
        select_one(short_limit_engine)
    assert select_one(short_limit_engine) == 1


def test_a_migration_may_take_longer_than_a_statement(short_limit_engine: Engine) -> None:
    with schema._migration_transaction(short_limit_engine) as connection:
        connection.execute(text("SELECT pg_sleep(2)"))
    with pytest.raises(DatabaseUnavailable), transaction(short_limit_engine) as session:
        session.execute(text("SELECT pg_sleep(2)"))


def test_a_responsive_server_ends_a_slow_statement_before_the_client_gives_up(postgres_engine: Engine) -> None:
    assert RESPONSE_TIMEOUT_S > STATEMENT_TIMEOUT_S
    with read_only_session(postgres_engine) as session:
        assert session.scalar(text("SHOW statement_timeout")) == f"{STATEMENT_TIMEOUT_S}s"


def test_the_response_limit_of_one_thread_does_not_end_the_statements_of_another(short_limit_engine: Engine) -> None:
    """When the limit of one thread's statement has passed, the statements of the other threads do not fail."""
    errors: list[BaseException] = []

    def sleep_in_database() -> None:
        try:
            with transaction(short_limit_engine) as session:
                session.execute(text("SELECT pg_sleep(5)"))
        except DatabaseUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=sleep_in_database)
    thread.start()
    limit = time.monotonic() + MAX_DURATION_S
    while thread.is_alive():
        assert select_one(short_limit_engine) == 1
        assert time.monotonic() < limit
    assert len(errors) == 1


@pytest.mark.parametrize(("parameter", "is_prepared"), [("", True), ("&prepare_threshold=none", False)])
def test_statements_are_prepared_in_the_server_unless_the_url_forbids_it(
    postgres: PostgresCluster, parameter: str, is_prepared: bool
) -> None:
    engine = open_engine(postgres.empty_shared_database() + parameter)
    with read_only_session(engine) as session:
        for _ in range(10):
            session.execute(text("SELECT 1"))
        count = session.scalar(text("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 1'"))
    engine.dispose()
    assert bool(count) is is_prepared


@pytest.mark.parametrize("value", ["-1", "yes", "1.5"])
def test_an_invalid_threshold_of_prepared_statements_is_refused(value: str) -> None:
    with pytest.raises(DatabaseError, match="prepare_threshold"):
        open_engine(f"postgresql://smith@db.example.net/smith?prepare_threshold={value}")
