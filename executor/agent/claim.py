"""Step 3 of a job's processing (ARCHITECTURE.md): claims a job at FulcrumCore, only once even after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import is_local
from executor.database import job_queue
from executor.database.engine import transaction
from executor.database.job_queue import Lease
from executor.database.tables import Job
from executor.errors import FulcrumAuthFailing, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreJob
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


class JobAbandoned(Exception):
    """FulcrumCore has ended or deleted the job, or another agent owns it, so this agent cannot claim it."""


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """Claims jobs at FulcrumCore."""

    engine: Engine
    fulcrum: FulcrumClient

    def claim(self, job: Job, lease: Lease) -> None:
        """Claim the job at FulcrumCore, unless an earlier attempt has claimed it already.

        `claim_sent_at` is stored before the claim is sent, `claimed_at` after FulcrumCore has accepted it. When only
        `claim_sent_at` is stored, the job's status at FulcrumCore says whether FulcrumCore accepted the claim.
        Raises JobAbandoned, FulcrumUnavailable.
        """
        if job.claimed_at is not None or is_local(job):
            return
        if job.claim_sent_at is None or self._status_at_core(job.fulcrum_id) == "Pending":
            with transaction(self.engine) as session:
                job_queue.note_claim_sent(session, lease)
            crash_points.reached("claim_noted", job.service_id)
            self._send(job)
            crash_points.reached("claim_accepted", job.service_id)
        with transaction(self.engine) as session:
            job_queue.note_claimed(session, lease)
        log.info("job_claimed", attempt=job.attempt)

    def _send(self, job: Job) -> None:
        """Send the claim. Raises JobAbandoned, FulcrumUnavailable."""
        try:
            self.fulcrum.claim_job(job.fulcrum_id)
        except FulcrumRefused:
            status = self._status_at_core(job.fulcrum_id)
            raise JobAbandoned(f"FulcrumCore refused the claim: the job is {status} there") from None
        except FulcrumAuthFailing:
            # FulcrumCore answers 403 for a job that was deleted or that belongs to another agent. When it answers 403
            # to every request, FulcrumCore or the agent's token has a problem, and `knows_job` raises FulcrumError.
            if self.fulcrum.knows_job(job.fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused the claim of a job that it has", status=500) from None
            raise JobAbandoned("FulcrumCore does not know the job any more, or it is not ours") from None

    def _status_at_core(self, fulcrum_id: str) -> str:
        """Return the job's status at FulcrumCore: Pending, or Processing if this agent has claimed the job.

        Raises JobAbandoned, FulcrumUnavailable.
        """
        try:
            core_job: CoreJob = self.fulcrum.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            if self.fulcrum.knows_job(fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused to show a job that it has", status=500) from None
            raise JobAbandoned("FulcrumCore does not know the job any more, or it is not ours") from None
        if core_job.status not in ("Pending", "Processing"):
            raise JobAbandoned(f"FulcrumCore has the job as {core_job.status}")
        return core_job.status
