"""Step 3 of a job's processing (ARCHITECTURE.md): claims a job at FulcrumCore only once, even if the agent crashes.

Before this step, the dispatcher has claimed the job in the agent's own queue, the table of jobs (step 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import is_local
from executor.agent.state import STATUS_OF_ONE_FAILED_REQUEST
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


class ClaimImpossible(Exception):
    """The job can never be claimed: FulcrumCore has ended or deleted it, or has given it to another agent."""


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """Claims jobs at FulcrumCore."""

    engine: Engine
    fulcrum: FulcrumClient

    def claim(self, job: Job, lease: Lease) -> None:
        """Claim the job at FulcrumCore, unless an earlier attempt has claimed it already.

        `claim_sent_at` is stored before the claim is sent, `claimed_at` after FulcrumCore has accepted it. When only
        `claim_sent_at` is stored, the job's status at FulcrumCore says whether FulcrumCore accepted the claim.
        Raises ClaimImpossible, FulcrumUnavailable.
        """
        if job.claimed_at is not None or is_local(job):
            return
        if job.claim_sent_at is None or self._status_at_core(job.fulcrum_id) == "Pending":
            with transaction(self.engine) as session:
                job_queue.note_fulcrum_claim_sent(session, lease)
            crash_points.crash_if_requested("claim_noted", job.service_id)
            self._send_claim(job)
            crash_points.crash_if_requested("claim_accepted", job.service_id)
        with transaction(self.engine) as session:
            job_queue.note_fulcrum_claim_accepted(session, lease)
        log.info("job_claimed", attempt=job.attempt)

    def _send_claim(self, job: Job) -> None:
        """Send the claim. Raises ClaimImpossible, FulcrumUnavailable."""
        try:
            self.fulcrum.claim_job(job.fulcrum_id)
        except FulcrumRefused:
            status = self._status_at_core(job.fulcrum_id)
            raise ClaimImpossible(
                f"FulcrumCore refused the claim: the job's status at FulcrumCore is {status}"
            ) from None
        except FulcrumAuthFailing:
            raise self._error_after_auth_failure(job.fulcrum_id, refused_to="accept the claim") from None

    def _status_at_core(self, fulcrum_id: str) -> str:
        """Return the job's status at FulcrumCore: Pending, or Processing if this agent has claimed the job.

        Raises ClaimImpossible, FulcrumUnavailable.
        """
        try:
            core_job: CoreJob = self.fulcrum.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            raise self._error_after_auth_failure(fulcrum_id, refused_to="return the job") from None
        if core_job.status not in ("Pending", "Processing"):
            raise ClaimImpossible(f"the job's status at FulcrumCore is {core_job.status}")
        return core_job.status

    def _error_after_auth_failure(self, fulcrum_id: str, *, refused_to: str) -> ClaimImpossible | FulcrumUnavailable:
        """Return the exception to raise after a request about a job has raised FulcrumAuthFailing.

        FulcrumCore answers 403 for a job that was deleted or that belongs to another agent. When it answers 403 to
        every request, FulcrumCore or the agent's token has a problem, and `may_read_job` raises FulcrumUnavailable.
        """
        if self.fulcrum.may_read_job(fulcrum_id):
            text = f"FulcrumCore refused to {refused_to}, although the agent may read the job"
            # With this status, the exception concerns this request only, and the agent sends other requests as before.
            return FulcrumUnavailable(text, status=STATUS_OF_ONE_FAILED_REQUEST)
        return ClaimImpossible("the job was deleted in FulcrumCore, or belongs to another agent")
