"""Reaps the jobs of other agents on a shared database, if their leases were not renewed for the length of a lease.

A lease is the time-limited ownership of a job. To reap a job is to take it from its owner. The owner may still run the
job's playbook, for example while it cannot reach the database. So an agent reaps a job only when no run of the owner
can be in progress. This is certain in three cases:

1. The owner fences: it ends its runs before its leases expire.
2. The job's deadline has passed: every run ends before the deadline.
3. No run is stored: the owner stores each run before the run starts, and can store none after the job was reaped.

The reaper does not compare the clocks of two machines. It measures with its own monotonic clock for how long a lease
has not changed. When the reaper itself could not read the database for a while, it starts this measurement again,
because in such an outage the owner could not renew the lease either.
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
from executor.database.engine import reading, transaction
from executor.database.other_leases import OtherLease
from executor.database.tables.base import utc_now
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: The maximum time between two reads of the leases, as a share of a lease. After a longer time, the measurement of all
#: leases starts again.
MAX_GAP_SHARE_OF_LEASE = 0.5
#: The maximum of SMITH_LEASE_S, and so of another agent's lease. A lease that has not changed for this time has
#: expired, even if its stored end is in the future because the database's clock was set back.
MAX_LEASE_S = 3600.0
#: How long the processes of a run may exist after the run's timeout. The timeout is before the job's deadline.
KILL_TIME_S = 15.0

#: Job id, epoch (fencing token) and end of a lease. A claim changes the epoch, and a renewal changes the end.
LeaseState = tuple[int, int, datetime | None]


class ReapDecision(StrEnum):
    """Says whether a job of another agent is reaped."""

    KEEP = "keep"  #: the lease was renewed, or was not observed long enough
    WAIT_FOR_DEADLINE = "wait for deadline"  #: the lease is not renewed, but the owner's run may continue
    REAP = "reap"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Stores since when each lease has not changed. All times are times of the reaper's monotonic clock."""

    read_at: float = float("-inf")  #: when the leases were last read
    unchanged_since: Mapping[LeaseState, float] = field(default_factory=dict)  #: when each state was first read


def state_of(lease: OtherLease) -> LeaseState:
    """Return the state of a lease, which a renewal or a claim of the job changes."""
    return lease.job_id, lease.epoch, lease.lease_until


def observe(earlier: Observation, states: Iterable[LeaseState], now: float, *, lease_s: float) -> Observation:
    """Return the observation after the leases were read again at `now`. Pure function.

    If the last read was more than half a lease ago, the measurement of all leases starts again at `now`.
    """
    has_gap = now - earlier.read_at > lease_s * MAX_GAP_SHARE_OF_LEASE
    unchanged_since = {} if has_gap else earlier.unchanged_since
    return Observation(read_at=now, unchanged_since={state: unchanged_since.get(state, now) for state in states})


def decide(  # noqa: PLR0913 (each parameter is one fact about the lease)
    unchanged_s: float,
    *,
    lease_s: float,
    is_expired: bool,
    is_owner_fencing: bool,
    is_past_deadline: bool,
    has_stored_run: bool = True,
) -> ReapDecision:
    """Decide whether a job is reaped. The job's lease has not changed for `unchanged_s`. Pure function.

    `lease_s` is the length of this agent's leases. The owner's leases may be longer, so the job's lease must also have
    expired. `is_past_deadline` is True when KILL_TIME_S has passed since the job's deadline. `has_stored_run` is False
    when the owner's attempt has not started a run, for example because it waited for a clone slot.
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
    boot_id: str  #: id of this agent process, whose own leases are not observed
    lease_s: float  #: length of a lease
    get_clock_offset_s: Callable[[], float]  #: how far FulcrumCore's clock is ahead of this machine's clock
    clock: Callable[[], float] = time.monotonic
    _observation: Observation = field(default_factory=Observation)
    _leases_waiting_for_deadline: set[LeaseState] = field(
        default_factory=set
    )  #: the leases of jobs that wait for their deadlines

    def reap(self) -> None:
        """Read the leases of the other agents once, and reap the jobs whose owners have certainly ended their runs."""
        with reading(self.engine) as session:
            leases = other_leases.leases_of_other_processes(session, self.boot_id)
        # The clock is read after the leases, so that no measurement starts too early. `reaping.reap` checks again that
        # a lease has not changed.
        now = self.clock()
        self._observation = observe(self._observation, map(state_of, leases), now, lease_s=self.lease_s)
        decisions = [(lease, self._decide(lease, now)) for lease in leases]
        self._log_leases_waiting_for_deadline(
            [lease for lease, decision in decisions if decision is ReapDecision.WAIT_FOR_DEADLINE]
        )
        leases_to_reap = [lease for lease, decision in decisions if decision is ReapDecision.REAP]
        if not leases_to_reap:
            return
        with transaction(self.engine) as session:
            reaped_jobs = reaping.reap(session, leases_to_reap)
            notifications.announce_jobs(session)
        for job_row_id, status in reaped_jobs:
            log.warning("job_reaped", job_row_id=job_row_id, status=status)
            self.state.dispatch_requested.set()
            self.state.report_requested.set()

    def _decide(self, lease: OtherLease, now: float) -> ReapDecision:
        now_at_fulcrum = utc_now().timestamp() + self.get_clock_offset_s()
        return decide(
            now - self._observation.unchanged_since[state_of(lease)],
            lease_s=self.lease_s,
            is_expired=lease.is_expired,
            is_owner_fencing=lease.is_owner_fencing,
            has_stored_run=lease.has_stored_run,
            is_past_deadline=now_at_fulcrum >= lease.deadline_at.timestamp() + KILL_TIME_S,
        )

    def _log_leases_waiting_for_deadline(self, leases: list[OtherLease]) -> None:
        """Log for each of these leases, once, that its job is reaped only after the job's deadline."""
        for lease in leases:
            if state_of(lease) not in self._leases_waiting_for_deadline:
                log.warning(
                    "reaping_waits_for_deadline",
                    job_row_id=lease.job_id,
                    owner=lease.owner,
                    deadline=lease.deadline_at.isoformat(),
                )
        self._leases_waiting_for_deadline = {state_of(lease) for lease in leases}
