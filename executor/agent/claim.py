"""Step 3 of a job's processing (ARCHITECTURE.md): claims a job at FulcrumCore only once, even if the agent crashes.

Before this step, the dispatcher has claimed the job in the agent's own queue, the table of jobs (step 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent import crash_points
from executor.agent.job_fields import is_created_by_agent
from executor.agent.refusals import Http403Counter
from executor.agent.state import HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED  # 500: the failure is no outage
from executor.database import job_queue
from executor.database.engine import transaction
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.errors import FulcrumAuthError, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.log import get_logger
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: The error text of a job that is gone. FulcrumCore answers 403 (FulcrumAuthError) for such a job, but also while its
#: database is down. So a job counts as gone only after several refusals, which `Http403Counter` counts.
JOB_GONE_TEXT = "the job was deleted in FulcrumCore, or belongs to another agent"


class JobNotClaimable(Exception):
    """The job can never be claimed.

    FulcrumCore has ended or deleted the job, or has given it to another agent. Or an installation with the same token
    and another database may have claimed the job.
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


def require_job_open(status_at_fulcrum: str | None) -> None:
    """Raise JobNotClaimable unless the status is pending or processing. None: FulcrumCore's answer has no status."""
    if status_at_fulcrum not in ("Pending", "Processing"):
        # The usual cause is that FulcrumCore has failed the job after the job timeout.
        raise JobNotClaimable(ErrorCode.DEADLINE, f"the job's status at FulcrumCore is {status_at_fulcrum}")


def require_claim_by_this_agent(status_at_fulcrum: str | None, *, was_claim_sent_before: bool, refusal: str) -> None:
    """Return normally if FulcrumCore refused a claim because it had accepted an earlier claim of this agent.

    FulcrumCore accepts only one claim of a job and does not store who has sent it. An earlier claim of this agent may
    arrive late, after this attempt has read the status Pending. FulcrumCore then accepts the earlier claim and refuses
    the new claim. `status_at_fulcrum` was read after the refusal, and `refusal` is FulcrumCore's text. Raises
    FulcrumUnavailable if the job can still be claimed. Raises JobNotClaimable if the job has ended, or if another
    installation with the same token may have claimed the job.

    If this agent has sent only one claim, the network may have delivered it twice. FulcrumCore then accepts the first
    copy, and the agent may get only the refusal of the second copy. The agent cannot distinguish this case from a claim
    by another installation. JobNotClaimable is raised in both cases, because otherwise the job might run twice. The job
    then ends in this database without a report. Only if the job's status at FulcrumCore is still Processing after the
    job timeout, the agent reports the job as failed.
    """
    require_job_open(status_at_fulcrum)
    if status_at_fulcrum == "Pending":
        # With this HTTP status, the agent retries only this job, and does not record an outage of FulcrumCore.
        raise FulcrumUnavailable(refusal, status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED)
    if not was_claim_sent_before:
        raise JobNotClaimable(ErrorCode.JOB_CLAIMED_ELSEWHERE, job_queue.CLAIMED_ELSEWHERE_TEXT)


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """Claims jobs at FulcrumCore."""

    engine: Engine
    fulcrum: FulcrumClient
    http_403_counter: Http403Counter

    def claim(self, job: Job, lease: Lease) -> None:
        """Claim the job at FulcrumCore, unless FulcrumCore has accepted a claim of an earlier attempt.

        `claim_sent_at` is stored before the claim is sent, `claimed_at` after FulcrumCore has accepted it. When only
        `claim_sent_at` is stored, the job's status at FulcrumCore says whether FulcrumCore accepted the claim.
        Raises JobNotClaimable, FulcrumUnavailable.
        """
        try:
            self._claim_once(job, lease)
        except FulcrumRefused as refusal:
            # `_send_claim` handles a refused claim. So the refused request is a GET of the job, or a GET of the agent,
            # which `http_403_counter` sends after a 403. FulcrumCore itself refuses these two GETs only with 401 or 403
            # (FulcrumAuthError, not caught here). So a proxy has refused the GET, and the job is retried.
            raise FulcrumUnavailable(str(refusal), status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED) from None

    def _claim_once(self, job: Job, lease: Lease) -> None:
        """Claim the job if no claim was accepted. Raises JobNotClaimable, FulcrumUnavailable, FulcrumRefused."""
        request = first_request(
            is_claim_sent=job.claim_sent_at is not None, is_claim_accepted=job.claimed_at is not None
        )
        # FulcrumCore does not know a job that the agent itself has created, to delete a VM.
        if request is FirstRequest.NONE or is_created_by_agent(job):
            return
        # If a claim was sent before and the job is not pending, FulcrumCore has accepted that claim.
        was_claim_sent_before = request is FirstRequest.READ_JOB
        if not was_claim_sent_before or self._status_at_fulcrum(job.fulcrum_id) == "Pending":
            with transaction(self.engine) as session:
                job_queue.store_fulcrum_claim_sent(session, lease)
            # Only tests request a crash. "claim_noted": `claim_sent_at` is stored, and the claim is not yet sent.
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
            status_at_fulcrum = self._status_at_fulcrum(job.fulcrum_id)
            require_claim_by_this_agent(
                status_at_fulcrum, was_claim_sent_before=was_claim_sent_before, refusal=str(refusal)
            )
        except FulcrumAuthError:
            # `refused_request` completes the error text "FulcrumCore refused to …".
            raise self._error_for_gone_job(job.fulcrum_id, refused_request="accept the claim") from None

    def _status_at_fulcrum(self, fulcrum_id: str) -> str | None:
        """Return the job's status at FulcrumCore: Pending, or Processing if the job has been claimed.

        Raises JobNotClaimable, FulcrumUnavailable, FulcrumRefused.
        """
        try:
            job_at_fulcrum = self.fulcrum.get_job(fulcrum_id)
        except FulcrumAuthError:
            raise self._error_for_gone_job(fulcrum_id, refused_request="return the job") from None
        require_job_open(job_at_fulcrum.status)
        return job_at_fulcrum.status

    def _error_for_gone_job(self, fulcrum_id: str, *, refused_request: str) -> JobNotClaimable:
        """Return the exception for a job that is gone. Called after a request about the job was answered with 403.

        Raises FulcrumUnavailable if the job may still exist.
        """
        self.http_403_counter.require_job_gone(fulcrum_id, refused_request=refused_request)
        return JobNotClaimable(ErrorCode.JOB_GONE, JOB_GONE_TEXT)
