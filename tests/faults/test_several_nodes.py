"""Nodes on one database end, drain and lose the database while jobs run: nothing is lost and nothing is done twice."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from faults.conftest import MakeSystem
from faults.system import SystemUnderTest, second_executor
from support.databases import PostgresCluster

JOBS = 4
LEASE_S = 6.0
#: How long the database is unavailable, in leases: as long as 45 s with the default of 30 s.
OUTAGE_LEASES = 1.5


def job_ids_of_events(system: SystemUnderTest, event: str, **facts: object) -> list[str]:
    """Return the job ids in the node's log events with these members, one for each event."""
    return [found["job_id"] for found in system.lab.log_events(event) if facts.items() <= found.items()]


def test_the_jobs_of_a_killed_node_are_started_again_and_end_once(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """Every process of a node with four jobs is killed. The other node processes them after their leases."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        # With the default of SMITH_FENCE, a node fences its runs only after it has seen another one.
        settings = {"SMITH_LEASE_S": f"{LEASE_S:g}", "SMITH_CONCURRENCY": f"{JOBS}", "SMITH_FENCE": "always"}
        system = make_system(time_scale=3.0, SMITH_DATABASE_URL=url, **settings)
        system.lab.core.set_switches(two_claims_win=True)
        system.start()
        stack.callback(system.lab.stop_executor)
        services = [system.order_service(f"killed-{number}") for number in range(JOBS)]
        system.wait_until(lambda: len(system.clone_requests()) == JOBS, "all clones to begin")
        other = stack.enter_context(second_executor(system))
        agent = system.agent()
        system.lab.executor.kill()
        system.lab.executor.wait()
        agent.wait(30)

        assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * JOBS
        system.assert_consistent()
        assert len(system.clone_requests()) == JOBS
        jobs_of_killed_node = job_ids_of_events(system, "playbook_started")
        assert sorted(jobs_of_killed_node) == sorted(set(jobs_of_killed_node))
        assert sorted(job_ids_of_events(other, "job_finished")) == sorted(jobs_of_killed_node), (
            "each job that was started twice ended once"
        )
        assert all(row["epoch"] >= 2 for row in system.rows("SELECT epoch FROM jobs"))


def test_a_node_that_is_terminated_starts_no_job_and_the_other_one_continues(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=3.0, SMITH_DATABASE_URL=url, SMITH_CONCURRENCY=f"{JOBS}")
        system.start()
        stack.callback(system.lab.stop_executor)
        services = [system.order_service(f"running-{number}") for number in range(JOBS)]
        system.wait_until(lambda: len(system.clone_requests()) == JOBS, "all clones to begin")
        other = stack.enter_context(second_executor(system))

        system.lab.executor.send_signal(signal.SIGTERM)
        system.wait_for_log("drain_started")
        services += [system.order_service(f"later-{number}") for number in range(JOBS)]

        assert system.lab.executor.wait(120) == 0
        assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * len(services)
        system.assert_consistent()
        started = [set(job_ids_of_events(node, "playbook_started")) for node in (system, other)]
        assert [len(jobs) for jobs in started] == [JOBS, JOBS]
        assert not started[0] & started[1]
        assert len(system.clone_requests()) == len(services)


@contextmanager
def stopped_postgresql(postgres: PostgresCluster) -> Iterator[None]:
    """Stop the server while the block runs."""
    postgres.stop(signal.SIGINT)
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def locked_sqlite(system: SystemUnderTest) -> Iterator[None]:
    """Hold SQLite's write lock in this process while the block runs."""
    connection = sqlite3.connect(system.lab.data_dir / "smith.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.parametrize(("kind", "nodes"), [("sqlite", 1), ("postgresql", 1), ("postgresql", 2)])
def test_jobs_that_end_during_a_database_outage_longer_than_a_lease_end_once(
    make_system: MakeSystem, request: pytest.FixtureRequest, kind: str, nodes: int
) -> None:
    """With one node, runs end during the outage and are not repeated. Two nodes end their runs before leases expire."""
    with ExitStack() as stack:
        settings = {"SMITH_LEASE_S": f"{LEASE_S:g}", "SMITH_CONCURRENCY": f"{JOBS // nodes}"}
        postgres = request.getfixturevalue("postgres") if kind == "postgresql" else None
        if postgres is not None:
            settings["SMITH_DATABASE_URL"] = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=0.3, **settings)
        system.start()
        stack.callback(system.lab.stop_executor)
        others = [stack.enter_context(second_executor(system)) for _ in range(nodes - 1)]
        services = [system.order_service(f"away-{number}") for number in range(JOBS)]
        system.wait_until(lambda: len(system.clone_requests()) == JOBS, "all clones to begin")

        with stopped_postgresql(postgres) if postgres else locked_sqlite(system):
            time.sleep(OUTAGE_LEASES * LEASE_S)
            if nodes == 1:
                system.wait_for_log("playbook_finished", JOBS)

        assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * JOBS
        system.assert_consistent()
        assert len(system.clone_requests()) == JOBS
        ends = [job_id for node in (system, *others) for job_id in job_ids_of_events(node, "job_finished")]
        assert len(ends) == len(set(ends)) == JOBS
        if nodes == 1:
            assert len(job_ids_of_events(system, "playbook_started")) == JOBS, (
                "a run that ended during the outage was repeated"
            )
