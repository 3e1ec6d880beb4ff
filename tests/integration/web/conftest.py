"""Fixtures of the pages for operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.databases import PostgresCluster, migrated_sqlite_file
from support.web_world import PagesSite, running_pages

MakePages = Callable[..., PagesSite]


@pytest.fixture(scope="package")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("pages-database"))


@pytest.fixture
def make_pages(tmp_path: Path, empty_database: Path) -> Iterator[MakePages]:
    with ExitStack() as stack:

        def make(**options: str) -> PagesSite:
            return stack.enter_context(running_pages(tmp_path, empty_database, **options))  # type: ignore[arg-type]

        yield make


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The setting of a fresh database of either kind. SQLite's needs none."""
    if request.param == "sqlite":
        yield {}
        return
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    with postgres.fresh_database() as url:
        yield {"SMITH_DATABASE_URL": url}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[PagesSite]:
    """The pages of an agent with a token, which the tests of a module share."""
    with running_pages(tmp_path_factory.mktemp("pages"), empty_database) as site:
        yield site
