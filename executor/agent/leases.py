"""Ownership of jobs: renews the leases of running jobs, releases jobs without a slot, reaps jobs of dead agents."""

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

#: Renewals within the length of one lease: several may fail before the lease expires.
RENEWALS_PER_LEASE = 6


@dataclass(kw_only=True)
class LeaseKeeper:
    """Keeps the leases of one agent."""

    engine: Engine
    dispatcher: Dispatcher
    state: AgentState
    boot_id: str
    lease_s: float
    _without_slot: set[int] = field(default_factory=set)  #: jobs that we owned without a slot at the last turn
    _connected_since: float | None = None  #: monotonic; start of the current period without a database error

    def maintain(self) -> None:
        """Renew once, then wait for the next renewal."""
        running = self.dispatcher.stop_signals()  # before the renewal: a job claimed after it must not look lost
        with transaction(self.engine) as session:
            held = job_queue.renew(session, self.boot_id, lease_s=self.lease_s)
            nodes.note_seen(session, self.boot_id)
        for job_id, stop in running.items():
            if job_id not in held:
                stop.send(StopSignal.LEASE_LOST)
            elif held[job_id]:
                stop.send(StopSignal.CANCELLED)
        self._release_unowned_jobs(held.keys())
        self._reap_dead_nodes()
        self.state.stopping.wait(self.lease_s / RENEWALS_PER_LEASE)

    def note_database_error(self) -> None:
        """Restart the wait of one lease before the next reaping; see `_reap_dead_nodes`."""
        self._connected_since = None

    def _release_unowned_jobs(self, held: Collection[int]) -> None:
        """Release jobs that the database assigns to us but that no slot runs.

        A slot could not write its job's end because the database failed. Without this release the job would stay
        ours for ever, with its lease renewed. A job must be without a slot at two turns, because a claim is stored
        a moment before its slot exists.
        """
        without_slot = set(held) - self.dispatcher.stop_signals().keys()
        unowned, self._without_slot = without_slot & self._without_slot, without_slot
        for job_id in unowned:
            with transaction(self.engine) as session:
                if job_queue.release(session, job_id, self.boot_id):
                    log.warning("job_released", job_row=job_id)
                    self.state.dispatch_requested.set()

    def _reap_dead_nodes(self) -> None:
        """Reap jobs with expired leases, on a database that several agents share.

        Only after one whole lease without a database error: during an outage no agent could renew its leases, so all
        of them look expired afterwards.
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
