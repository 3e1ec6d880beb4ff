"""The database is moved from SQLite to PostgreSQL and back while jobs are interrupted. Then the jobs are finished."""

from __future__ import annotations

from functools import partial

from faults.chaos.databases import running_postgres
from faults.conftest import MakeSystem
from faults.system import SystemUnderTest


def interrupt_a_create(system: SystemUnderTest, name: str) -> str:
    """Order a service, and kill the executor while its VM is cloned; return the service's id."""
    service_id = system.order_service(name)
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin", 60)
    agent = system.agent()
    system.lab.executor.kill()
    system.lab.executor.wait()
    agent.wait(30)
    return service_id


def migrate_database(system: SystemUnderTest, target: str) -> bool:
    """Move the database; return False if it is refused, because the killed agent may still be running."""
    return "jobs: " in system.lab.run_smith_text("db", "migrate", "--yes", "--to", target, exit_codes=(0, 6))


def test_interrupted_jobs_are_finished_after_a_move_and_after_the_move_back(make_system: MakeSystem) -> None:
    system = make_system(time_scale=0.3)
    second_sqlite_url = f"sqlite:///{system.lab.folder / 'back.db'}"
    with running_postgres() as (url, _server):
        system.start()
        stopped_service_id = system.create_vm("stopped")
        for name, target in (("moved", url), ("moved-back", second_sqlite_url)):
            service_id = interrupt_a_create(system, name)
            system.lab.core.add_fault("status", status=503, path=r"/complete$", times=1)
            system.wait_until(partial(migrate_database, system, target), "the killed agent to count as vanished", 60)
            system.lab.start_executor()
            assert system.lab.executor.wait(60) == 6, "the agent refuses the database that was moved"
            system.lab.settings["SMITH_DATABASE_URL"] = target
            system.start()
            assert system.wait_for_jobs(service_id)["status"] == "Stopped"
            assert len(system.clone_requests_of(service_id)) == 1
            system.vm_of(service_id)
        assert system.lab.run_action(stopped_service_id, "start", 100)["status"] == "Completed"
        system.assert_consistent()
        system.lab.stop_executor()
