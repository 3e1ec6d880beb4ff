"""Step 3 of a job's processing (ARCHITECTURE.md): claims a job at FulcrumCore only once, even if the agent crashes.

Before this step, the dispatcher has claimed the job in the agent's own queue, the table of jobs (step 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import is_created_by_agent
from executor.agent.refusals import RefusalCounter
from executor.agent.state import STATUS_OF_ONE_FAILED_REQUEST
from executor.database import job_queue
from executor.database.engine import transaction
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.errors import FulcrumAuthFailing, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreJob
from executor.log import get_logger
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: The error text of a job that counts as gone. `RefusalCounter` (refusals.py) decides whether a job is gone.
JOB_GONE_TEXT = "the job was deleted in FulcrumCore, or belongs to another agent"


class JobNotClaimable(Exception):
    """The job can never be claimed.

    FulcrumCore has ended or deleted the job, or has given it to another agent. Or another installation may have claimed
    the job. An executor is a running instance of this program.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class FirstRequest(StrEnum):
    """The first request to FulcrumCore in an attempt to process a job."""

    NONE = "none"  #: no request is needed, because FulcrumCore has accepted the claim
    READ_JOB = "read_job"  #: read the job, because FulcrumCore may have accepted a claim whose answer did not arrive
    SEND_CLAIM = "send_claim"  #: send the claim, because none was sent


def first_request(*, is_claim_sent: bool, is_claim_accepted: bool) -> FirstRequest:
    """Return the first request of an attempt to process a job. The parameters say what the job's row stores."""
    if is_claim_accepted:
        return FirstRequest.NONE
    return FirstRequest.READ_JOB if is_claim_sent else FirstRequest.SEND_CLAIM


def require_job_open(status_at_core: str | None) -> None:
    """Check that the job is pending or processing at FulcrumCore. Raises JobNotClaimable if it is not."""
    if status_at_core not in ("Pending", "Processing"):
        # The usual cause is that FulcrumCore has failed the job after the job timeout.
        raise JobNotClaimable(ErrorCode.DEADLINE, f"the job's status at FulcrumCore is {status_at_core}")


def require_claim_by_this_agent(status_at_core: str | None, *, was_claim_sent_before: bool, refusal: str) -> None:
    """Check that FulcrumCore has refused a claim because FulcrumCore had accepted an earlier claim of this agent.

    FulcrumCore accepts only one claim of a job and does not store who has sent it. If the answer to an earlier claim of
    this agent did not arrive, FulcrumCore may have accepted the earlier claim just after this attempt had read the
    status Pending. `refusal` is FulcrumCore's text. Raises FulcrumUnavailable if the job can still be claimed. Raises
    JobNotClaimable if the job has ended, or if another installation with the same token may have claimed the job.

    Suppose that the network delivers the first claim of a job twice, and the agent gets only the second answer. Then
    the job looks like a job that was claimed by another installation with the same token and another database.
    FulcrumCore stores nothing that distinguishes the two cases. The time of the claim does not distinguish them either,
    because executors that poll the same list send their claims at almost the same time. If the agent ran such a job,
    the job might run twice. So the job is abandoned: it ends in this database without a report. If FulcrumCore still
    lists the job as claimed after its deadline, `reopening.reopen` lets the agent report the job as failed.
    """
    require_job_open(status_at_core)
    if status_at_core == "Pending":
        raise FulcrumUnavailable(refusal, status=STATUS_OF_ONE_FAILED_REQUEST)
    if not was_claim_sent_before:
        raise JobNotClaimable(ErrorCode.JOB_CLAIMED_ELSEWHERE, job_queue.CLAIMED_ELSEWHERE_TEXT)


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """Claims jobs at FulcrumCore."""

    engine: Engine
    fulcrum: FulcrumClient
    refusal_counter: RefusalCounter

    def claim(self, job: Job, lease: Lease) -> None:
        """Claim the job at FulcrumCore, unless FulcrumCore has accepted a claim of an earlier attempt.

        `claim_sent_at` is stored before the claim is sent, `claimed_at` after FulcrumCore has accepted it. When only
        `claim_sent_at` is stored, the job's status at FulcrumCore says whether FulcrumCore accepted the claim.
        Raises JobNotClaimable, FulcrumUnavailable.
        """
        try:
            self._claim_once(job, lease)
        except FulcrumRefused as refusal:
            # FulcrumCore itself never refuses a request that reads a job or the agent. So a proxy or a fault has caused
            # this refusal, and the job is retried.
            raise FulcrumUnavailable(str(refusal), status=STATUS_OF_ONE_FAILED_REQUEST) from None

    def _claim_once(self, job: Job, lease: Lease) -> None:
        """Claim the job if no claim was accepted. Raises JobNotClaimable, FulcrumUnavailable, FulcrumRefused."""
        request = first_request(
            is_claim_sent=job.claim_sent_at is not None, is_claim_accepted=job.claimed_at is not None
        )
        if request is FirstRequest.NONE or is_created_by_agent(job):
            return
        # If a claim was sent before and the job is not pending, FulcrumCore has accepted that claim.
        was_claim_sent_before = request is FirstRequest.READ_JOB
        if not was_claim_sent_before or self._status_at_core(job.fulcrum_id) == "Pending":
            with transaction(self.engine) as session:
                job_queue.store_fulcrum_claim_sent(session, lease)
            crash_points.crash_if_requested("claim_noted", job.service_id)
            self._send_claim(job, was_claim_sent_before=was_claim_sent_before)
            crash_points.crash_if_requested("claim_accepted", job.service_id)
        with transaction(self.engine) as session:
            job_queue.store_fulcrum_claim_accepted(session, lease)
        log.info("job_claimed", attempt=job.attempt)

    def _send_claim(self, job: Job, *, was_claim_sent_before: bool) -> None:
        """Send the claim. Raises JobNotClaimable, FulcrumUnavailable, and FulcrumRefused if the job cannot be read."""
        try:
            self.fulcrum.claim_job(job.fulcrum_id)
        except FulcrumRefused as refusal:
            status_at_core = self._status_at_core(job.fulcrum_id)
            require_claim_by_this_agent(
                status_at_core, was_claim_sent_before=was_claim_sent_before, refusal=str(refusal)
            )
        except FulcrumAuthFailing:
            raise self._error_for_gone_job(job.fulcrum_id, refused_request="accept the claim") from None

    def _status_at_core(self, fulcrum_id: str) -> str | None:
        """Return the job's status at FulcrumCore: Pending, or Processing if this agent has claimed the job.

        Raises JobNotClaimable, FulcrumUnavailable, FulcrumRefused.
        """
        try:
            core_job: CoreJob = self.fulcrum.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            raise self._error_for_gone_job(fulcrum_id, refused_request="return the job") from None
        require_job_open(core_job.status)
        return core_job.status

    def _error_for_gone_job(self, fulcrum_id: str, *, refused_request: str) -> JobNotClaimable:
        """Return the exception for a job that is gone. Raises FulcrumUnavailable if the job may still exist."""
        self.refusal_counter.require_job_gone(fulcrum_id, refused_request=refused_request)
        return JobNotClaimable(ErrorCode.JOB_GONE, JOB_GONE_TEXT)
