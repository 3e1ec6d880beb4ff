"""The state of the model: FulcrumCore, the agents' shared database, two agents, and the service's VM.

All values are immutable and hashable. Time is counted in ticks of 10 s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from executor.agent.reaper import MAX_GAP_SHARE_OF_LEASE
from executor.agent.refusals import Refusals
from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState

TICK_S = 10.0
#: The length of a lease, SMITH_LEASE_S, in ticks.
LEASE_TICKS = 3
#: After this many ticks without a renewal, an agent counts as ended for the others. In the code it is twice as long.
UNSEEN_TICKS = LEASE_TICKS
#: The actions of the two jobs, which belong to one service.
ACTIONS = ("create", "start")
AGENTS = ("A", "B")
#: The error of a job that FulcrumCore has failed after the job timeout.
JOB_TIMEOUT = "job timeout"


class FulcrumJob(NamedTuple):
    """A job at FulcrumCore."""

    status: str = "Pending"  #: Pending, Processing, Completed, Failed, or Deleted
    error: str | None = None  #: the code of the error message, if the job has failed


class Row(NamedTuple):
    """A job's row in the database. The names without a comment are those of the columns."""

    status: JobStatus = JobStatus.PENDING
    owner: str | None = None  #: an agent's name; with an apostrophe, its process was killed
    epoch: int = 0
    attempt: int = 0
    lease: int = 0  #: ticks until the lease expires
    crashes: int = 0
    is_claim_sent: bool = False
    is_claimed: bool = False
    is_started: bool = False
    report: ReportState = ReportState.NONE
    error: str | None = None  #: error_code
    #: The job was given up as claimed elsewhere, although an earlier attempt had sent a claim. No column has this name.
    is_own_claim_given_up: bool = False


class Slot(NamedTuple):
    """A job that an agent processes. The fields are what the worker's thread knows."""

    job: int
    epoch: int
    attempt: int
    was_sent: bool  #: an earlier attempt has sent a claim
    step: str = ""
    end: str = ""  #: what the attempt led to: a key of `decisions.ENDS`
    is_stopped: bool = False  #: the lease was lost, so the job was asked to stop
    is_mapping_reserved: bool = False
    is_new_reservation: bool = False


class Report(NamedTuple):
    """A report that an agent sends. `is_completion` and `error` are what the reporter has read from the row."""

    job: int
    is_completion: bool
    error: str | None
    step: str = "send"
    state: ReportState = ReportState.NONE  #: the state to be stored


class Agent(NamedTuple):
    """One agent process and its threads."""

    name: str
    is_alive: bool = True
    is_connected: bool = True  #: whether it reaches the database
    is_suspended: bool = False  #: its process is stopped; the processes of its runs are not
    since_renewal: int = 0  #: ticks, at most UNSEEN_TICKS
    has_other_agents: bool = True  #: at its last renewal, another agent used the database; so it fences
    is_fencing_in_database: bool = True  #: the column `nodes.fences`
    since_read: int = LEASE_TICKS  #: ticks since it has read the leases of the other, at most LEASE_TICKS
    #: The leases that it has read, as (job, epoch, lease), and for how many ticks it has known each one.
    observed: tuple[tuple[tuple[int, int, int], int], ...] = ()
    slots: tuple[Slot, ...] = ()
    report: Report | None = None
    late_page: tuple[tuple[int, ...], bool] | None = None  #: a list of jobs that FulcrumCore has sent, but that is late
    refusals: tuple[tuple[str, Refusals], ...] = ()  #: `first_at` and `last_at` are negative: seconds before now


class World(NamedTuple):
    """The whole state."""

    core: tuple[FulcrumJob, ...] = (FulcrumJob(), FulcrumJob())
    rows: tuple[Row | None, ...] = (None, None)
    mapping: str = ""  #: the state of the service's mapping, "" without one
    vms: int = 0  #: how many VMs the service has
    agents: tuple[Agent, ...] = tuple(Agent(name) for name in AGENTS)
    late_requests: tuple[tuple[str, int, str | None], ...] = ()  #: requests that FulcrumCore has yet to receive
    faults_left: int = 0


def replace_at(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """Return the tuple with another value at the index."""
    return (*values[:index], value, *values[index + 1 :])


def with_agent(world: World, agent_index: int, **changes: Any) -> World:
    return world._replace(agents=replace_at(world.agents, agent_index, world.agents[agent_index]._replace(**changes)))


def with_slot(world: World, agent_index: int, old: Slot, new: Slot | None) -> World:
    """Replace a slot of an agent; without `new`, remove it."""
    slots = [slot for slot in world.agents[agent_index].slots if slot is not old]
    if new is not None:
        slots.append(new)
    return with_agent(world, agent_index, slots=tuple(sorted(slots)))


def with_row(world: World, job: int, row: Row) -> World:
    return world._replace(rows=replace_at(world.rows, job, row))


def orm_job(job: int, attempt: int, deadline: Any) -> Job:
    """Return a job as the functions of the code expect it, with what their decisions depend on."""
    return Job(id=job, action=ACTIONS[job], attempt=attempt, deadline_at=deadline)


def canonical(world: World) -> tuple[object, ...]:
    """Return what distinguishes the state from others. From two states with the same value, the same events may follow.

    The numbers of epochs and the agents' names do not matter. Without further faults, neither do attempts, nor refusals
    of jobs that exist.
    """
    has_faults = world.faults_left > 0
    rows = tuple(row and (row.status, *row[3 if has_faults else 4 :]) for row in world.rows)
    first, second = (_view(world, agent, has_faults=has_faults) for agent in world.agents)
    if hash(first) > hash(second):
        first, second = second, first
    return (world.core, rows, world.mapping, world.vms, first, second, world.late_requests, world.faults_left)


def _view(world: World, agent: Agent, *, has_faults: bool) -> tuple[object, ...]:
    """Return an agent without its name, with what distinguishes its slots and its rows from those of other agents."""
    slots, refusals, rows = agent.slots, agent.refusals, world.rows
    slot_views: tuple[object, ...] = ()
    if slots:  # an epoch that is older than that of the row never becomes valid again
        slot_views = tuple(
            (slot.job, (row := rows[slot.job]) and row.epoch == slot.epoch, *slot[2 if has_faults else 3 :])
            for slot in slots
        )
    if refusals and not has_faults:
        refusals = tuple(item for item in refusals if world.core[int(item[0])].status == "Deleted")
    owners = tuple(row and row.owner and _relation_of_owner(row.owner, agent.name) for row in rows)
    is_working = agent.is_alive, agent.is_connected, agent.is_suspended
    facts = (*is_working, agent.since_renewal, agent.has_other_agents, agent.is_fencing_in_database)
    has_gap = agent.since_read * TICK_S > LEASE_TICKS * TICK_S * MAX_GAP_SHARE_OF_LEASE
    observed = () if has_gap else _observed_leases(world, agent)
    return (*facts, has_gap or agent.since_read, observed, slot_views, agent.report, agent.late_page, refusals, owners)


def _observed_leases(world: World, agent: Agent) -> tuple[tuple[int, int], ...]:
    """Return the jobs whose leases have not changed since the agent has read them, and how long ago that was."""
    return tuple(
        (job, ticks)
        for (job, epoch, lease), ticks in agent.observed
        if (row := world.rows[job]) and row.status is JobStatus.PROCESSING and (row.epoch, row.lease) == (epoch, lease)
    )


def _relation_of_owner(owner: str, name: str) -> str:
    """Return the owner of a row as "own", "former" or "other"."""
    if owner[0] != name:
        return "other"
    return "own" if owner == name else "former"
