"""Ends the runs of an agent that cannot renew its leases, before another agent may reap the jobs of these runs.

In this module, an agent is one agent process. An agent that cannot reach PostgreSQL cannot renew its leases. After a
lease has expired, another agent may reap the job (take it from this agent) and run its playbook. So this agent's run
must have ended before the lease expires. With SMITH_FENCE=auto, the runs continue if no other agent uses the database.

A suspended or blocked agent cannot end its runs. So the agent also writes a deadline, the time at which its runs must
end, into a file (`shared/run_until.py`). Two other processes read this file. The guard, a process that watches a run,
ends the run at the deadline. The playbook process of the run sends no change to Proxmox after the deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from executor.agent.dispatcher import Dispatcher
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.log import get_logger
from executor.shared.run_until import NO_LIMIT, boottime_s

log = get_logger(__name__)

#: The time from the last renewal until the agent ends its runs, as a share of a lease. The rest of the lease is needed
#: to end the processes of the runs.
FENCE_SHARE_OF_LEASE = 2 / 3
#: The time from the last renewal to the deadline, as a share of a lease. It is larger than FENCE_SHARE_OF_LEASE, so
#: that an agent that can end its runs ends them before the deadline.
DEADLINE_SHARE_OF_LEASE = 3 / 4
#: Maximum duration of a renewal of the leases, as a share of a lease. This limit applies only if another agent uses the
#: database now, but none did at the previous renewal. With SMITH_FENCE=auto, the runs then have no deadline, and the
#: renewal sets one, measured from its start. After a longer renewal, the runs would have too little time until the
#: deadline.
MAX_RENEWAL_SHARE_OF_LEASE = 1 / 3
#: Interval at which the fence checks whether the agent must end its runs.
CHECK_INTERVAL_S = 0.5


def is_fencing(fence_mode: str, *, has_other_agents: bool) -> bool:
    """Return whether an agent ends its runs when its leases may soon expire. Pure function."""
    return fence_mode == "always" or (fence_mode == "auto" and has_other_agents)


def must_end_runs(fence_mode: str, since_renewal_s: float, *, lease_s: float, has_other_agents: bool) -> bool:
    """Return whether an agent must end its runs now, because its leases may soon expire. Pure function."""
    is_overdue = since_renewal_s >= lease_s * FENCE_SHARE_OF_LEASE
    return is_overdue and is_fencing(fence_mode, has_other_agents=has_other_agents)


def runs_deadline_s(fence_mode: str, renewed_at: float, *, lease_s: float, has_other_agents: bool) -> float:
    """Return the deadline of the runs, by the same clock as `renewed_at`, or NO_LIMIT. Pure function."""
    if not is_fencing(fence_mode, has_other_agents=has_other_agents):
        return NO_LIMIT
    return renewed_at + lease_s * DEADLINE_SHARE_OF_LEASE


@dataclass(kw_only=True)
class Fence:
    """Ends the runs when the last renewal of the leases was too long ago, and sets the deadline of the runs.

    A separate thread calls `end_overdue_runs`, because the thread that renews the leases may wait for the database.
    """

    dispatcher: Dispatcher
    state: AgentState
    lease_s: float
    fence_mode: str  #: SMITH_FENCE: always, never, or auto (only while another agent uses the database)
    set_runs_deadline: Callable[[float], None]  #: stores the deadline of the runs, in seconds of CLOCK_BOOTTIME
    clock: Callable[[], float] = boottime_s  #: CLOCK_BOOTTIME, which continues while the machine is suspended
    _renewed_at: float = field(init=False)  #: time of the last renewal, by `clock`
    #: At the last renewal, another agent used the database. Before the first renewal, this is assumed.
    _has_other_agents: bool = True
    #: The row ids of the jobs whose runs the fence has ended.
    _fenced_job_ids: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._renewed_at = self.clock()

    def set_deadline_before_first_run(self) -> None:
        """Set the deadline of the runs as if the leases were renewed now. Call this before the first run."""
        self.record_renewal(self.clock(), has_other_agents=True)

    def try_set_runs_deadline(self, started_at: float) -> bool:
        """Set the deadline of the runs, unless they have one. Return False if the current renewal takes too long.

        Call this before the commit of a renewal if another agent uses the database. Unless `fence_mode` is "never", the
        commit stores that this agent ends its runs before its leases expire. After the commit, another agent may reap a
        job of this agent once the job's lease has expired. If `fence_mode` is "never", the runs get no deadline.

        `started_at` is the time at which the renewal began. If the renewal takes longer than
        MAX_RENEWAL_SHARE_OF_LEASE, the caller rolls it back, and starts a new renewal.
        """
        if not self._has_other_agents:  # otherwise, the previous renewal has set the deadline (or NO_LIMIT)
            if self.clock() - started_at > self.lease_s * MAX_RENEWAL_SHARE_OF_LEASE:
                return False
            self.record_renewal(started_at, has_other_agents=True)
        return True

    def record_renewal(self, started_at: float, *, has_other_agents: bool) -> None:
        """Record a renewal of the leases, and set the deadline of the runs.

        `started_at` is the time at which the renewal began, by `clock`.
        """
        with self._lock:
            self._renewed_at, self._has_other_agents = started_at, has_other_agents
        self.set_runs_deadline(
            runs_deadline_s(self.fence_mode, started_at, lease_s=self.lease_s, has_other_agents=has_other_agents)
        )

    def end_overdue_runs(self) -> None:
        """End all runs if the last renewal of the leases was too long ago, then wait for CHECK_INTERVAL_S."""
        if self._are_runs_overdue():
            # Maps the id of each running job to its StopSignal. A sent StopSignal asks the job to end its run, and
            # contains a reason, such as LEASE_LOST.
            stop_signals = self.dispatcher.stop_signals()
            newly_fenced_job_ids = {job_id for job_id, stop_signal in stop_signals.items() if not stop_signal.is_sent()}
            if newly_fenced_job_ids:
                log.error(
                    "runs_fenced",
                    since_renewal_s=round(self.clock() - self._renewed_at, 1),
                    jobs=len(newly_fenced_job_ids),
                )
                with self._lock:
                    self._fenced_job_ids |= newly_fenced_job_ids
                self.dispatcher.stop_all_jobs(StopSignal.LEASE_LOST)
        self.state.stopping.wait(CHECK_INTERVAL_S)

    def take_fenced_job_ids(self, job_ids: set[int]) -> set[int]:
        """Return the ids in `job_ids` of the jobs whose runs the fence has ended. Forget the returned ids.

        The caller releases the jobs in `job_ids`, which have a lease but are not running. A release usually counts as a
        crash: after too many crashes, the job fails. A release does not count if the fence has ended the job's run.
        """
        with self._lock:
            fenced_job_ids = job_ids & self._fenced_job_ids
            self._fenced_job_ids -= fenced_job_ids
            return fenced_job_ids

    def _are_runs_overdue(self) -> bool:
        with self._lock:
            since_renewal_s = self.clock() - self._renewed_at
            return must_end_runs(
                self.fence_mode, since_renewal_s, lease_s=self.lease_s, has_other_agents=self._has_other_agents
            )
