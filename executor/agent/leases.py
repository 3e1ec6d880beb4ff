"""Renews the leases of running jobs, releases leased jobs that are not running, and calls the reaper.

A lease is the time-limited ownership of a job by one agent process. The reaper takes jobs whose leases have expired
from other agent processes (`reaper.py`). If this process cannot renew its leases, the fence ends its runs before the
leases expire (`fence.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.dispatcher import Dispatcher
from executor.agent.fence import Fence, is_fencing
from executor.agent.reaper import Reaper
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, nodes, reaping, revisions, schema
from executor.database.engine import transaction
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: Number of renewals within the duration of a lease, so that several renewals may fail before the lease expires.
RENEWALS_PER_LEASE = 6
#: Interval at which the lease keeper checks whether the runs of jobs that have lost their leases have ended.
END_CHECK_INTERVAL_S = 0.05


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews the leases of one agent process, releases its jobs that are not running, and calls the reaper."""

    engine: Engine
    dispatcher: Dispatcher
    fence: Fence
    reaper: Reaper | None  #: None on SQLite, where no other agent uses the database
    state: AgentState
    boot_id: str  #: id of this agent process (not of a boot), stored as the owner of the jobs
    lease_s: float  #: duration of a lease
    #: Stores that this agent uses the database now. Otherwise, a process with another agent id of FulcrumCore or
    #: another Proxmox cluster may take the database over. Raises no DatabaseError.
    confirm_database_use: Callable[[], None]
    #: Stores the story of each current run: a summary of what the run has done so far. Raises no DatabaseError.
    store_stories: Callable[[], None]
    #: The ids of the jobs that had a lease but were not running when `maintain_leases` last ran.
    _leased_ids_not_running: set[int] = field(default_factory=set)
    _known_revisions: frozenset[str] = frozenset()  #: the schema revisions that this version knows; read once

    def maintain_leases(self) -> None:
        """Renew all leases once, stop jobs that were cancelled or have lost their leases. Wait for the next renewal."""
        # `stop_signals` has a key for each running job. It is read before `renew_leases`. Otherwise, a job that is
        # claimed after `renew_leases` would be in `stop_signals` without a renewed lease, and would be stopped.
        stop_signals, started_at = self.dispatcher.stop_signals(), self.fence.clock()
        with transaction(self.engine) as session:
            # The keys are the ids of the jobs with a renewed lease. A value is True when an operator cancelled the job.
            is_cancelled_by_job_id = job_queue.renew_leases(session, self.boot_id, lease_s=self.lease_s)
            # The rows of the table `nodes` are agent processes, not Proxmox nodes. `has_other_agents` is True if
            # another agent process was running within the last two lease durations.
            has_other_agents = nodes.has_other_agents(session, self.boot_id, within_s=2 * self.lease_s)
            # All runs of this process have one deadline, which is in a file. Each run has a guard, a process that reads
            # the file and ends the run at the deadline, even if this process is suspended. If the runs have no deadline
            # yet, the fence sets one here, unless SMITH_FENCE is `never`. The deadline must be set before the commit:
            # after it, another agent process may reap a job of this process once the job's lease has expired.
            if has_other_agents and not self.fence.try_set_runs_deadline(started_at):
                # The deadline is measured from the start of the renewal. This renewal took so long that the runs would
                # have too little time until the deadline. The caller starts the next renewal at once.
                session.rollback()
                return
            ends_runs_before_expiry = is_fencing(self.fence.fence_mode, has_other_agents=has_other_agents)
            # If `fences` is True, this process ends its own runs before its leases expire. So another agent process may
            # reap a job of this process once the job's lease has expired. If `fences` is False and the job has a run,
            # the job is reaped only after FulcrumCore's job timeout.
            nodes.store_lease_renewal(session, self.boot_id, fences=ends_runs_before_expiry)
            # An operator can pause this process, and limit its number of parallel jobs.
            operator_limits = nodes.operator_limits(session, self.boot_id)
            self._record_newer_schema(session)
        leased_job_ids = is_cancelled_by_job_id.keys()
        self.state.record_operator_limits(is_paused=operator_limits.is_paused, max_jobs=operator_limits.max_jobs)
        for job_id, stop_signal in stop_signals.items():
            if job_id not in leased_job_ids:  # the lease was not renewed
                stop_signal.send(StopSignal.LEASE_LOST)
            elif is_cancelled_by_job_id[job_id]:
                stop_signal.send(StopSignal.CANCELLED)
        # If a lease was lost, for example while this process was suspended, another agent process may already execute
        # the job. So the runs of all jobs that have lost their leases must end. Until they have ended, the deadline of
        # the runs is not extended: at the latest, they end at the deadline.
        if self._wait_until_ended(stop_signals.keys() - leased_job_ids):
            # Until the commit, another process reads the leases as they were before the renewal, and may reap a job
            # when its old lease expires. So `record_renewal`, which moves the deadline to a later time or removes it,
            # is called after the commit.
            self.fence.record_renewal(started_at, has_other_agents=has_other_agents)
        self._release_jobs_not_running(leased_job_ids)
        if leased_job_ids:
            self.store_stories()
        # An allocation (memory and cores of a Proxmox node for a run's VM) counts as in use until its end is stored.
        self.dispatcher.retry_storing_allocation_ends()
        self.confirm_database_use()
        if self.reaper is not None:
            self.reaper.reap()
        # After a slow renewal, little of the lease is left. So the wait is shorter by the time that the renewal took.
        elapsed_s = self.fence.clock() - started_at
        self.state.stopping.wait(max(0.0, self.lease_s / RENEWALS_PER_LEASE - elapsed_s))

    def _record_newer_schema(self, session: Session) -> None:
        """Record whether a newer version of Agent Smith has migrated the schema of a PostgreSQL database."""
        if self.reaper is None or self.state.is_schema_too_new:  # `reaper` is None on SQLite
            return
        self._known_revisions = self._known_revisions or revisions.revisions_of_this_program()
        revision = schema.current_revision_in_transaction(session)
        if revision is not None and revision not in self._known_revisions:
            self.state.is_schema_too_new = True
            log.warning("schema_is_newer", schema=revision, newest_known=max(self._known_revisions))

    def _wait_until_ended(self, job_ids: Collection[int]) -> bool:
        """Wait until the jobs with these ids have ended; return True.

        Return False when a job still runs after `lease_s` / RENEWALS_PER_LEASE, or when the agent stops.
        """
        deadline = time.monotonic() + self.lease_s / RENEWALS_PER_LEASE
        while not self.dispatcher.stop_signals().keys().isdisjoint(job_ids):
            if time.monotonic() >= deadline or self.state.stopping.wait(END_CHECK_INTERVAL_S):
                return False
        return True

    def _release_jobs_not_running(self, leased_job_ids: Collection[int]) -> None:
        """Release (give back) jobs that have a lease of this process but are not running.

        A job keeps its lease when the database failed while the end of the job was being stored. Without this release,
        the lease keeper would renew the job's lease for ever. A job is released only when it is not running in two
        checks in a row, because the dispatcher stores a claim a moment before it starts the job.
        """
        # `stop_signals` has an entry for each running job, even if the job was not asked to end.
        running_ids = self.dispatcher.stop_signals().keys()
        ids_not_running = set(leased_job_ids) - running_ids
        ids_to_release = ids_not_running & self._leased_ids_not_running
        self._leased_ids_not_running = ids_not_running
        # The fence has ended the runs of the returned jobs. After this call, it no longer stores their ids.
        fenced_job_ids = self.fence.take_fenced_job_ids(ids_to_release)
        for job_id in ids_to_release:
            # A release counts as a crash; after too many crashes, the job fails. If the fence has ended the run, the
            # job did not cause the release, so the release does not count.
            counts_as_crash = job_id not in fenced_job_ids
            with transaction(self.engine) as session:
                new_status = reaping.release_job(session, job_id, self.boot_id, counts_as_crash=counts_as_crash)
            if new_status is not None:  # None: this process no longer owns the job
                log.warning("job_released", job_row_id=job_id, status=new_status)
                self.state.dispatch_requested.set()
                self.state.report_requested.set()
