"""Renews the leases of running jobs, releases jobs that no thread processes, and reaps jobs with an expired lease.

A lease is the time-limited ownership of a job by one agent process. A slot is the dispatcher's entry for a running job.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.dispatcher import Dispatcher
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, nodes
from executor.database.engine import transaction
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: A lease is renewed this many times within its length, so that several renewals may fail before it expires.
RENEWALS_PER_LEASE = 6


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews and checks the leases of one agent process."""

    engine: Engine
    dispatcher: Dispatcher
    state: AgentState
    boot_id: str  #: id of this agent process, the owner of its leases
    lease_s: float
    _without_slot: set[int] = field(default_factory=set)  #: ids of jobs that had a lease but no slot last time
    _connected_since: float | None = None  #: monotonic time of the first iteration after the last database error

    def maintain(self) -> None:
        """Renew all leases once, act on lost and cancelled jobs, then wait until the next renewal."""
        running = self.dispatcher.stop_signals()  # before `renew`, which does not return a job that is claimed later
        with transaction(self.engine) as session:
            renewed_jobs = job_queue.renew(session, self.boot_id, lease_s=self.lease_s)
            nodes.note_seen(session, self.boot_id)
        for job_id, stop in running.items():
            if job_id not in renewed_jobs:
                stop.send(StopSignal.LEASE_LOST)
            elif renewed_jobs[job_id]:  # an operator has cancelled the job
                stop.send(StopSignal.CANCELLED)
        self._release_jobs_without_slot(renewed_jobs.keys())
        self._reap_expired_leases()
        self.state.stopping.wait(self.lease_s / RENEWALS_PER_LEASE)

    def note_database_error(self) -> None:
        """Record a database error. The next reaping then waits for one lease length; see `_reap_expired_leases`."""
        self._connected_since = None

    def _release_jobs_without_slot(self, leased: Collection[int]) -> None:
        """Release jobs whose lease this process has, but that have no slot. `leased`: the ids of all jobs with a lease.

        A job has a lease but no slot when the database failed while the end of the job was being stored. Without this
        release, the lease keeper would renew the job's lease for ever. A job is released only when it has no slot in
        two iterations in a row, because a claim is stored a moment before its slot exists.
        """
        without_slot = set(leased) - self.dispatcher.stop_signals().keys()
        to_release, self._without_slot = without_slot & self._without_slot, without_slot
        for job_id in to_release:
            with transaction(self.engine) as session:
                if job_queue.release(session, job_id, self.boot_id):
                    log.warning("job_released", job_row=job_id)
                    self.state.dispatch_requested.set()

    def _reap_expired_leases(self) -> None:
        """Reap jobs with expired leases, if several agents share the database.

        It reaps only after one whole lease length without a database error. During an outage of the database no agent
        can renew its leases, so all leases may have expired afterwards, although their owners still run.
        """
        if self.engine.dialect.name == "sqlite":
            return
        now = time.monotonic()
        self._connected_since = self._connected_since or now
        if now - self._connected_since < self.lease_s:
            return
        with transaction(self.engine) as session:
            for job_id, status in job_queue.reap(session):
                log.warning("job_reaped", job_row=job_id, status=status)
                self.state.dispatch_requested.set()
