"""What else may happen: agents poll, claim and renew leases, time passes, and processes and connections fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol import database, fulcrum, reporter, worker
from protocol.decisions import Decisions
from protocol.worker import RUNNING, Transition
from protocol.world import (
    LEASE_TICKS,
    TICK_S,
    UNSEEN_TICKS,
    Agent,
    CoreJob,
    Row,
    Slot,
    World,
    put,
    with_agent,
    with_row,
)

from executor.agent import fence
from executor.agent.reaper import Observation, Verdict
from executor.agent.refused_jobs import MIN_DURATION_S, MIN_INTERVAL_S, Refusals
from executor.model import SETTLED_STATES, JobStatus

#: The error of a job that FulcrumCore has failed after the job timeout.
JOB_TIMEOUT = "job timeout"


def transitions(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Yield every event that may happen next. Events that restore agents come first, and the passing of time last."""
    yield from _recover(world, decisions)
    for number, agent in enumerate(world.agents):
        if agent.is_alive:
            yield from reporter.transitions(world, number, decisions)
            for slot in agent.slots:
                yield from worker.transitions(world, number, slot, decisions)
            yield from _claim(world, number, decisions)
            yield from _poll(world, number)
    yield from _receive_late_requests(world)
    if world.faults_left:
        yield from _fail(world)
    yield from _pass_time(world, decisions)


def _claim(world: World, number: int, decisions: Decisions) -> Iterator[Transition]:
    """Claim a job in the database, unless another job of the service is processing."""
    agent = world.agents[number]
    if not agent.is_connected or any(row and row.status is JobStatus.PROCESSING for row in world.rows):
        return
    for job, row in enumerate(world.rows):
        if row is None or row.status is not JobStatus.PENDING:
            continue
        claimed = database.claim(row, agent.name)
        slot = Slot(job=job, epoch=claimed.epoch, attempt=claimed.attempt, was_sent=row.is_claim_sent)
        slot = worker.begin(slot, decisions, is_claimed=row.is_claimed)
        after = with_agent(with_row(world, job, claimed), number, slots=tuple(sorted((*agent.slots, slot))))
        yield Transition(f"Agent {agent.name} claims job {job + 1} in the database", after)


def _poll(world: World, number: int) -> Iterator[Transition]:
    """Read the list of pending jobs, or of this agent's processing jobs, and store what is new."""
    agent = world.agents[number]
    if agent.late_page is not None and agent.is_connected:
        jobs, are_claimed = agent.late_page
        yield Transition(
            f"Agent {agent.name} receives the late list of jobs",
            with_agent(_store_page(world, jobs, are_claimed=are_claimed), number, late_page=None),
        )
    lists = (("pending", fulcrum.pending_jobs(world), False), ("processing", fulcrum.processing_jobs(world), True))
    for name, jobs, are_claimed in lists:
        if not jobs:
            continue
        after = _store_page(world, jobs, are_claimed=are_claimed)
        if agent.is_connected and after is not world:
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs, and stores what is new", after)
        if world.faults_left and agent.late_page is None:
            late = with_agent(world, number, late_page=(jobs, are_claimed))
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs; the answer is late", late, True)


def _store_page(world: World, jobs: tuple[int, ...], *, are_claimed: bool) -> World:
    for job in jobs:
        row = world.rows[job]
        if row is None:
            world = with_row(world, job, Row(is_claim_sent=are_claimed, is_claimed=are_claimed))
        elif row.report in SETTLED_STATES:
            world = with_row(world, job, database.reopen(row, are_claimed=are_claimed))
    return world


def _receive_late_requests(world: World) -> Iterator[Transition]:
    for late in world.late_requests:
        request, job, error = late
        after, answer = fulcrum.apply(world, request, job, error)
        after = after._replace(late_requests=tuple(other for other in world.late_requests if other != late))
        yield Transition(f"The late request `{request}` of job {job + 1} arrives; {fulcrum.ANSWERS[answer]}", after)


