"""The passing of time: agents renew their leases, end their runs before these expire, and reap each other's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol import worker
from protocol.database import reap_or_release
from protocol.decisions import Decisions
from protocol.worker import RUNNING, Transition
from protocol.world import JOB_TIMEOUT, LEASE_TICKS, TICK_S, UNSEEN_TICKS, Agent, Row, World, with_agent, with_row

from executor.agent import fence
from executor.agent.reaper import LeaseObservation, ReapDecision
from executor.agent.refusals import MIN_INTERVAL_S, MIN_REFUSAL_DURATION_S, Refusals
from executor.model import JobStatus


def pass_time(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Let one tick pass. It passes only after the end of runs that must stop, or that a guard ends within the tick."""
    for agent in world.agents:
        is_guard_limit_over = not is_renewing(agent) and worker.is_guard_limit_over(
            agent, agent.since_renewal + 1, decisions
        )
        if any(slot.step == RUNNING and (slot.is_stopped or is_guard_limit_over) for slot in agent.slots):
            return
    older = world._replace(
        rows=tuple(row and row._replace(lease=row.lease - 1) if row and row.lease else row for row in world.rows),
        agents=tuple(_agent_one_tick_later(agent) for agent in world.agents),
    )
    after = older
    for agent_index, agent in enumerate(older.agents):
        if is_renewing(agent):
            after = _renew(after, agent_index)
    after = _fence_and_reap(after, decisions)
    if after != world:
        yield Transition(f"{TICK_S:.0f} s pass", after)
    if world.faults_left:
        yield from _pass_time_with_lost_answer(older, decisions)


def _pass_time_with_lost_answer(older: World, decisions: Decisions) -> Iterator[Transition]:
    """Let one agent lose the database, or be suspended, after its renewal is stored and before the answer."""
    for agent_index, agent in enumerate(older.agents):
        if not is_renewing(agent):
            continue
        after = older
        for other_index, other_agent in enumerate(older.agents):
            if is_renewing(other_agent):
                after = _renew(after, other_index)
        has_other_agents = decisions.has_other_agents_after_lost_answer(
            agent.has_other_agents, after.agents[agent_index].has_other_agents
        )
        # The agent counts from the last renewal whose answer reached it, and does not learn which jobs it has lost.
        own_view = {"since_renewal": agent.since_renewal, "slots": agent.slots}
        after = with_agent(after, agent_index, has_other_agents=has_other_agents, **own_view)
        for fault, changes in (
            ("no longer reaches the database", {"is_connected": False}),
            ("is suspended", {"is_suspended": True}),
        ):
            description = f"Agent {agent.name} {fault} after it has renewed its leases; {TICK_S:.0f} s pass"
            yield Transition(description, _fence_and_reap(with_agent(after, agent_index, **changes), decisions), True)


def is_renewing(agent: Agent) -> bool:
    """Return whether the agent renews its leases within the next tick."""
    return agent.is_alive and agent.is_connected and not agent.is_suspended


def _fence_and_reap(after: World, decisions: Decisions) -> World:
    for agent_index, agent in enumerate(after.agents):
        if not agent.is_alive or agent.is_suspended:
            continue
        if agent.is_connected:
            after = _release_and_reap(after, agent_index, decisions)
        elif decisions.is_fence_due(agent.since_renewal, agent.has_other_agents):
            after = _ask_to_stop(after, agent_index, {slot.job for slot in agent.slots})
    return after


def _agent_one_tick_later(agent: Agent) -> Agent:
    return agent._replace(
        since_renewal=min(agent.since_renewal + 1, UNSEEN_TICKS),
        since_read=min(agent.since_read + 1, LEASE_TICKS),
        observed=tuple(
            ((job, epoch, max(lease - 1, 0)), min(ticks + 1, LEASE_TICKS))
            for (job, epoch, lease), ticks in agent.observed
        ),
        refusals=tuple((key, _refusals_one_tick_later(refusals)) for key, refusals in agent.refusals),
    )


