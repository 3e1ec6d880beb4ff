"""Reaps a job of another agent of a shared database if the job's lease has not been renewed for a full lease time.

In this module, an agent is one agent process. A lease is the time-limited ownership of a job. To reap a job is to take
it from its owner. The owner may still run the job's playbook, for example while it cannot reach the database. So an
agent reaps a job only when no run of the owner can be in progress. This is certain in three cases:

1. The owner is an agent that fences itself: if it cannot renew its leases, it ends its own runs before the leases
   expire.
2. The job's deadline passed at least KILL_TIME_S (below) ago: every run times out before the deadline, and the
   processes of the run end within KILL_TIME_S.
3. No run is stored: the owner stores each run before the run starts, and can store none after the job was reaped.

The reaper does not compare the clocks of two machines. It measures with the monotonic clock of its machine for how long
a lease has not changed. After a time in which the reaper could not read the database, it starts this measurement again,
because the owner may have been unable to renew the lease in that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import notifications, other_leases, reaping
from executor.database.engine import read_only_session, transaction
from executor.database.other_leases import LeaseOfOtherProcess
from executor.database.times import utc_now
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: The maximum time between two reads of the leases, as a share of the duration of a lease. After a longer time, the
#: measurement of all leases starts again.
MAX_GAP_SHARE_OF_LEASE = 0.5
#: The maximum of SMITH_LEASE_S, and so of another agent's lease. A lease that has not changed for this time has
#: expired, even if its stored end is in the future because the database's clock was set back.
MAX_LEASE_S = 3600.0
#: How long the processes of a run may exist after the run has timed out. A run times out before the job's deadline.
KILL_TIME_S = 15.0

#: Job id, epoch (fencing token) and end of a lease. A claim changes the epoch, and a renewal changes the end. A lease
#: whose end is None counts as expired.
LeaseState = tuple[int, int, datetime | None]


class ReapDecision(StrEnum):
    """Says whether a job of another agent is reaped."""

    KEEP = "keep"  #: not reaped: the lease was renewed, or was not observed long enough
    WAIT_FOR_DEADLINE = "wait for deadline"  #: not reaped before the deadline: the owner's run may continue
    REAP = "reap"


@dataclass(frozen=True, kw_only=True)
class LeaseObservation:
    """Says when the current state of each lease was first read. All times are of the reaper's monotonic clock."""

    read_at: float = float("-inf")  #: when the leases were last read
    unchanged_since: Mapping[LeaseState, float] = field(default_factory=dict)  #: when each lease state was first read


def lease_state(lease: LeaseOfOtherProcess) -> LeaseState:
    """Return the state of a lease. A renewal of the lease, or a claim of the job, changes the state."""
    return lease.job_id, lease.epoch, lease.lease_until


def observe_leases(
    earlier_observation: LeaseObservation, states: Iterable[LeaseState], now: float, *, lease_s: float
) -> LeaseObservation:
    """Return the observation after the leases were read again at `now`. Pure function.

    If the last read was more than half a lease ago, the measurement of all leases starts again at `now`.
    """
    has_gap = now - earlier_observation.read_at > lease_s * MAX_GAP_SHARE_OF_LEASE
    unchanged_since = {} if has_gap else earlier_observation.unchanged_since
    return LeaseObservation(read_at=now, unchanged_since={state: unchanged_since.get(state, now) for state in states})


def decide_reaping(  # noqa: PLR0913 (each parameter is one fact about the lease)
    unchanged_s: float,
    *,
    lease_s: float,
    is_expired: bool,
    is_owner_fencing: bool,
    is_past_deadline: bool,
    has_stored_run: bool = True,
) -> ReapDecision:
    """Decide whether a job is reaped. The job's lease has not changed for `unchanged_s`. Pure function.

    A job is kept until its lease has expired and has not changed for `lease_s`, the length of this agent's leases.
    `is_past_deadline` is True when KILL_TIME_S has passed since the job's deadline. `has_stored_run` is False when the
    owner has stored no run since it claimed the job, for example because it waits until clones of other jobs end.
    """
    if unchanged_s < lease_s or not (is_expired or unchanged_s >= MAX_LEASE_S):
        return ReapDecision.KEEP
    return (
        ReapDecision.REAP
        if is_owner_fencing or is_past_deadline or not has_stored_run
        else ReapDecision.WAIT_FOR_DEADLINE
    )


@dataclass(kw_only=True)
class Reaper:
    """Observes the leases of the other agents, and reaps their jobs."""

    engine: Engine
    state: AgentState
    boot_id: str  #: the random id of this agent process (not of the machine); its own leases are not observed
    lease_s: float  #: length of a lease
    #: Returns how far FulcrumCore's clock is ahead of this machine's clock. Deadlines are times of FulcrumCore's clock.
    get_fulcrum_clock_offset_s: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    _observation: LeaseObservation = field(default_factory=LeaseObservation)
    #: The leases for which a log line says that the job is reaped only after its deadline.
    _leases_waiting_for_deadline: set[LeaseState] = field(default_factory=set)

    def reap(self) -> None:
        """Read the leases of the other agents once, and reap the jobs whose owners have certainly ended their runs."""
        with read_only_session(self.engine) as session:
            leases = other_leases.leases_of_other_processes(session, self.boot_id)
        # The clock is read after the leases: a measurement must not start before the lease was read.
        now = self.clock()
        self._observation = observe_leases(self._observation, map(lease_state, leases), now, lease_s=self.lease_s)
        decisions = [(lease, self._decide_reaping(lease, now)) for lease in leases]
        self._log_leases_waiting_for_deadline(
            [lease for lease, decision in decisions if decision is ReapDecision.WAIT_FOR_DEADLINE]
        )
        leases_to_reap = [lease for lease, decision in decisions if decision is ReapDecision.REAP]
        if not leases_to_reap:
            return
        with transaction(self.engine) as session:
            reaped_jobs = reaping.reap(session, leases_to_reap)  # without jobs whose lease has changed since the read
            notifications.notify_agent_processes_of_jobs(session)
        for job_row_id, new_status in reaped_jobs:
            log.warning("job_reaped", job_row_id=job_row_id, status=new_status)
            self.state.dispatch_requested.set()  # wakes the dispatcher, which may claim the job
            # Wakes the reporter, which reports the job if it has failed because it was reaped too often.
            self.state.report_requested.set()

    def _decide_reaping(self, lease: LeaseOfOtherProcess, now: float) -> ReapDecision:
        now_at_fulcrum = utc_now().timestamp() + self.get_fulcrum_clock_offset_s()
        return decide_reaping(
            now - self._observation.unchanged_since[lease_state(lease)],
            lease_s=self.lease_s,
            is_expired=lease.is_expired,
            is_owner_fencing=lease.is_owner_fencing,
            has_stored_run=lease.has_stored_run,
            is_past_deadline=now_at_fulcrum >= lease.deadline_at.timestamp() + KILL_TIME_S,
        )

    def _log_leases_waiting_for_deadline(self, leases: list[LeaseOfOtherProcess]) -> None:
        """Log once for each of these leases that its job is reaped only after the job's deadline."""
        for lease in leases:
            if lease_state(lease) not in self._leases_waiting_for_deadline:
                log.warning(
                    "reaping_waits_for_deadline",
                    job_row_id=lease.job_id,
                    owner=lease.owner,
                    deadline=lease.deadline_at.isoformat(),
                )
        self._leases_waiting_for_deadline = {lease_state(lease) for lease in leases}
