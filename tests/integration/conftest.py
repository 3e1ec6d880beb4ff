"""A fresh, migrated database for every test, on SQLite and on PostgreSQL: the fixture `engine` runs a test on both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.databases import PostgresCluster, migrated_sqlite_file, postgres_binaries, postgres_cluster

from executor.database.claim_statement import claim_statement
from executor.database.engine import open_engine


@pytest.fixture(autouse=True)
def clear_cache_of_claim_statements() -> None:
    """Remove the claim statements that earlier tests have built. So each test also tests the code that builds them."""
    claim_statement.cache_clear()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """Start the session's PostgreSQL server when the first test requests this fixture."""
    binaries = postgres_binaries()
    if binaries is None:
        reason = "NOT TESTED ON POSTGRESQL: no server binaries in PATH or /usr/lib/postgresql"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    with postgres_cluster(binaries) as cluster:
        yield cluster


@pytest.fixture
def postgres_engine(postgres: PostgresCluster) -> Iterator[Engine]:
    """Open an empty PostgreSQL database."""
    engine = open_engine(postgres.empty_shared_database())
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrate one SQLite file, for all tests to copy."""
    return migrated_sqlite_file(tmp_path_factory.mktemp("database"))


@pytest.fixture
def sqlite_engine(sqlite_template: Path, tmp_path: Path) -> Iterator[Engine]:
    """Open a fresh SQLite file."""
    file = tmp_path / "smith.db"
    shutil.copyfile(sqlite_template, file)
    engine = open_engine(f"sqlite:///{file}")
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Open a fresh database of either kind."""
    name = "sqlite_engine" if request.param == "sqlite" else "postgres_engine"
    database_engine: Engine = request.getfixturevalue(name)
    return database_engine
