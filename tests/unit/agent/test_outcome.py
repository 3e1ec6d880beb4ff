"""How an attempt to process a job ends: a table of cases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from executor.agent import retry
from executor.agent.claim import JobNotClaimable
from executor.agent.outcome import Ending, MappingChange, Outcome, ResultOrError, outcome_of_attempt
from executor.agent.outcome_store import report_state_after
from executor.agent.stop_signal import StopSignal
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import DatabaseUnavailable, FulcrumUnavailable, JobError
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode

DONE = JobResult(succeeded=True, vm={"vmid": 100})
UNAVAILABLE = FulcrumUnavailable("FulcrumCore does not answer")
DATABASE_OUTAGE = DatabaseUnavailable("the database cannot be used: another process holds a lock")
GONE = JobNotClaimable(ErrorCode.JOB_GONE, "deleted")


def failed_result(code: ErrorCode, **fields: Any) -> JobResult:
    return JobResult(succeeded=False, code=code, detail="no", **fields)


def job(attempt: int = 1, time_left_s: float = 250) -> Job:
    return Job(id=1, attempt=attempt, deadline_at=utc_now() + timedelta(seconds=time_left_s))


def outcome(result_or_error: Any, *, of: Job | None = None, stop_reason: str | None = None, **facts: bool) -> Any:
    return outcome_of_attempt(of or job(), result_or_error, stop_reason=stop_reason, clock_offset_s=0.0, **facts)


@pytest.mark.parametrize(
    ("result_or_error", "facts", "ending", "mapping_change", "code"),
    [
        (DONE, {}, "finish", "apply_result", None),
        (DONE, {"stop_reason": StopSignal.AGENT_STOPPING}, "finish", "apply_result", None),
        (DONE, {"stop_reason": StopSignal.CANCELLED}, "finish", "apply_result", None),
        (DONE, {"has_database_refused_result": True}, "finish", "none", "INTERNAL"),
        (DONE, {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
        (failed_result(ErrorCode.INVALID_REQUEST), {}, "finish", "apply_result", "INVALID_REQUEST"),
        (failed_result(ErrorCode.VM_NOT_FOUND), {}, "finish", "apply_result", "VM_NOT_FOUND"),
        (
            failed_result(ErrorCode.INVALID_REQUEST),
            {"has_unused_reservation": True},
            "finish",
            "delete",
            "INVALID_REQUEST",
        ),
        (failed_result(ErrorCode.CAPACITY), {"has_database_refused_result": True}, "finish", "none", "INTERNAL"),
        (failed_result(ErrorCode.VM_ID_TAKEN), {"is_mapping_reserved": True}, "requeue", "delete", None),
        (failed_result(ErrorCode.VM_ID_TAKEN), {"is_mapping_reserved": False}, "finish", "apply_result", "VM_ID_TAKEN"),
        (
            failed_result(ErrorCode.VM_ID_TAKEN, is_effect_unknown=True),
            {"is_mapping_reserved": False},
            "requeue",
            "none",
            None,
        ),
        (
            failed_result(ErrorCode.VM_ID_TAKEN),
            {"of": job(8), "is_mapping_reserved": True},
            "finish",
            "delete",
            "VM_ID_TAKEN",
        ),
        (failed_result(ErrorCode.VM_ID_TAKEN), {"of": job(8)}, "finish", "apply_result", "VM_ID_TAKEN"),
        (failed_result(ErrorCode.NODE_DOWN), {}, "requeue", "none", None),
        (failed_result(ErrorCode.NODE_DOWN), {"of": job(time_left_s=15)}, "finish", "apply_result", "NODE_DOWN"),
        (failed_result(ErrorCode.NODE_DOWN), {"of": job(8)}, "finish", "apply_result", "NODE_DOWN"),
        (
            failed_result(ErrorCode.CANCELLED),
            {"stop_reason": StopSignal.CANCELLED},
            "finish",
            "apply_result",
            "CANCELLED",
        ),
        (failed_result(ErrorCode.CANCELLED), {"stop_reason": StopSignal.AGENT_STOPPING}, "requeue", "none", None),
        (failed_result(ErrorCode.CANCELLED), {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
        (DATABASE_OUTAGE, {}, "requeue", "none", None),
        (DATABASE_OUTAGE, {"stop_reason": StopSignal.AGENT_STOPPING}, "requeue", "none", None),
        (DATABASE_OUTAGE, {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
        (failed_result(ErrorCode.LEASE_LOST, is_effect_unknown=True), {"of": job(8)}, "requeue", "none", None),
        (failed_result(ErrorCode.LEASE_LOST), {"of": job(8), "is_mapping_reserved": True}, "requeue", "none", None),
        (failed_result(ErrorCode.LEASE_LOST), {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
        (UNAVAILABLE, {}, "requeue", "none", None),
        (UNAVAILABLE, {"of": job(8)}, "requeue", "none", None),
        (UNAVAILABLE, {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
        (GONE, {}, "abandon", "none", "JOB_GONE"),
        (GONE, {"stop_reason": StopSignal.AGENT_STOPPING}, "abandon", "none", "JOB_GONE"),
        (GONE, {"stop_reason": StopSignal.LEASE_LOST}, "leave_row", "none", None),
    ],
)
def test_the_outcome_of_an_attempt(
    result_or_error: Any, facts: dict[str, Any], ending: str, mapping_change: str, code: str | None
) -> None:
    actual = outcome(result_or_error, **facts)

    assert (actual.ending, actual.mapping_change) == (Ending(ending), MappingChange(mapping_change))
    assert (actual.result.code if actual.result else None) == code
    assert (actual.result is None) == (ending in ("requeue", "leave_row"))


@pytest.mark.parametrize(
    ("result_or_error", "stop_reason", "counts"),
    [
        (failed_result(ErrorCode.NODE_DOWN), None, True),
        (UNAVAILABLE, None, False),
        (FulcrumUnavailable("the vault cannot read this secret", status=500), None, True),
        (failed_result(ErrorCode.CANCELLED), StopSignal.AGENT_STOPPING, False),
        (failed_result(ErrorCode.LEASE_LOST, is_effect_unknown=True), None, False),
        (DATABASE_OUTAGE, None, False),
    ],
)
def test_only_a_failure_that_the_job_causes_uses_up_an_attempt(
    result_or_error: Any, stop_reason: str | None, counts: bool
) -> None:
    assert outcome(result_or_error, stop_reason=stop_reason).counts_as_attempt is counts


def test_a_result_that_the_database_refuses_becomes_a_failure_without_a_vm() -> None:
    result = outcome(DONE, has_database_refused_result=True).result
    assert (result.succeeded, result.vm) == (False, {})


def test_the_wait_after_an_unavailability_respects_retry_after() -> None:
    limited = FulcrumUnavailable("too many requests", status=429, retry_after_s=40)
    assert outcome(limited).backoff_s == 40
    assert outcome(UNAVAILABLE).backoff_s <= retry.UNAVAILABILITY_BACKOFF_S * 1.3


def test_an_attempt_whose_lease_is_lost_is_discarded() -> None:
    lost = Outcome(ending=Ending.KEEP_ROW_UNCHANGED, reason="the lease was lost")
    assert outcome(DONE, stop_reason=StopSignal.LEASE_LOST) == lost


def test_the_outcome_of_a_job_that_can_never_be_claimed() -> None:
    result = JobResult(succeeded=False, code=ErrorCode.JOB_GONE, detail="deleted")
    assert outcome(GONE) == Outcome(ending=Ending.END_WITHOUT_REPORT, result=result, reason="deleted")


def test_the_outcome_while_fulcrumcore_does_not_answer() -> None:
    actual = outcome(UNAVAILABLE)
    assert actual == Outcome(
        ending=Ending.REQUEUE,
        reason="FulcrumCore does not answer",
        backoff_s=actual.backoff_s,
        counts_as_attempt=False,
    )


def test_the_outcome_of_a_result_that_the_database_refuses() -> None:
    detail = "the agent's database did not accept the result: the agent's log shows the reason"
    result = JobResult(succeeded=False, code=ErrorCode.INTERNAL, detail=detail)
    assert outcome(DONE, has_database_refused_result=True) == Outcome(ending=Ending.FINISH, result=result)


def test_the_outcome_of_a_run_that_the_stopping_agent_has_ended() -> None:
    actual = outcome(failed_result(ErrorCode.CANCELLED), stop_reason=StopSignal.AGENT_STOPPING)
    assert actual == Outcome(ending=Ending.REQUEUE, reason="the agent is stopping", counts_as_attempt=False)


def test_the_outcome_of_an_attempt_that_is_retried() -> None:
    actual = outcome(failed_result(ErrorCode.NODE_DOWN), of=job(3))
    reason = "NODE_DOWN: no"
    expected = Outcome(ending=Ending.REQUEUE, reason=reason, operator_reason=reason, backoff_s=actual.backoff_s)
    assert actual == expected
    assert retry.MIN_BACKOFF_S * 4 * 0.7 <= actual.backoff_s <= retry.MIN_BACKOFF_S * 4 * 1.3


@pytest.mark.parametrize(
    ("result_or_error", "state"),
    [
        (DONE, ReportState.DUE),
        (GONE, ReportState.ABANDONED),
        (JobNotClaimable(ErrorCode.DEADLINE, "Failed"), ReportState.ABANDONED),
        (JobNotClaimable(ErrorCode.JOB_CLAIMED_ELSEWHERE, "400"), ReportState.CLAIMED_ELSEWHERE),
    ],
)
def test_the_report_state_of_a_job_that_another_executor_processes_differs_from_other_abandoned_jobs(
    result_or_error: ResultOrError, state: ReportState
) -> None:
    assert report_state_after(outcome(result_or_error)) is state


def test_a_text_of_fulcrumcore_does_not_become_the_error_of_a_job_without_time_left() -> None:
    """The row holds why the job was requeued. This text is reported only if it begins with an error code."""
    late = job(time_left_s=1)
    late.error_message = "POST /jobs/1/claim: HTTP 409: CAPACITY: duplicate key (SQLSTATE 23505)"
    with pytest.raises(JobError) as caught:
        retry.require_time_left_s(late, clock_offset_s=0.0)
    assert caught.value.code is ErrorCode.DEADLINE
    assert "SQLSTATE" not in caught.value.detail


TAKEN = failed_result(ErrorCode.VM_ID_TAKEN)
INVALID = failed_result(ErrorCode.INVALID_REQUEST)


@pytest.mark.parametrize(
    ("result_or_error", "facts", "expected"),
    [
        (DONE, {}, Outcome(ending=Ending.FINISH, result=DONE, mapping_change=MappingChange.APPLY_RESULT)),
        (INVALID, {}, Outcome(ending=Ending.FINISH, result=INVALID, mapping_change=MappingChange.APPLY_RESULT)),
        (
            INVALID,
            {"has_unused_reservation": True},
            Outcome(ending=Ending.FINISH, result=INVALID, mapping_change=MappingChange.DELETE),
        ),
        (
            INVALID,
            {"is_mapping_reserved": True},
            Outcome(ending=Ending.FINISH, result=INVALID, mapping_change=MappingChange.APPLY_RESULT),
        ),
        (
            TAKEN,
            {"is_mapping_reserved": True},
            Outcome(
                ending=Ending.REQUEUE,
                reason="VM_ID_TAKEN: no",
                operator_reason="VM_ID_TAKEN: no",
                mapping_change=MappingChange.DELETE,
            ),
        ),
        (
            TAKEN,
            {"of": job(8), "is_mapping_reserved": True},
            Outcome(ending=Ending.FINISH, result=TAKEN, mapping_change=MappingChange.DELETE),
        ),
        (TAKEN, {}, Outcome(ending=Ending.FINISH, result=TAKEN, mapping_change=MappingChange.APPLY_RESULT)),
        (
            failed_result(ErrorCode.NODE_DOWN),
            {"has_unused_reservation": True},
            Outcome(ending=Ending.REQUEUE, reason="NODE_DOWN: no", operator_reason="NODE_DOWN: no"),
        ),
        (
            failed_result(ErrorCode.NODE_DOWN),
            {"is_mapping_reserved": True},
            Outcome(ending=Ending.REQUEUE, reason="NODE_DOWN: no", operator_reason="NODE_DOWN: no"),
        ),
        (
            failed_result(ErrorCode.NODE_DOWN, operator_detail="pve1: no route"),
            {},
            Outcome(ending=Ending.REQUEUE, reason="NODE_DOWN: no", operator_reason="NODE_DOWN: pve1: no route"),
        ),
        (
            failed_result(ErrorCode.LEASE_LOST, operator_detail="suspended"),
            {"of": job(8)},
            Outcome(
                ending=Ending.REQUEUE,
                reason="LEASE_LOST: no",
                operator_reason="LEASE_LOST: suspended",
                counts_as_attempt=False,
            ),
        ),
        (
            FulcrumUnavailable("no secret", status=500),
            {},
            Outcome(ending=Ending.REQUEUE, reason="no secret"),
        ),
        (
            DatabaseUnavailable("postgresql://db.internal does not answer"),
            {},
            Outcome(
                ending=Ending.REQUEUE,
                reason="the run could not start, because the agent's database did not answer",
                operator_reason="postgresql://db.internal does not answer",
                counts_as_attempt=False,
            ),
        ),
        (
            FulcrumUnavailable("bad gateway", status=502),
            {"has_database_refused_result": True},
            Outcome(ending=Ending.REQUEUE, reason="bad gateway", counts_as_attempt=False),
        ),
    ],
)
def test_every_field_of_the_outcome(result_or_error: Any, facts: dict[str, Any], expected: Outcome) -> None:
    actual = outcome(result_or_error, **facts)
    assert (actual.backoff_s > 0) is (actual.ending is Ending.REQUEUE)
    assert replace(actual, backoff_s=0.0) == expected


def test_the_time_left_is_measured_by_fulcrumcores_clock() -> None:
    """Only the clock offset decides whether another run fits."""
    for offset_s, ending in ((0.0, Ending.REQUEUE), (230.0, Ending.FINISH)):
        actual = outcome_of_attempt(
            job(), failed_result(ErrorCode.NODE_DOWN), stop_reason=None, clock_offset_s=offset_s
        )
        assert actual.ending is ending


def test_a_run_that_an_operator_has_cancelled_is_finished_and_not_requeued() -> None:
    cancelled = failed_result(ErrorCode.CANCELLED)
    assert outcome(cancelled, stop_reason=StopSignal.CANCELLED) == Outcome(
        ending=Ending.FINISH, result=cancelled, mapping_change=MappingChange.APPLY_RESULT
    )
