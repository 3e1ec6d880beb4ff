"""An outbox with a reporter, and the simulator that gets its reports."""

from __future__ import annotations

import itertools
from typing import Any

from sqlalchemy import Engine, update
from support.databases import new_job
from support.simulator_world import World

from executor.agent.refusals import Http403Counter
from executor.agent.reporter import (
    Reporter,
)
from executor.agent.state import AgentState
from executor.database import job_queue
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

Json = dict[str, Any]
VMIDS = itertools.count(100_000)
FAILED = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="the storage is full (run create-1)")
#: A fact of a VM that FulcrumCore refuses, because the schema of the service type defines macAddress as a string.
INVALID_MAC = {"mac_address": 7}


def made(**more: Any) -> JobResult:
    """Return the result of a create that has succeeded."""
    vm = {"vmid": next(VMIDS), "node": "pve1", "name": "web-1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}
    return JobResult(succeeded=True, vm=vm | more)


class Outbox:
    """A database with ended jobs, and the reporter that sends their results."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        self.engine = engine
        self.state = AgentState(agent_id=world.ids.agent_id)
        self.restart()

    def restart(self, url: str | None = None) -> None:
        """Make a new reporter, as after a crash: only the rows in the database remain.

        The reporter sends its reports to `url`, or to the simulator if `url` is None.
        """
        client = FulcrumClient(url or self.world.sim.url, lambda: self.world.ids.agent_token, read_timeout_s=5)
        self.now = 0.0
        self.http_403_counter = Http403Counter(fulcrum=client, clock=lambda: self.now)
        self.reporter = Reporter(
            engine=self.engine, fulcrum=client, state=self.state, http_403_counter=self.http_403_counter
        )

    def ordered(self, *, claimed: bool = True) -> Json:
        """Order a service; return its create job, claimed at FulcrumCore."""
        number = next(VMIDS)
        service = self.world.order(self.world.group(f"group-{number}"), name=f"web-{number}")
        return self.world.claimed(service) if claimed else self.world.job_of(service)

    def ended(self, job: Json, result: JobResult) -> int:
        """Store the job and this result of it; return the id of its row."""
        with transaction(self.engine) as session:
            submitted = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action=job["action"])
            job_queue.submit(session, submitted)
            row = job_queue.claim(session, "me", lease_s=30)
            assert row is not None
            job_queue.finish(session, job_queue.lease_of(row), result)
        return row.id

    def row(self, job_id: int) -> Job:
        with read_only_session(self.engine) as session:
            return session.get_one(Job, job_id)

    def turn(self, times: int = 1) -> float:
        """Let the reporter send its due reports this many times, without backoff; return how long it would wait."""
        wait_s = 0.0
        for _ in range(times):
            with transaction(self.engine) as session:
                session.execute(update(Job).values(report_after=None))
            wait_s = self.reporter.send_due_reports()
        return wait_s

    def job_at_core(self, job: Json) -> Json:
        """Return the job as FulcrumCore has it now."""
        return dict(self.world.admin.call("GET", f"/jobs/{job['id']}"))

    def reports(self, job: Json) -> list[tuple[str, int | None]]:
        """Return every report of a job that FulcrumCore received, with its response."""
        calls = self.world.sim.history(method="POST")
        return [
            (call["path"].rsplit("/", 1)[1], call["status"])
            for call in calls
            if call["path"].endswith((f"/{job['id']}/complete", f"/{job['id']}/fail"))
        ]
