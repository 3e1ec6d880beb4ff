"""Decides how an attempt to process a job ends. Has no side effects: `outcome_store.py` stores the outcome.

A mapping says which VM serves which service. A reservation is a mapping whose VM is not created yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from executor.agent import retry
from executor.agent.claim import JobNotClaimable
from executor.agent.state import HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED  # 500, in `FulcrumUnavailable.status`
from executor.agent.stop_signal import StopSignal
from executor.database.tables.jobs import Job
from executor.errors import DatabaseUnavailable, FulcrumUnavailable
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

#: The reason that tenants (the customers that use the services) read if a job is requeued because of the database.
#: Tenants do not read the text of the database error, because that text may name the database's host.
DATABASE_OUTAGE_REASON = "the run could not start, because the agent's database did not answer"


class Ending(StrEnum):
    """Says what happens to the job's row at the end of an attempt."""

    FINISH = "finish"  #: the job ends with a result, which is reported
    END_WITHOUT_REPORT = "abandon"  #: the job ends with a result that is not reported
    REQUEUE = "requeue"  #: the job gets another attempt
    KEEP_ROW_UNCHANGED = "leave_row"  #: the row does not change, because another agent process may own the job


class MappingChange(StrEnum):
    """Says what happens to the service's mapping at the end of an attempt."""

    NONE = "none"
    APPLY_RESULT = "apply_result"  #: the mapping gets the values that the result contains about the VM
    DELETE = "delete"  #: the service has no VM with the VMID, so the reservation is deleted


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Describes how an attempt ends."""

    ending: Ending
    result: JobResult | None = None  #: the job's result, if the job ends
    reason: str = ""  #: the reason for this outcome, in a text that may be shown to tenants
    operator_reason: str = ""  #: the reason in more detail, for operators; '' if there is no more detail
    backoff_s: float = 0.0  #: wait before the next attempt, if the job is requeued
    #: False if the job did not cause the failure. The number of counted attempts of a job is limited.
    counts_as_attempt: bool = True
    mapping_change: MappingChange = MappingChange.NONE


#: The input of `outcome_of_attempt`. A JobResult is the result of a run, or says which error occurred before the run.
#: FulcrumUnavailable and DatabaseUnavailable: FulcrumCore or the database did not answer before the run.
#: JobNotClaimable: the agent can never claim the job, for example because FulcrumCore has deleted it.
ResultOrError = JobResult | FulcrumUnavailable | JobNotClaimable | DatabaseUnavailable


def outcome_of_attempt(  # noqa: PLR0913 (each parameter is one fact on which the outcome depends)
    job: Job,
    result_or_error: ResultOrError,
    *,
    stop_reason: str | None,
    clock_offset_s: float,
    is_mapping_reserved: bool = False,
    has_unused_reservation: bool = False,
    has_database_refused_result: bool = False,
) -> Outcome:
    """Return how the attempt ends. `result_or_error` is the result or the error of the attempt.

    `stop_reason` is the reason of the stop signal, None without a signal. `clock_offset_s` is how far FulcrumCore's
    clock is ahead of this machine's clock. `is_mapping_reserved` is True if the mapping is a reservation.
    `has_unused_reservation` is True if this attempt has made the reservation, and no run has started.
    `has_database_refused_result` is True if the database has refused to store the result and would refuse it again, for
    example because a text is too long.
    """
    if stop_reason == StopSignal.LEASE_LOST:
        return Outcome(ending=Ending.KEEP_ROW_UNCHANGED, reason="the lease was lost")
    if isinstance(result_or_error, JobNotClaimable):
        result = JobResult(succeeded=False, code=result_or_error.code, detail=str(result_or_error))
        return Outcome(ending=Ending.END_WITHOUT_REPORT, result=result, reason=str(result_or_error))
    if isinstance(result_or_error, FulcrumUnavailable | DatabaseUnavailable):
        return _requeue_after_outage(result_or_error)
    if has_database_refused_result:
        detail = "the agent's database did not accept the result: the agent's log shows the reason"
        result = JobResult(succeeded=False, code=ErrorCode.INTERNAL, detail=detail)
        return Outcome(ending=Ending.FINISH, result=result)
    if stop_reason == StopSignal.AGENT_STOPPING and not result_or_error.succeeded:
        return Outcome(ending=Ending.REQUEUE, reason="the agent is stopping", counts_as_attempt=False)
    # VM_ID_TAKEN: the VMID is not free. If the mapping is a reservation, the next attempt can reserve another VMID.
    is_vmid_taken = is_mapping_reserved and result_or_error.code is ErrorCode.VM_ID_TAKEN
    return _outcome_of_result(
        job, result_or_error, clock_offset_s, is_vmid_taken=is_vmid_taken, has_unused_reservation=has_unused_reservation
    )


def _requeue_after_outage(error: FulcrumUnavailable | DatabaseUnavailable) -> Outcome:
    """Return the outcome of an attempt that could not start a run, because FulcrumCore or the database did not answer.

    If `error.status` is HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED (500), FulcrumCore answers other requests, so the job
    may have caused the failure. Only in this case, the attempt counts.
    """
    is_database_error = isinstance(error, DatabaseUnavailable)
    return Outcome(
        ending=Ending.REQUEUE,
        reason=DATABASE_OUTAGE_REASON if is_database_error else str(error),
        operator_reason=str(error) if is_database_error else "",
        backoff_s=retry.backoff_after_unavailability_s(retry_after_s=getattr(error, "retry_after_s", None)),
        counts_as_attempt=getattr(error, "status", None) == HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED,
    )


def _outcome_of_result(
    job: Job, result: JobResult, clock_offset_s: float, *, is_vmid_taken: bool, has_unused_reservation: bool
) -> Outcome:
    # The run's guard (a process that watches the run) ended it, because the agent was suspended or blocked, and did
    # not renew its leases in time. The job did not cause this, so it is requeued. If another agent process has reaped
    # the job, the requeue is not stored.
    if result.code is ErrorCode.LEASE_LOST:
        return Outcome(
            ending=Ending.REQUEUE,
            reason=result.message,
            operator_reason=result.operator_message,
            backoff_s=retry.backoff_after_unavailability_s(retry_after_s=None),
            counts_as_attempt=False,
        )
    backoff_s = retry.backoff_if_retried_s(job, result, clock_offset_s=clock_offset_s, gets_new_vmid=is_vmid_taken)
    if backoff_s is not None:
        return Outcome(
            ending=Ending.REQUEUE,
            reason=result.message,
            operator_reason=result.operator_message,
            backoff_s=backoff_s,
            mapping_change=MappingChange.DELETE if is_vmid_taken else MappingChange.NONE,
        )
    is_reservation_useless = has_unused_reservation or is_vmid_taken
    return Outcome(
        ending=Ending.FINISH,
        result=result,
        mapping_change=MappingChange.DELETE if is_reservation_useless else MappingChange.APPLY_RESULT,
    )
