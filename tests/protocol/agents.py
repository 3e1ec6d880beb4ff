"""All events of the model. Here are polls, claims, failures and restarts; other modules have the other kinds."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import fulcrum, passing_time, reporter, worker
from protocol.database import claim, reopen, take
from protocol.decisions import Decisions
from protocol.worker import RUNNING, Transition
from protocol.world import JOB_TIMEOUT, LEASE_TICKS, CoreJob, Row, Slot, World, put, with_agent, with_row

from executor.model import SETTLED_REPORT_STATES, JobStatus


def transitions(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Yield every event that may happen next. Events that restore agents come first, and the passing of time last."""
    yield from _recover(world, decisions)
    for number, agent in enumerate(world.agents):
        if not passing_time.is_renewing(agent):
            for slot in agent.slots:
                yield from worker.ends_by_guard(world, number, slot, decisions)
        if agent.is_suspended:
            yield from _suspended(world, number, decisions)
        elif agent.is_alive:
            yield from reporter.transitions(world, number, decisions)
            for slot in agent.slots:
                yield from worker.transitions(world, number, slot, decisions)
            yield from _claim(world, number, decisions)
            yield from _poll(world, number)
    yield from _receive_late_requests(world)
    if world.faults_left:
        yield from _fail(world)
    yield from passing_time.pass_time(world, decisions)


def _suspended(world: World, number: int, decisions: Decisions) -> Iterator[Transition]:
    """Yield what may happen to the runs of a suspended agent. The runs are other processes, which continue."""
    for slot in world.agents[number].slots:
        if slot.step == RUNNING:
            yield from worker.transitions(world, number, slot, decisions)


def _claim(world: World, number: int, decisions: Decisions) -> Iterator[Transition]:
    """Claim a job in the database, unless another job of the service is processing.

    An agent that has not renewed its leases for so long that its runs would end at once claims nothing. In the code, it
    would only requeue the job, with a backoff.
    """
    agent = world.agents[number]
    is_idle = not agent.is_connected or worker.is_limit_over(agent, agent.since_renewal, decisions)
    if is_idle or any(row and row.status is JobStatus.PROCESSING for row in world.rows):
        return
    for job, row in enumerate(world.rows):
        if row is None or row.status is not JobStatus.PENDING:
            continue
        claimed = claim(row, agent.name)
        slot = Slot(job=job, epoch=claimed.epoch, attempt=claimed.attempt, was_sent=row.is_claim_sent)
        slot = worker.begin(slot, decisions, is_claimed=row.is_claimed)
        after = with_agent(with_row(world, job, claimed), number, slots=tuple(sorted((*agent.slots, slot))))
        yield Transition(f"Agent {agent.name} claims job {job + 1} in the database", after)


def _poll(world: World, number: int) -> Iterator[Transition]:
    """Read the list of pending jobs, or of this agent's processing jobs, and store what is new."""
    agent = world.agents[number]
    if agent.late_page is not None and agent.is_connected:
        jobs, are_claimed_by_agent = agent.late_page
        yield Transition(
            f"Agent {agent.name} receives the late list of jobs",
            with_agent(_store_page(world, jobs, are_claimed_by_agent=are_claimed_by_agent), number, late_page=None),
        )
    lists = (("pending", fulcrum.pending_jobs(world), False), ("processing", fulcrum.processing_jobs(world), True))
    for name, jobs, are_claimed_by_agent in lists:
        if not jobs:
            continue
        after = _store_page(world, jobs, are_claimed_by_agent=are_claimed_by_agent)
        if agent.is_connected and after is not world:
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs, and stores what is new", after)
        if world.faults_left and agent.late_page is None:
            late = with_agent(world, number, late_page=(jobs, are_claimed_by_agent))
            yield Transition(f"Agent {agent.name} reads the list of {name} jobs; the answer is late", late, True)


def _store_page(world: World, jobs: tuple[int, ...], *, are_claimed_by_agent: bool) -> World:
    for job in jobs:
        row = world.rows[job]
        if row is None:
            world = with_row(world, job, Row(is_claim_sent=are_claimed_by_agent, is_claimed=are_claimed_by_agent))
        elif row.report in SETTLED_REPORT_STATES:
            world = with_row(world, job, reopen(row, are_claimed_by_agent=are_claimed_by_agent))
    return world


def _receive_late_requests(world: World) -> Iterator[Transition]:
    for late in world.late_requests:
        request, job, error = late
        after, answer = fulcrum.apply(world, request, job, error)
        after = after._replace(late_requests=tuple(other for other in world.late_requests if other != late))
        yield Transition(f"The late request `{request}` of job {job + 1} arrives; {fulcrum.ANSWERS[answer]}", after)


def _recover(world: World, decisions: Decisions) -> Iterator[Transition]:
    """Restart a killed agent, resume a suspended one, and restore a lost connection to the database."""
    for number, agent in enumerate(world.agents):
        if not agent.is_alive and agent.is_connected:
            yield Transition(f"Agent {agent.name} is started again", _restart(world, number, decisions))
        if agent.is_suspended:
            yield Transition(f"Agent {agent.name} is resumed", with_agent(world, number, is_suspended=False))
        if not agent.is_connected:
            after = with_agent(world, number, is_connected=True)
            yield Transition(f"Agent {agent.name} reaches the database again", after)


def _restart(world: World, number: int, decisions: Decisions) -> World:
    """Start the next process of the agent. It takes the jobs of the former process at once."""
    agent = world.agents[number]
    for job, row in enumerate(world.rows):
        if row and row.status is JobStatus.PROCESSING and decisions.is_of_former_process(row.owner, agent.name):
            world = take(world, job, decisions)
    return with_agent(world, number, is_alive=True, since_renewal=0, has_others=True, is_row_fencing=True)


def _fail(world: World) -> Iterator[Transition]:
    """Kill or suspend an agent, cut its connection to the database, or let FulcrumCore end a job."""
    for number, agent in enumerate(world.agents):
        if agent.is_alive:
            yield from _kill(world, number)
        if agent.is_connected:
            cut = with_agent(world, number, is_connected=False)
            yield Transition(f"Agent {agent.name} no longer reaches the database", cut, True)
        if agent.is_alive and not agent.is_suspended:
            yield Transition(f"Agent {agent.name} is suspended", with_agent(world, number, is_suspended=True), True)
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
    killed = with_agent(killed, number, is_suspended=False, has_others=True, since_read=LEASE_TICKS, observed=())
    story = f"Agent {agent.name} is killed"
    yield Transition(story, killed, True)
    if any(slot.step == RUNNING and slot.job == 0 for slot in agent.slots) and not world.vms:
        yield Transition(f"{story} after its run has created the VM", killed._replace(vms=1), True)
