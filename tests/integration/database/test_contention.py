"""Several agents claim at the same time: the order of the priorities, and one job of a service at a time."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine
from support.databases import new_job
from support.job_steps import claim, finish

from executor.database import job_queue, queries
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job

#: A limit of creates that is never reached here. Agents claim with a limit, and on PostgreSQL such claims wait for each
#: other.
MAX_CREATES = 1000


def submit_jobs(engine: Engine, services: list[str]) -> dict[int, int]:
    """Insert a job with a random priority for each service; return the priority of each job by its id."""
    random_numbers = random.Random(160)  # noqa: S311  the same jobs in each run
    priorities = {}
    with transaction(engine) as session:
        for age, service_id in enumerate(services):
            priority = random_numbers.randint(1, 10)
            job = new_job(service_id=service_id, action="stop", age=age, priority=priority)
            job_id = job_queue.submit(session, job)
            assert job_id is not None
            priorities[job_id] = priority
    return priorities


def claim_and_finish_jobs_together(engine: Engine, agents: int, on_claim: Callable[[Job], None]) -> None:
    """Let each agent claim, process and finish jobs until none is pending."""
    start = threading.Barrier(agents, timeout=60)

    def claim_and_finish_jobs(owner: str) -> None:
        start.wait()
        while True:
            job = claim(engine, owner, max_creates=MAX_CREATES)
            if job is not None:
                on_claim(job)
                finish(engine, job)
            elif not _has_pending_job(engine):
                return
            else:
                time.sleep(0.01)  # each service with a pending job has a processing one

    with ThreadPoolExecutor(agents) as pool:
        for future in [pool.submit(claim_and_finish_jobs, f"agent-{number}") for number in range(agents)]:
            future.result()


def _has_pending_job(engine: Engine) -> bool:
    with read_only_session(engine) as session:
        return queries.count_jobs(session)["pending"] > 0


def test_agents_that_claim_together_start_no_job_before_one_of_a_higher_priority(engine: Engine) -> None:
    """An agent records a job a moment after its claim. So in the recorded order, a job may be one place too late."""
    agents = 2
    priorities = submit_jobs(engine, [str(uuid.uuid4()) for _ in range(160)])
    claimed_ids: list[int] = []

    claim_and_finish_jobs_together(engine, agents, lambda job: claimed_ids.append(job.id))

    assert sorted(claimed_ids) == sorted(priorities)
    too_early = [
        job_id
        for position, job_id in enumerate(claimed_ids)
        if any(priorities[later] > priorities[job_id] for later in claimed_ids[position + agents :])
    ]
    assert too_early == []


def test_agents_that_claim_together_never_process_two_jobs_of_a_service(engine: Engine) -> None:
    """Four services and three agents, so nearly every claim meets a service whose job is processing."""
    services = [str(uuid.uuid4()) for _ in range(4)]
    priorities = submit_jobs(engine, services * 20)
    lock, processing, claimed_ids = threading.Lock(), set[str](), list[int]()
    overlaps: list[str] = []

    def process(job: Job) -> None:
        service_id = str(job.service_id)
        with lock:
            overlaps.extend([service_id] if service_id in processing else [])
            processing.add(service_id)
            claimed_ids.append(job.id)
        time.sleep(0.002)
        with lock:
            processing.discard(service_id)

    claim_and_finish_jobs_together(engine, 3, process)

    assert overlaps == []
    assert sorted(claimed_ids) == sorted(priorities)
