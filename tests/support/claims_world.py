"""A job at a FulcrumCore simulator, the job's row in a database, and the claimer that claims it at FulcrumCore."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from support.databases import new_job
from support.simulator_world import World

from executor.agent.claim import Claimer
from executor.agent.poller import Poller
from executor.agent.refusals import Http403Counter
from executor.agent.state import AgentState
from executor.database import job_queue
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver

NUMBERS = itertools.count()


class Claims:
    """A FulcrumCore with one job, the row of this job in our database, and claimers for it."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self.engine, self.now = world, engine, 0.0
        number = next(NUMBERS)
        service = world.order(world.group(f"group-{number}"), name=f"web-{number}")
        self.job: dict[str, Any] = world.job_of(service)
        self.fulcrum = FulcrumClient(world.sim.url, lambda: world.ids.agent_token, read_timeout_s=60)
        self.http_403_counter = Http403Counter(fulcrum=self.fulcrum, clock=lambda: self.now)
        with transaction(engine) as session:
            deadline_at = utc_now() + timedelta(minutes=5)
            row = new_job(
                fulcrum_id=self.job["id"], service_id=self.job["serviceId"], action="create", deadline_at=deadline_at
            )
            job_queue.submit(session, row)

    def claimer(self) -> Claimer:
        return Claimer(engine=self.engine, fulcrum=self.fulcrum, http_403_counter=self.http_403_counter)

    def taken(self) -> Job:
        """Claim the job in the database, as the dispatcher does."""
        with transaction(self.engine) as session:
            job = job_queue.claim(session, "me", lease_s=300)
        assert job is not None
        return job

    def requeue_without_backoff(self, job: Job) -> None:
        """Requeue the job, so that it can be claimed again at once."""
        with transaction(self.engine) as session:
            job_queue.requeue(session, job_queue.lease_of(job), backoff_s=0)

    def status(self) -> str:
        """Return the status of the job at FulcrumCore."""
        return str(self.world.admin.call("GET", f"/jobs/{self.job['id']}")["status"])

    def calls(self) -> list[int | None]:
        """Return the HTTP status of each claim of the job at FulcrumCore, oldest first; None without an answer."""
        history = self.world.sim.history(method="POST")
        return [call["status"] for call in history if call["path"].endswith(f"/{self.job['id']}/claim")]

    def row(self) -> Job:
        with read_only_session(self.engine) as session:
            return session.query(Job).filter_by(fulcrum_id=self.job["id"]).one()


def poller_of(claims: Claims) -> Poller:
    state = AgentState(agent_id=claims.world.ids.agent_id)
    return Poller(
        engine=claims.engine,
        fulcrum=claims.fulcrum,
        secret_resolver=SecretResolver(claims.fulcrum),
        state=state,
        job_timeout_s=300,
        interval_s=2,
    )
