"""A rolling upgrade on PostgreSQL: what agents do after a newer version has migrated their database.

The newer version is this version with one more migration, which exists only in this test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smith_lab.simulator.control import SimulatorThread
from sqlalchemy import Engine
from support.agent_parts import BOOT_ID, AgentParts
from support.databases import PostgresCluster
from support.newer_version import newer_migrations
from support.simulator_world import World

from executor.agent.database_start import prepare_database_when_available
from executor.agent.monitor import Limit, Monitor
from executor.agent.parts import build_lease_keeper
from executor.agent.scheduler import Scheduler
from executor.database import database_check, nodes, revisions, schema
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.errors import SchemaTooNew

AsNewerVersion = Callable[[Callable[[], None]], None]


@pytest.fixture
def postgres_database(postgres: PostgresCluster) -> Iterator[Engine]:
    """Open a database for one test only, because the test changes its schema."""
    with postgres.fresh_database() as url:
        engine = open_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def as_newer_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsNewerVersion:
    """Return a function that calls another function with the migrations of the newer version."""
    folder = newer_migrations(tmp_path / "migrations")

    def call(function: Callable[[], None]) -> None:
        with monkeypatch.context() as context:
            context.setattr(revisions, "MIGRATIONS_FOLDER", folder)
            function()

    return call


def test_an_agent_whose_schema_is_migrated_claims_nothing_more_and_ends_when_its_jobs_have_ended(
    postgres_database: Engine, as_newer_version: AsNewerVersion, sim_of_parts: SimulatorThread, tmp_path: Path
) -> None:
    world = World(sim_of_parts)
    (tmp_path / "parts").mkdir()
    parts = AgentParts(tmp_path / "parts", postgres_database, world)
    parts.state.stopping.set()  # so that the lease keeper does not wait for its next renewal
    with transaction(postgres_database) as session:
        agent = AgentProcess(boot_id=BOOT_ID, host="h", pid=1, version="1", concurrency=4)
        nodes.store_agent_start(session, agent)
    keeper = build_lease_keeper(parts.shared, parts.dispatcher, parts.runner)
    monitor = Monitor(settings=parts.shared.settings, state=parts.state, scheduler=Scheduler(postgres_database, []))

    keeper.maintain_leases()
    assert (parts.state.may_claim, monitor.find_reached_limit()) == (True, None)
    as_newer_version(lambda: schema.upgrade(postgres_database))
    keeper.maintain_leases()
    assert (parts.state.may_claim, monitor.find_reached_limit()) == (False, Limit.SCHEMA)
    world.close()


def test_a_restarted_agent_waits_until_the_database_has_a_schema_that_it_knows(
    postgres_database: Engine, as_newer_version: AsNewerVersion, caplog: pytest.LogCaptureFixture
) -> None:
    as_newer_version(lambda: schema.upgrade(postgres_database))
    checks: list[int] = []

    def downgrade_later() -> bool:
        """Downgrade the schema in the second check for a stop signal; return that there was no signal."""
        checks.append(1)
        if len(checks) == 2:
            as_newer_version(lambda: schema.downgrade(postgres_database))
        return False

    assert prepare_database_when_available(
        lambda: schema.upgrade(postgres_database), downgrade_later, waits_for_agent_upgrade=True
    )
    assert [record.message.count("start_waits_for_upgrade") for record in caplog.records].count(1) == 1
    assert database_check.find_problems(postgres_database) == []


def test_an_agent_that_waits_for_its_upgrade_ends_at_a_signal(
    postgres_database: Engine, as_newer_version: AsNewerVersion
) -> None:
    as_newer_version(lambda: schema.upgrade(postgres_database))

    def upgrade() -> None:
        schema.upgrade(postgres_database)

    assert not prepare_database_when_available(upgrade, lambda: True, waits_for_agent_upgrade=True)
    with pytest.raises(SchemaTooNew):
        prepare_database_when_available(upgrade, lambda: True)
