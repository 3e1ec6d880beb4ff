"""Several agents on one PostgreSQL database: a rolling upgrade, and an agent of another identity."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.conftest import MakeSystem
from faults.system import second_executor
from smith_lab.fulcrum_setup import add_agent
from support.databases import PostgresCluster
from support.newer_version import REVISION, newer_migrations, newer_project

from executor.database import revisions, schema
from executor.database.engine import open_engine


def test_agents_are_upgraded_one_after_the_other(
    postgres: PostgresCluster, make_system: MakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version migrates the schema while two agents work: they end their jobs and wait; a newer agent works."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=0.5, SMITH_DATABASE_URL=url, SMITH_LEASE_S="6")
        system.start()
        stack.callback(system.lab.stop_executor)
        other = stack.enter_context(second_executor(system))
        running = [system.order_service(f"running-{number}") for number in range(2)]
        system.wait_until(lambda: len(system.clone_requests()) == 2, "the clones to begin")

        engine = open_engine(url)
        with monkeypatch.context() as newer:
            newer.setattr(revisions, "MIGRATIONS_FOLDER", newer_migrations(tmp_path / "migrations"))
            schema.upgrade(engine)
        engine.dispose()

        for node in (system, other):
            node.wait_for_log("schema_is_newer")
        assert [system.wait_for_jobs(service_id)["status"] for service_id in running] == ["Stopped"] * 2
        for node in (system, other):
            node.wait_for_log("start_waits_for_upgrade")
            assert node.lab.executor.poll() is None
        waiting = system.order_service("waiting")

        project = newer_project(tmp_path / "newer")
        upgraded = stack.enter_context(second_executor(system, "upgraded", PYTHONPATH=str(project)))
        assert upgraded.wait_for_jobs(waiting)["status"] == "Stopped"
        assert {row["version_num"] for row in system.rows("SELECT version_num FROM alembic_version")} == {REVISION}
        system.assert_consistent()
        assert len(system.clone_requests()) == 3


def test_an_agent_of_another_identity_claims_and_reports_nothing(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    with postgres.fresh_database() as url:
        system = make_system(SMITH_DATABASE_URL=url, SMITH_LEASE_S="6")
        system.start()
        ids = system.lab.ids
        _, token = add_agent(
            system.lab.admin, name="another", provider_id=ids.provider_id, agent_type_id=ids.agent_type_id
        )
        with second_executor(system, FULCRUM_API_TOKEN=token) as other:
            (event,) = other.wait_for_log("database_of_another_agent")
            assert event["agent_id"] == ids.agent_id
            services = [system.order_service(f"web-{number}") for number in range(4)]
            assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 4
            system.assert_consistent()
            for event_name in ("playbook_started", "job_reported", "jobs_received"):
                assert other.lab.log_events(event_name) == []
        system.lab.stop_executor()
