"""All events of the model. Polls, claims, faults and restarts are defined here, the others in other modules."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import fulcrum, passing_time, reporter, worker
from protocol.database import claim, reap_or_release, reopen
from protocol.decisions import Decisions
from protocol.worker import RUNNING, Transition
from protocol.world import JOB_TIMEOUT, LEASE_TICKS, FulcrumJob, Row, Slot, World, replace_at, with_agent, with_row

from executor.model import SETTLED_REPORT_STATES, JobStatus


def transitions(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Yield every event that may happen next. Events that restore agents come first, and the passing of time last."""
    yield from _recover(world, decisions)
    for agent_index, agent in enumerate(world.agents):
        if not passing_time.is_renewing(agent):
            for slot in agent.slots:
                yield from worker.end_by_guard(world, agent_index, slot, decisions)
        if agent.is_suspended:
            yield from _events_of_suspended_agent(world, agent_index, decisions)
        elif agent.is_alive:
            yield from reporter.transitions(world, agent_index, decisions)
            for slot in agent.slots:
                yield from worker.transitions(world, agent_index, slot, decisions)
            yield from _claim(world, agent_index, decisions)
            yield from _poll(world, agent_index)
    yield from _receive_late_requests(world)
    if world.faults_left:
        yield from _faults(world)
    yield from passing_time.pass_time(world, decisions)


def _events_of_suspended_agent(world: World, agent_index: int, decisions: Decisions) -> Iterator[Transition]:
    """Yield what may happen to the runs of a suspended agent. The runs are other processes, which continue."""
    for slot in world.agents[agent_index].slots:
        if slot.step == RUNNING:
            yield from worker.transitions(world, agent_index, slot, decisions)


def _claim(world: World, agent_index: int, decisions: Decisions) -> Iterator[Transition]:
    """Claim a job in the database, unless another job of the service is processing.

    An agent that has not renewed its leases for so long that its runs would end at once claims nothing. In the code, it
    would only requeue the job, with a backoff.
    """
    agent = world.agents[agent_index]
    is_idle = not agent.is_connected or worker.is_guard_limit_over(agent, agent.since_renewal, decisions)
    if is_idle or any(row and row.status is JobStatus.PROCESSING for row in world.rows):
        return
    for job, row in enumerate(world.rows):
        if row is None or row.status is not JobStatus.PENDING:
            continue
        claimed = claim(row, agent.name)
        slot = Slot(job=job, epoch=claimed.epoch, attempt=claimed.attempt, was_sent=row.is_claim_sent)
        slot = worker.with_first_step(slot, decisions, is_claimed=row.is_claimed)
        after = with_agent(with_row(world, job, claimed), agent_index, slots=tuple(sorted((*agent.slots, slot))))
        yield Transition(f"Agent {agent.name} claims job {job + 1} in the database", after)


def _poll(world: World, agent_index: int) -> Iterator[Transition]:
    """Read the list of pending jobs, or of this agent's processing jobs, and store what is new."""
    agent = world.agents[agent_index]
    if agent.late_page is not None and agent.is_connected:
        jobs, are_claimed_at_fulcrum = agent.late_page
        yield Transition(
            f"Agent {agent.name} receives the late list of jobs",
            with_agent(
                _store_page(world, jobs, are_claimed_at_fulcrum=are_claimed_at_fulcrum), agent_index, late_page=None
            ),
        )
    lists = (("pending", fulcrum.pending_jobs(world), False), ("processing", fulcrum.processing_jobs(world), True))
    for name, jobs, are_claimed_at_fulcrum in lists:
        if not jobs:
            continue
        after = _store_page(world, jobs, are_claimed_at_fulcrum=are_claimed_at_fulcrum)
        if agent.is_connected and after is not world:
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs, and stores what is new", after)
        if world.faults_left and agent.late_page is None:
            late = with_agent(world, agent_index, late_page=(jobs, are_claimed_at_fulcrum))
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs; the answer is late", late, True)


def _store_page(world: World, jobs: tuple[int, ...], *, are_claimed_at_fulcrum: bool) -> World:
    for job in jobs:
        row = world.rows[job]
        if row is None:
            world = with_row(world, job, Row(is_claim_sent=are_claimed_at_fulcrum, is_claimed=are_claimed_at_fulcrum))
        elif row.report in SETTLED_REPORT_STATES:
            world = with_row(world, job, reopen(row, are_claimed_at_fulcrum=are_claimed_at_fulcrum))
    return world


def _receive_late_requests(world: World) -> Iterator[Transition]:
    for late in world.late_requests:
        request, job, error = late
        after, answer = fulcrum.apply(world, request, job, error)
        after = after._replace(late_requests=tuple(other for other in world.late_requests if other != late))
        yield Transition(f"The late request `{request}` of job {job + 1} arrives; {fulcrum.ANSWERS[answer]}", after)


def _recover(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Restart a killed agent, resume a suspended one, and restore a lost connection to the database."""
    for agent_index, agent in enumerate(world.agents):
        if not agent.is_alive and agent.is_connected:
            yield Transition(f"Agent {agent.name} is started again", _restart(world, agent_index, decisions))
        if agent.is_suspended:
            yield Transition(f"Agent {agent.name} is resumed", with_agent(world, agent_index, is_suspended=False))
        if not agent.is_connected:
            after = with_agent(world, agent_index, is_connected=True)
            yield Transition(f"Agent {agent.name} reaches the database again", after)


def _restart(world: World, agent_index: int, decisions: Decisions) -> World:
    """Start the next process of the agent. It releases the jobs of its earlier process at once."""
    agent = world.agents[agent_index]
    for job, row in enumerate(world.rows):
        if row and row.status is JobStatus.PROCESSING and decisions.is_of_earlier_process(row.owner, agent.name):
            world = reap_or_release(world, job, decisions)
    return with_agent(
        world, agent_index, is_alive=True, since_renewal=0, has_other_agents=True, is_fencing_in_database=True
    )


def _faults(world: World) -> Iterator[Transition]:
    """Kill or suspend an agent, cut its connection to the database, or let FulcrumCore end a job."""
    for agent_index, agent in enumerate(world.agents):
        if agent.is_alive:
            yield from _kill(world, agent_index)
        if agent.is_connected:
            cut = with_agent(world, agent_index, is_connected=False)
            yield Transition(f"Agent {agent.name} no longer reaches the database", cut, True)
        if agent.is_alive and not agent.is_suspended:
            yield Transition(
                f"Agent {agent.name} is suspended", with_agent(world, agent_index, is_suspended=True), True
            )
    for job, core_job in enumerate(world.core):
        if core_job.status in ("Pending", "Processing"):
            failed = replace_at(world.core, job, FulcrumJob("Failed", JOB_TIMEOUT))
            yield Transition(
                f"FulcrumCore fails job {job + 1} after the job timeout", world._replace(core=failed), True
            )


def _kill(world: World, agent_index: int) -> Iterator[Transition]:
    agent = world.agents[agent_index]
    rows = tuple(row._replace(owner=f"{agent.name}'") if row and row.owner == agent.name else row for row in world.rows)
    killed = with_agent(
        world._replace(rows=rows), agent_index, is_alive=False, slots=(), report=None, late_page=None, refusals=()
    )
    killed = with_agent(
        killed, agent_index, is_suspended=False, has_other_agents=True, since_read=LEASE_TICKS, observed=()
    )
    description = f"Agent {agent.name} is killed"
    yield Transition(description, killed, True)
    if any(slot.step == RUNNING and slot.job == 0 for slot in agent.slots) and not world.vms:
        yield Transition(f"{description} after its run has created the VM", killed._replace(vms=1), True)
