"""When the reaper takes jobs from other agents, on SQLite and on PostgreSQL.

The reaper observes the leases: it measures with its own clock for how long a lease has not changed. An agent that
fences ends its runs before its leases expire. The reaper (agent `bob`) takes the jobs of agent `alice`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select
from support.databases import row, submit
from support.job_steps import LEASE_S, claimed, expire_lease

from executor.agent.reaper import KILL_TIME_S, Reaper
from executor.agent.state import AgentState
from executor.database import job_queue, job_runs, nodes, reaping
from executor.database.engine import transaction
from executor.database.nodes import AgentProcess
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import StaleJob


@dataclass
class Observer:
    """An agent whose reaper reads the leases every five seconds of a clock that the test advances."""

    engine: Engine
    clock_offset_s: float = 0.0
    now: float = 1000.0
    reaper: Reaper = field(init=False)

    def __post_init__(self) -> None:
        self.reaper = Reaper(
            engine=self.engine,
            state=AgentState(),
            boot_id="bob",
            lease_s=LEASE_S,
            get_fulcrum_clock_offset_s=lambda: self.clock_offset_s,
            clock=lambda: self.now,
        )

    def observe_for(self, seconds: float) -> None:
        """Read the leases now, and every five seconds until the clock has advanced by `seconds`."""
        self.reaper.reap()
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            self.reaper.reap()


def add_agent(engine: Engine, boot_id: str, *, fences: bool) -> None:
    with transaction(engine) as session:
        agent = AgentProcess(boot_id=boot_id, host="h", pid=1, version="1", concurrency=1, fences=fences)
        nodes.store_agent_start(session, agent)


def claim_job_and_expire_lease(engine: Engine, owner: str = "alice") -> int:
    submit(engine)
    job_id = claimed(engine, owner).id
    expire_lease(engine, job_id)
    return job_id


def start_run(engine: Engine, job_id: int) -> None:
    lease = job_queue.lease_of(row(engine, job_id))
    with transaction(engine) as session:
        job_runs.store_run_start(session, lease, run_ident=f"create-{job_id}", playbook="create.yml")


def test_a_job_without_a_run_is_reaped_before_its_deadline(engine: Engine) -> None:
    """The owner does not fence. But it must store a run before the run starts, and cannot do so after the reaping."""
    add_agent(engine, "alice", fences=False)
    job_id = claim_job_and_expire_lease(engine)
    lease = job_queue.lease_of(row(engine, job_id))
    Observer(engine, clock_offset_s=offset_after_deadline(engine, job_id, -3600)).observe_for(LEASE_S)
    assert row(engine, job_id).status == "pending"
    with pytest.raises(StaleJob), transaction(engine) as session:
        job_runs.store_run_start(session, lease, run_ident="late", playbook="create.yml")


def test_a_job_is_not_reaped_when_its_owner_starts_a_run_after_the_leases_were_read(engine: Engine) -> None:
    add_agent(engine, "alice", fences=False)
    job_id = claim_job_and_expire_lease(engine)
    observer = Observer(engine)
    offset_s = offset_after_deadline(engine, job_id, -3600)

    def start_and_return_offset() -> float:
        """Start a run as the owner does. The reaper calls this function after it read the leases, before it writes."""
        if observer.now >= end:
            start_run(engine, job_id)
        return offset_s

    end = observer.now + LEASE_S
    observer.clock_offset_s = offset_s
    observer.observe_for(LEASE_S - 5)
    observer.reaper.get_fulcrum_clock_offset_s = start_and_return_offset
    observer.observe_for(5)
    assert row(engine, job_id).owner == "alice"
    assert row(engine, job_id).run_ident is not None


def test_the_end_of_an_agent_does_not_count_as_a_crash_of_a_job_that_only_waited(engine: Engine) -> None:
    """Otherwise several restarts of agents would quarantine all create jobs that wait for a clone slot."""
    add_agent(engine, "alice", fences=True)
    job_id = claim_job_and_expire_lease(engine)
    with transaction(engine) as session:
        job_queue.store_wait_before_run(session, job_queue.lease_of(row(engine, job_id)))
    Observer(engine).observe_for(LEASE_S)
    job = row(engine, job_id)
    assert (job.status, job.crashes, job.attempt, job.is_waiting) == ("pending", 0, 0, False)


@pytest.mark.parametrize(("started", "crashes"), [(False, 0), (True, 1)])
def test_a_released_job_that_waited_counts_as_crashed_only_if_it_then_started_its_run(
    engine: Engine, started: bool, crashes: int
) -> None:
    job_id = claim_job_and_expire_lease(engine)
    with transaction(engine) as session:
        job_queue.store_wait_before_run(session, job_queue.lease_of(row(engine, job_id)))
    if started:
        start_run(engine, job_id)
    with transaction(engine) as session:
        assert reaping.release_job(session, job_id, "alice") == "pending"
    assert (row(engine, job_id).crashes, row(engine, job_id).attempt) == (crashes, crashes)


def offset_after_deadline(engine: Engine, job_id: int, seconds: float) -> float:
    """Return an offset of FulcrumCore's clock with which the deadline was `seconds` ago (negative: in the future)."""
    return (row(engine, job_id).deadline_at + timedelta(seconds=seconds) - utc_now()).total_seconds()


