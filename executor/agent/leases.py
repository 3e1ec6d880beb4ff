"""Renews the leases of running jobs, releases jobs that no slot runs, and reaps jobs whose lease has expired."""

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

#: Renewals per lease length, so that several may fail before the lease expires.
RENEWALS_PER_LEASE = 6


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews and checks the leases of one agent process."""

    engine: Engine
    dispatcher: Dispatcher
    state: AgentState
    boot_id: str
    lease_s: float
    _without_slot: set[int] = field(default_factory=set)  #: ids of jobs whose lease we had without a slot last time
    _connected_since: float | None = None  #: monotonic; since when there was no database error

    def maintain(self) -> None:
        """Renew all leases once, act on lost and cancelled jobs, then wait until the next renewal."""
        running = self.dispatcher.stop_signals()  # read first: a job claimed after the renewal is not in its answer
        with transaction(self.engine) as session:
            renewed_jobs = job_queue.renew(session, self.boot_id, lease_s=self.lease_s)
            nodes.note_seen(session, self.boot_id)
        for job_id, stop in running.items():
            if job_id not in renewed_jobs:
                stop.send(StopSignal.LEASE_LOST)
            elif renewed_jobs[job_id]:  # an operator has cancelled it
                stop.send(StopSignal.CANCELLED)
        self._release_jobs_without_slot(renewed_jobs.keys())
        self._reap_expired_leases()
        self.state.stopping.wait(self.lease_s / RENEWALS_PER_LEASE)

    def note_database_error(self) -> None:
        """Postpone the next reaping by one lease length; see `_reap_expired_leases`."""
        self._connected_since = None

    def _release_jobs_without_slot(self, leased: Collection[int]) -> None:
        """Release jobs whose lease we have but that no slot runs.

        This happens when the database failed while a slot stored its job's end. Without this release we would renew
        the job's lease for ever. A job is released when it has no slot at two iterations in a row, because a claim is
        stored a moment before its slot exists.
        """
        without_slot = set(leased) - self.dispatcher.stop_signals().keys()
        to_release, self._without_slot = without_slot & self._without_slot, without_slot
        for job_id in to_release:
            with transaction(self.engine) as session:
                if job_queue.release(session, job_id, self.boot_id):
                    log.warning("job_released", job_row=job_id)
                    self.state.dispatch_requested.set()

    def _reap_expired_leases(self) -> None:
        """Reap jobs with expired leases, on a database that several agents share.

        It waits for one whole lease length without a database error: during an outage no agent could renew its
        leases, so all leases are expired afterwards.
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
