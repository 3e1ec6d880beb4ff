"""Fixtures for the HTTP server of an agent: the pages for operators, health and metrics."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.databases import PostgresCluster, migrated_sqlite_file
from support.health_site import MakeSite, Site
from support.web_world import PagesSite, running_pages

from executor.agent.critical_job import CriticalJob
from executor.agent.meters import PrometheusMetrics
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.database import nodes
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings
from executor.web.agent_view import AgentView
from executor.web.server import serving_pages

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
    """The settings of a new database: once for SQLite, which needs none, and once for PostgreSQL."""
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


@pytest.fixture(scope="module")
def proxmox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("proxmox")) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def database_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("database"))


@pytest.fixture
def make_site(tmp_path: Path, proxmox: ProxmoxStandIn, database_file: Path) -> Iterator[MakeSite]:
    proxmox.control("clear_faults")
    with ExitStack() as stack:

        def make(**variables: str) -> Site:
            environ = {"SMITH_DATA_DIR": str(tmp_path), "SMITH_RUN_DIR": str(tmp_path / "run")}
            environ |= {"SMITH_HTTP_ADDR": "127.0.0.1:0", "SMITH_CONCURRENCY": "8"} | proxmox.env() | variables
            settings = load_settings(env_file=None, environ=environ)
            shutil.copyfile(database_file, tmp_path / "smith.db")
            engine = open_engine(settings.smith_database_url)
            stack.callback(engine.dispose)
            with transaction(engine) as session:
                concurrency = settings.smith_concurrency
                agent = AgentProcess(boot_id="boot-1", host="here", pid=1, version="0", concurrency=concurrency)
                nodes.store_agent_start(session, agent)
            state = AgentState()
            scheduler = Scheduler(engine, [CriticalJob(name="Heartbeat", interval_s=5, run=lambda: None)])
            handle = stack.enter_context(serving_pages(settings))
            scheduler.start()
            stack.callback(scheduler.stop)
            view = AgentView(
                boot_id="boot-1",
                settings=settings,
                state=state,
                scheduler=scheduler,
                engine=engine,
                proxmox=ProxmoxReader(ProxmoxConnection.from_settings(settings), timeout_s=5),
                meters=PrometheusMetrics(),
                measure_memory_mib=lambda: 12.0,
                count_drift_by_kind=lambda: {"vm_gone": 2},
            )
            return Site(handle, view)

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """The HTTP server of a running agent that has sent a heartbeat."""
    site = make_site()
    site.turn()
    site.state.heartbeat_at = time.time()
    site.attach()
    return site