def _refusals_one_tick_later(refusals: Refusals) -> Refusals:
    """Return the refusals one tick later. Ages above the bounds of `is_gone` and `add_refusal` make no difference."""
    return Refusals(
        count=refusals.count,
        first_at=max(refusals.first_at - TICK_S, -MIN_REFUSAL_DURATION_S),
        last_at=max(refusals.last_at - TICK_S, -MIN_INTERVAL_S),
    )


def _renew(world: World, agent_index: int) -> World:
    """Renew the agent's leases, and stop the jobs that have none."""
    agent, other = world.agents[agent_index], world.agents[1 - agent_index]
    owned = _owned_jobs(world, agent.name)
    for job in owned:
        row = world.rows[job]
        assert row is not None
        world = with_row(world, job, row._replace(lease=LEASE_TICKS))
    has_other_agents = other.since_renewal < UNSEEN_TICKS
    is_fencing_in_database = fence.is_fencing("auto", has_other_agents=has_other_agents)
    world = with_agent(
        world,
        agent_index,
        since_renewal=0,
        has_other_agents=has_other_agents,
        is_fencing_in_database=is_fencing_in_database,
    )
    return _ask_to_stop(world, agent_index, {slot.job for slot in agent.slots} - owned)


def _owned_jobs(world: World, name: str) -> set[int]:
    return {
        job for job, row in enumerate(world.rows) if row and row.owner == name and row.status is JobStatus.PROCESSING
    }


def _ask_to_stop(world: World, agent_index: int, jobs: set[int]) -> World:
    if not jobs:
        return world
    slots = (slot._replace(is_stopped=slot.is_stopped or slot.job in jobs) for slot in world.agents[agent_index].slots)
    return with_agent(world, agent_index, slots=tuple(sorted(slots)))


def _release_and_reap(world: World, agent_index: int, decisions: Decisions) -> World:
    """Release the agent's jobs that no thread processes, and reap jobs of the other agent."""
    agent = world.agents[agent_index]
    for job in _owned_jobs(world, agent.name) - {slot.job for slot in agent.slots}:
        world = reap_or_release(world, job, decisions)
    leases = {
        (job, row.epoch, row.lease): row
        for job, row in enumerate(world.rows)
        if row and row.status is JobStatus.PROCESSING and row.owner != agent.name
    }
    known = {state: -ticks * TICK_S for state, ticks in agent.observed}
    earlier: Any = LeaseObservation(read_at=-agent.since_read * TICK_S, unchanged_since=known)
    observation = decisions.observe(earlier, leases, 0.0, lease_s=LEASE_TICKS * TICK_S)
    unchanged_s = {state: -since for state, since in observation.unchanged_since.items()}
    observed: Any = tuple((state, round(seconds / TICK_S)) for state, seconds in sorted(unchanged_s.items()))
    world = with_agent(world, agent_index, since_read=0, observed=observed)
    for (job, _epoch, lease), row in leases.items():
        verdict = decisions.decide_reaping(
            unchanged_s[job, _epoch, lease],
            lease_s=LEASE_TICKS * TICK_S,
            is_expired=lease == 0,
            is_owner_fencing=_is_owner_fencing(world, row),
            is_past_deadline=_is_past_deadline(world, job),
        )
        if verdict is ReapDecision.REAP:
            world = reap_or_release(world, job, decisions)
    return world


def _is_owner_fencing(world: World, row: Row) -> bool:
    return any(agent.is_fencing_in_database for agent in world.agents if row.owner and row.owner[0] == agent.name)


def _is_past_deadline(world: World, job: int) -> bool:
    """Return whether the job's deadline and the kill time have passed, so that its run has ended."""
    is_running = any(slot.job == job and slot.step == RUNNING for agent in world.agents for slot in agent.slots)
    return world.core[job].error == JOB_TIMEOUT and not is_running
