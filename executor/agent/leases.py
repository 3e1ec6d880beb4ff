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

#: A lease is renewed this many times within its duration, so that several renewals may fail before it expires.
RENEWALS_PER_LEASE = 6


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews and checks the leases of one agent process."""

    engine: Engine
    dispatcher: Dispatcher
    state: AgentState
    boot_id: str  #: id of this agent process, the owner of its leases
    lease_s: float  #: duration of a lease
    #: The ids of the jobs that had a lease but no slot in the last check.
    _job_ids_without_slot: set[int] = field(default_factory=set)
    _error_free_since: float | None = None  #: monotonic time of the first check after the last database error

    def maintain(self) -> None:
        """Renew all leases once, stop jobs with a lost lease and cancelled jobs, then wait until the next renewal."""
        # The running jobs are read before `renew`. If they were read after it, a job that is claimed between the two
        # would have a slot but no renewed lease, and would be stopped.
        stop_signals = self.dispatcher.stop_signals()
        with transaction(self.engine) as session:
            is_cancelled_by_job_id = job_queue.renew(session, self.boot_id, lease_s=self.lease_s)
            nodes.note_agent_seen(session, self.boot_id)
        for job_id, stop_signal in stop_signals.items():
            if job_id not in is_cancelled_by_job_id:  # the lease was not renewed
                stop_signal.send(StopSignal.LEASE_LOST)
            elif is_cancelled_by_job_id[job_id]:
                stop_signal.send(StopSignal.CANCELLED)
        self._release_jobs_without_slot(is_cancelled_by_job_id.keys())
        self._reap_expired_leases()
        self.state.stopping.wait(self.lease_s / RENEWALS_PER_LEASE)

    def note_database_error(self) -> None:
        """Record a database error. `_reap_expired_leases` then reaps no job for at least `lease_s` seconds."""
        self._error_free_since = None

    def _release_jobs_without_slot(self, leased_job_ids: Collection[int]) -> None:
        """Release jobs that have a lease of this process but no slot.

        A job keeps its lease when the database failed while the end of the job was being stored. Without this release,
        the lease keeper would renew the job's lease for ever. A job is released only when it has no slot in two
        iterations in a row, because the dispatcher stores a claim a moment before it creates the slot.
        """
        ids_with_slot = self.dispatcher.stop_signals().keys()
        ids_without_slot = set(leased_job_ids) - ids_with_slot
        twice_without_slot = ids_without_slot & self._job_ids_without_slot
        self._job_ids_without_slot = ids_without_slot
        for job_row_id in twice_without_slot:
            with transaction(self.engine) as session:
                if job_queue.release(session, job_row_id, owner=self.boot_id):
                    log.warning("job_released", job_row_id=job_row_id)
                    self.state.dispatch_requested.set()

    def _reap_expired_leases(self) -> None:
        """Reap jobs with expired leases, if several agents share the database.

        During an outage of the database, no agent can renew its leases. So after the outage all leases may have
        expired, although their owners still run. For this reason, the lease keeper reaps jobs only after `lease_s`
        seconds without a database error.
        """
        if self.engine.dialect.name == "sqlite":
            return
        now = time.monotonic()
        self._error_free_since = self._error_free_since or now
        if now - self._error_free_since < self.lease_s:
            return
        with transaction(self.engine) as session:
            for job_row_id, status in job_queue.reap(session):
                log.warning("job_reaped", job_row_id=job_row_id, status=status)
                self.state.dispatch_requested.set()
