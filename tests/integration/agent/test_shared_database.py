"""Parts of two agents on one PostgreSQL database: what one of them does, the other does not do, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from smith_lab.simulator.control import SimulatorThread
from sqlalchemy import Engine
from support.databases import new_job, row
from support.simulator_world import World

from executor.agent.refused_jobs import RefusedJobs
from executor.agent.reporter import SHARED_BATCH_SIZE, Reporter
from executor.agent.state import AgentState
from executor.database import job_queue
from executor.database.engine import transaction
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode

#: More than both agents send in one round.
JOB_COUNT = 2 * SHARED_BATCH_SIZE + 6
FAILED = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="the storage is full")


@pytest.fixture
def world(sim_of_parts: SimulatorThread) -> Iterator[World]:
    world = World(sim_of_parts)
    yield world
    world.close()


def store_ended_jobs(engine: Engine, world: World, count: int) -> list[int]:
    """Store jobs that FulcrumCore lists as processing and that have failed here; return the ids of their rows."""
    job_ids = []
    for number in range(count):
        job = world.claimed(world.order(world.group(f"group-{number}"), name=f"web-{number}"))
        with transaction(engine) as session:
            submitted = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action=job["action"])
            job_id = job_queue.submit(session, submitted)
            claimed = job_queue.claim(session, "me", lease_s=30)
            assert claimed is not None
            job_queue.finish(session, job_queue.lease_of(claimed), FAILED)
        assert job_id is not None
        job_ids.append(job_id)
    return job_ids


def make_reporter(engine: Engine, world: World) -> Reporter:
    client = FulcrumClient(world.sim.url, lambda: world.ids.agent_token)
    state = AgentState(agent_id=world.ids.agent_id)
    return Reporter(engine=engine, fulcrum=client, state=state, refused_jobs=RefusedJobs(fulcrum=client))


def test_two_reporters_send_each_report_once(postgres_engine: Engine, world: World) -> None:
    job_ids = store_ended_jobs(postgres_engine, world, JOB_COUNT)
    reporters = [make_reporter(postgres_engine, world) for _ in range(2)]
    threads = [threading.Thread(target=reporter.flush, args=(60.0,)) for reporter in reporters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = [call for call in world.sim.history(method="POST") if call["path"].endswith("/fail")]
    assert sorted(call["status"] for call in calls) == [204] * JOB_COUNT
    assert {row(postgres_engine, job_id).report_state for job_id in job_ids} == {ReportState.REPORTED}


def test_reports_that_a_round_does_not_send_are_left_to_others(postgres_engine: Engine, world: World) -> None:
    """After the first report that FulcrumCore does not answer, the round sends no more."""
    job_ids = store_ended_jobs(postgres_engine, world, 8)
    cut_off = make_reporter(postgres_engine, world)
    cut_off.fulcrum = FulcrumClient("http://127.0.0.1:9", lambda: "token")
    cut_off.send_due_reports()
    assert make_reporter(postgres_engine, world).flush(60.0) is True
    states = [row(postgres_engine, job_id).report_state for job_id in job_ids]
    assert states.count(ReportState.REPORTED) >= len(job_ids) - 4, "all but those that had a backoff"