def _pass_time(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Let one tick pass. The runs that were asked to stop end before."""
    for agent in world.agents:
        if any(slot.step == RUNNING and slot.is_stopped for slot in agent.slots):
            return
    older = world._replace(
        rows=tuple(row and row._replace(lease=row.lease - 1) if row and row.lease else row for row in world.rows),
        agents=tuple(_older_agent(agent) for agent in world.agents),
    )
    after = older
    for number, agent in enumerate(older.agents):
        if agent.is_alive and agent.is_connected:
            after = _renew(after, number)
    after = _fence_and_reap(after, decisions)
    if after != world:
        yield Transition(f"{TICK_S:.0f} s pass", after)
    if world.faults_left:
        yield from _pass_time_with_lost_answer(older, decisions)


def _pass_time_with_lost_answer(older: World, decisions: Decisions) -> Iterator[Transition]:
    """Let one agent lose the database after it has stored its renewal and before it receives the answer."""
    for number, agent in enumerate(older.agents):
        if not (agent.is_alive and agent.is_connected):
            continue
        after = older
        for other, other_agent in enumerate(older.agents):
            if other_agent.is_alive and other_agent.is_connected:
                after = _renew(after, other)
        has_others = decisions.has_others_after_lost_answer(agent.has_others, after.agents[number].has_others)
        after = with_agent(after, number, is_connected=False, has_others=has_others, slots=agent.slots)
        story = f"Agent {agent.name} no longer reaches the database after it has renewed its leases"
        yield Transition(f"{story}; {TICK_S:.0f} s pass", _fence_and_reap(after, decisions), True)


def _fence_and_reap(after: World, decisions: Decisions) -> World:
    for number, agent in enumerate(after.agents):
        if agent.is_alive and agent.is_connected:
            after = _release_and_reap(after, number, decisions)
        elif agent.is_alive and decisions.is_fence_due(agent.since_renewal, agent.has_others):
            after = _stop(after, number, {slot.job for slot in agent.slots})
    return after


def _older_agent(agent: Agent) -> Agent:
    return agent._replace(
        since_renewal=min(agent.since_renewal + 1, UNSEEN_TICKS),
        since_read=min(agent.since_read + 1, LEASE_TICKS),
        observed=tuple(
            ((job, epoch, max(lease - 1, 0)), min(ticks + 1, LEASE_TICKS))
            for (job, epoch, lease), ticks in agent.observed
        ),
        refusals=tuple((key, _older(refusals)) for key, refusals in agent.refusals),
    )


def _older(refusals: Refusals) -> Refusals:
    """Return the refusals one tick later. Only the bounds of `is_gone` and `add_refusal` matter."""
    return Refusals(
        count=refusals.count,
        first_at=max(refusals.first_at - TICK_S, -MIN_DURATION_S),
        last_at=max(refusals.last_at - TICK_S, -MIN_INTERVAL_S),
    )


def _renew(world: World, number: int) -> World:
    """Renew the agent's leases, and stop the jobs that have none."""
    agent, other = world.agents[number], world.agents[1 - number]
    owned = _owned(world, agent.name)
    for job in owned:
        row = world.rows[job]
        assert row is not None
        world = with_row(world, job, row._replace(lease=LEASE_TICKS))
    has_others = other.since_renewal < UNSEEN_TICKS
    is_row_fencing = fence.is_fencing("auto", has_other_agents=has_others)
    world = with_agent(world, number, since_renewal=0, has_others=has_others, is_row_fencing=is_row_fencing)
    return _stop(world, number, {slot.job for slot in agent.slots} - owned)


def _owned(world: World, name: str) -> set[int]:
    return {
        job for job, row in enumerate(world.rows) if row and row.owner == name and row.status is JobStatus.PROCESSING
    }


def _stop(world: World, number: int, jobs: set[int]) -> World:
    if not jobs:
        return world
    slots = (slot._replace(is_stopped=slot.is_stopped or slot.job in jobs) for slot in world.agents[number].slots)
    return with_agent(world, number, slots=tuple(sorted(slots)))


def _release_and_reap(world: World, number: int, decisions: Decisions) -> World:
    """Release the agent's jobs that no thread processes, and reap jobs of the other agent."""
    agent = world.agents[number]
    for job in _owned(world, agent.name) - {slot.job for slot in agent.slots}:
        world = _take(world, job, decisions)
    leases = {
        (job, row.epoch, row.lease): row
        for job, row in enumerate(world.rows)
        if row and row.status is JobStatus.PROCESSING and row.owner != agent.name
    }
    known = {state: -ticks * TICK_S for state, ticks in agent.observed}
    earlier: Any = Observation(read_at=-agent.since_read * TICK_S, unchanged_since=known)
    observation = decisions.observe(earlier, leases, 0.0, lease_s=LEASE_TICKS * TICK_S)
    unchanged_s = {state: -since for state, since in observation.unchanged_since.items()}
    observed: Any = tuple((state, round(seconds / TICK_S)) for state, seconds in sorted(unchanged_s.items()))
    world = with_agent(world, number, since_read=0, observed=observed)
    for (job, _epoch, lease), row in leases.items():
        verdict = decisions.decide_reaping(
            unchanged_s[job, _epoch, lease],
            lease_s=LEASE_TICKS * TICK_S,
            is_expired=lease == 0,
            is_owner_fencing=_is_row_fencing(world, row),
            is_past_deadline=_is_past_deadline(world, job),
        )
        if verdict is Verdict.REAP:
            world = _take(world, job, decisions)
    return world


def _is_row_fencing(world: World, row: Row) -> bool:
    return any(agent.is_row_fencing for agent in world.agents if row.owner and row.owner[0] == agent.name)


def _is_past_deadline(world: World, job: int) -> bool:
    """Return whether the job's deadline and the kill time have passed, so that its run has ended."""
    is_running = any(slot.job == job and slot.step == RUNNING for agent in world.agents for slot in agent.slots)
    return world.core[job].error == JOB_TIMEOUT and not is_running


def _take(world: World, job: int, decisions: Decisions) -> World:
    row = world.rows[job]
    assert row is not None
    return with_row(world, job, database.take_from_owner(row, decisions))


def _recover(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Restart a killed agent, and restore a lost connection to the database."""
    for number, agent in enumerate(world.agents):
        if not agent.is_alive and agent.is_connected:
            yield Transition(f"Agent {agent.name} is started again", _restart(world, number, decisions))
        if not agent.is_connected:
            after = with_agent(world, number, is_connected=True)
            yield Transition(f"Agent {agent.name} reaches the database again", after)


def _restart(world: World, number: int, decisions: Decisions) -> World:
    """Start the next process of the agent. It takes the jobs of the former process at once."""
    agent = world.agents[number]
    for job in _owned(world, f"{agent.name}'"):
        world = _take(world, job, decisions)
    return with_agent(world, number, is_alive=True, since_renewal=0, has_others=True, is_row_fencing=True)


def _fail(world: World) -> Iterator[Transition]:
    """Kill an agent, cut its connection to the database, or let FulcrumCore end or delete a job."""
    for number, agent in enumerate(world.agents):
        if agent.is_alive:
            yield from _kill(world, number)
        if agent.is_connected:
            cut = with_agent(world, number, is_connected=False)
            yield Transition(f"Agent {agent.name} no longer reaches the database", cut, True)
    for job, core_job in enumerate(world.core):
        if core_job.status in ("Pending", "Processing"):
            failed = put(world.core, job, CoreJob("Failed", JOB_TIMEOUT))
            yield Transition(
                f"FulcrumCore fails job {job + 1} after the job timeout", world._replace(core=failed), True
            )


def _kill(world: World, number: int) -> Iterator[Transition]:
    agent = world.agents[number]
    rows = tuple(row._replace(owner=f"{agent.name}'") if row and row.owner == agent.name else row for row in world.rows)
    killed = with_agent(
        world._replace(rows=rows), number, is_alive=False, slots=(), report=None, late_page=None, refusals=()
    )
    killed = with_agent(killed, number, has_others=True, since_read=LEASE_TICKS, observed=())
    story = f"Agent {agent.name} is killed"
    yield Transition(story, killed, True)
    if any(slot.step == RUNNING and slot.job == 0 for slot in agent.slots) and not world.vms:
        yield Transition(f"{story} after its run has created the VM", killed._replace(vms=1), True)
