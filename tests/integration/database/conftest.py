"""Databases of one test, which the test may damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.databases import PostgresCluster

from executor.database.engine import (
    open_engine,
)


@pytest.fixture
def opened() -> Iterator[Callable[[str], Engine]]:
    """Return a function that opens an engine. All these engines are closed at the end of the test."""
    engines: list[Engine] = []

    def opened(url: str) -> Engine:
        engines.append(open_engine(url))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine_of_missing_file(tmp_path: Path, opened: Callable[[str], Engine]) -> Engine:
    """Return an engine for a file that does not exist yet."""
    return opened(f"sqlite:///{tmp_path / 'new' / 'smith.db'}")


@pytest.fixture
def postgres_engine_of_one_test(postgres: PostgresCluster) -> Iterator[Engine]:
    """Open a PostgreSQL database for this test alone, because the test changes the schema."""
    with postgres.fresh_database() as url:
        engine = open_engine(url)
        yield engine
        engine.dispose()