def test_a_job_of_an_agent_that_fences_is_reaped_after_a_whole_lease_of_observation(engine: Engine) -> None:
    add_agent(engine, "alice", fences=True)
    job_id, id_of_bobs_job = claim_job_and_expire_lease(engine), claim_job_and_expire_lease(engine, "bob")
    observer = Observer(engine)
    observer.observe_for(LEASE_S - 5)
    assert row(engine, job_id).owner == "alice"
    observer.observe_for(5)
    assert (row(engine, job_id).status, row(engine, job_id).crashes) == ("pending", 1)
    assert row(engine, id_of_bobs_job).owner == "bob"
    assert observer.reaper.state.dispatch_requested.is_set()


def test_a_restarted_agent_observes_a_whole_lease_anew(engine: Engine) -> None:
    add_agent(engine, "alice", fences=True)
    job_id = claim_job_and_expire_lease(engine)
    Observer(engine).observe_for(LEASE_S - 5)
    Observer(engine).observe_for(LEASE_S - 5)
    assert row(engine, job_id).owner == "alice"


@pytest.mark.parametrize("is_registered", [True, False])
def test_a_job_of_an_agent_that_does_not_fence_is_reaped_after_its_deadline_and_the_kill_time(
    engine: Engine, is_registered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if is_registered:
        add_agent(engine, "alice", fences=False)
    job_id = claim_job_and_expire_lease(engine)
    start_run(engine, job_id)
    observer = Observer(engine, clock_offset_s=offset_after_deadline(engine, job_id, -3600))
    observer.observe_for(3 * LEASE_S)
    assert [record.message.count("reaping_waits_for_deadline") for record in caplog.records] == [1]
    observer.clock_offset_s = offset_after_deadline(engine, job_id, KILL_TIME_S - 5)
    observer.observe_for(5)
    assert row(engine, job_id).owner == "alice"
    observer.clock_offset_s = offset_after_deadline(engine, job_id, KILL_TIME_S + 1)
    observer.observe_for(5)
    assert row(engine, job_id).status == "pending"


def test_a_job_is_not_reaped_when_its_owner_renews_and_stops_fencing_after_the_leases_were_read(engine: Engine) -> None:
    add_agent(engine, "alice", fences=True)
    job_id = claim_job_and_expire_lease(engine)
    observer = Observer(engine)

    def renew_and_stop_fencing() -> float:
        """Renew as the owner does. The reaper calls this function after it read the leases, before it writes."""
        with transaction(engine) as session:
            job_queue.renew_leases(session, "alice", lease_s=LEASE_S)
            nodes.store_lease_renewal(session, "alice", fences=False)
        return 0.0

    observer.observe_for(LEASE_S - 5)
    observer.reaper.get_fulcrum_clock_offset_s = renew_and_stop_fencing
    observer.observe_for(5)
    assert row(engine, job_id).owner == "alice"
    with transaction(engine) as session:
        assert session.scalar(select(AgentProcessRow.fences).join(Job, Job.owner == AgentProcessRow.id)) is False
