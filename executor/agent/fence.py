"""Ends this agent's runs when its leases were not renewed for long, before other agents may reap its jobs.

An agent that cannot reach PostgreSQL cannot renew its leases. After a lease has expired, another agent may reap the job
(take it from this agent) and run its playbook. So this agent's run must have ended before the lease expires. If no
other agent uses the database, the runs continue.

A suspended or blocked agent cannot end its runs. So the agent also writes the time at which the runs must end into a
file (`shared/run_until.py`). Two other processes read this file. The guard, which watches a run, ends the run at this
time. The action plugin in the run changes nothing after this time.
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

#: The share of a lease after which the runs are ended. The remaining time is needed to end their processes.
FENCE_SHARE_OF_LEASE = 2 / 3
#: The share of a lease after which the guards end the runs, and the action plugins change nothing more. It is larger
#: than FENCE_SHARE_OF_LEASE, so that an agent that can end its runs ends them first. The agent then also records that
#: the job did not cause this end.
GUARD_SHARE_OF_LEASE = 3 / 4
#: The renewal that finds the first other agent may have taken at most this share of a lease. After a slower
#: renewal, the runs would have to end at once.
MAX_RENEWAL_SHARE_OF_LEASE = 1 / 3
CHECK_INTERVAL_S = 0.5


def is_fencing(fence_mode: str, *, has_other_agents: bool) -> bool:
    """Return whether the runs of an agent end when its leases may soon expire. Pure function."""
    return fence_mode == "always" or (fence_mode == "auto" and has_other_agents)


def must_end_runs(fence_mode: str, since_renewal_s: float, *, lease_s: float, has_other_agents: bool) -> bool:
    """Return whether an agent must end its runs, because its leases may soon expire. Pure function."""
    is_overdue = since_renewal_s >= lease_s * FENCE_SHARE_OF_LEASE
    return is_overdue and is_fencing(fence_mode, has_other_agents=has_other_agents)


def runs_until_s(fence_mode: str, renewed_at: float, *, lease_s: float, has_other_agents: bool) -> float:
    """Return the time at which the guards end the runs, by the same clock as `renewed_at`. Pure function."""
    if not is_fencing(fence_mode, has_other_agents=has_other_agents):
        return NO_LIMIT
    return renewed_at + lease_s * GUARD_SHARE_OF_LEASE


@dataclass(kw_only=True)
class Fence:
    """Compares the time since the last renewal of the leases with the length of a lease.

    A separate thread calls `check`, because the thread that renews the leases may wait for the database. To limit the
    runs means to store the time at which their guards end them.
    """

    dispatcher: Dispatcher
    state: AgentState
    lease_s: float
    mode: str  #: SMITH_FENCE: always, never, or auto (only while another agent uses the database)
    limit_runs: Callable[[float], None]  #: stores when the guards end the runs, a time of the clock `boottime_s`
    clock: Callable[[], float] = boottime_s
    _renewed_at: float = field(init=False)  #: time of the last renewal, by `clock`
    #: At the last renewal, another agent used the database. Before the first renewal, this is assumed.
    _has_other_agents: bool = True
    _fenced_job_ids: set[int] = field(
        default_factory=set
    )  #: the row ids of the jobs whose runs were ended by the fence
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._renewed_at = self.clock()

    def start(self) -> None:
        """Limit the runs as if the leases were renewed now, until the first renewal. Call this before the first run."""
        self.record_renewal(self.clock(), has_other_agents=True)

    def try_limit_runs(self, started_at: float) -> bool:
        """Limit the runs. Called in the transaction in which this agent has found another agent, before the commit.

        `started_at` is when the renewal began. Another agent may rely on the limit as soon as the transaction has
        committed, even if this process is suspended immediately afterwards.

        Return False if the renewal began too long ago. Then the runs have no limit yet: the caller rolls the renewal
        back, and starts a new one.
        """
        if not self._has_other_agents:
            if self.clock() - started_at > self.lease_s * MAX_RENEWAL_SHARE_OF_LEASE:
                return False
            self.record_renewal(started_at, has_other_agents=True)
        return True

    def record_renewal(self, started_at: float, *, has_other_agents: bool) -> None:
        """Record a renewal of the leases. `started_at` is the time at which the renewal began, by `clock`."""
        with self._lock:
            self._renewed_at, self._has_other_agents = started_at, has_other_agents
        self.limit_runs(runs_until_s(self.mode, started_at, lease_s=self.lease_s, has_other_agents=has_other_agents))

    def check(self) -> None:
        """End all runs if the leases were not renewed for too long, then wait for the next check."""
        if self._is_due():
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
                self.dispatcher.stop_all(StopSignal.LEASE_LOST)
        self.state.stopping.wait(CHECK_INTERVAL_S)

    def take_fenced_job_ids(self, job_ids: set[int]) -> set[int]:
        """Return those of `job_ids` whose runs the fence has ended, and remove their records."""
        with self._lock:
            fenced_job_ids = job_ids & self._fenced_job_ids
            self._fenced_job_ids -= fenced_job_ids
            return fenced_job_ids

    def _is_due(self) -> bool:
        with self._lock:
            since_renewal_s = self.clock() - self._renewed_at
            return must_end_runs(
                self.mode, since_renewal_s, lease_s=self.lease_s, has_other_agents=self._has_other_agents
            )
