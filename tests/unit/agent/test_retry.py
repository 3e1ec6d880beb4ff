"""Whether, and after which backoff, a job is attempted again: tables of cases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from executor.agent import retry
from executor.agent.retry import MAX_ATTEMPTS, MAX_ATTEMPTS_IF_EFFECT_UNKNOWN, MIN_RUN_S, REPORT_MARGIN_S
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import JobError
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

#: A tolerance for the time that passes: more than the tests take, less than the differences between expected values.
SLACK_S = 2.0


def job(time_left_s: float = 250, *, attempt: int = 1, error_message: str | None = None) -> Job:
    """Return a job whose FulcrumCore timeout is in `time_left_s`."""
    return Job(
        id=1, attempt=attempt, deadline_at=utc_now() + timedelta(seconds=time_left_s), error_message=error_message
    )


def failed_result(code: ErrorCode = ErrorCode.NODE_DOWN, **fields: Any) -> JobResult:
    return JobResult(succeeded=False, code=code, detail="no", **fields)


def backoff_s(of: Job, result: JobResult, *, clock_offset_s: float = 0.0, **facts: bool) -> float | None:
    return retry.backoff_if_retried_s(of, result, clock_offset_s=clock_offset_s, **facts)


# --- the time left ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_left_s", "clock_offset_s", "expected_s"), [(100, 0, 90), (100, 50, 40), (100, -50, 140), (25, 0, 15)]
)
def test_a_run_has_the_time_until_the_timeout_minus_the_margin_for_the_report(
    time_left_s: float, clock_offset_s: float, expected_s: float
) -> None:
    found_s = retry.require_time_left_s(job(time_left_s), clock_offset_s=clock_offset_s)
    assert expected_s - SLACK_S < found_s <= expected_s


def test_the_shortest_time_for_a_run() -> None:
    shortest_s = MIN_RUN_S + REPORT_MARGIN_S
    assert retry.require_time_left_s(job(shortest_s + SLACK_S), clock_offset_s=0) >= MIN_RUN_S
    with pytest.raises(JobError):
        retry.require_time_left_s(job(shortest_s - 0.1), clock_offset_s=0)


@pytest.mark.parametrize(
    ("error_message", "code", "detail"),
    [
        (None, "DEADLINE", "only 5 s are left before the job timeout, too few for a run"),
        ("", "DEADLINE", "only 5 s are left before the job timeout, too few for a run"),
        ("NODE_DOWN: pve1 does not answer", "NODE_DOWN", "pve1 does not answer"),
        ("TASK_FAILED: clone: no space: 5 GB", "TASK_FAILED", "clone: no space: 5 GB"),
        ("NODE_DOWN: ", "DEADLINE", "only 5 s are left before the job timeout, too few for a run"),
        ("the agent is stopping", "DEADLINE", "only 5 s are left before the job timeout, too few for a run"),
        ("GET /jobs: no answer", "DEADLINE", "only 5 s are left before the job timeout, too few for a run"),
    ],
)
def test_a_job_without_time_left_fails_with_the_error_of_its_previous_attempt(
    error_message: str | None, code: str, detail: str
) -> None:
    with pytest.raises(JobError) as caught:
        retry.require_time_left_s(job(REPORT_MARGIN_S + 5.4, error_message=error_message), clock_offset_s=0)
    assert (caught.value.code, caught.value.detail) == (code, detail)


@pytest.mark.parametrize(
    ("operator_detail", "expected"),
    [
        (None, "a node does not answer"),
        ("", "a node does not answer"),
        ("NODE_DOWN: pve1: no route to host", "pve1: no route to host"),
        ("no code", "a node does not answer"),
    ],
)
def test_the_operator_reads_the_detail_of_the_previous_attempt(operator_detail: str | None, expected: str) -> None:
    without_time = job(0, error_message="NODE_DOWN: a node does not answer")
    without_time.operator_detail = operator_detail
    with pytest.raises(JobError) as caught:
        retry.require_time_left_s(without_time, clock_offset_s=0)
    assert (caught.value.detail, caught.value.operator_detail) == ("a node does not answer", expected)


def test_a_job_after_its_deadline_has_no_negative_time_left() -> None:
    with pytest.raises(JobError) as caught:
        retry.require_time_left_s(job(-100), clock_offset_s=0)
    assert caught.value.detail == "only 0 s are left before the job timeout, too few for a run"


# --- another attempt ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "attempt", "facts", "is_retried"),
    [
        (JobResult(succeeded=True, vm={"vmid": 100}), 1, {}, False),
        (JobResult(succeeded=True, vm={"vmid": 100}, is_effect_unknown=True), 1, {}, False),
        (JobResult(succeeded=True, vm={"vmid": 100}, code=ErrorCode.NODE_DOWN), 1, {}, False),
        (JobResult(succeeded=False, detail="no code"), 1, {}, False),
        (failed_result(ErrorCode.NODE_DOWN), 1, {}, True),
        (failed_result(ErrorCode.NODE_DOWN), MAX_ATTEMPTS - 1, {}, True),
        (failed_result(ErrorCode.NODE_DOWN), MAX_ATTEMPTS, {}, False),
        (failed_result(ErrorCode.NODE_DOWN), MAX_ATTEMPTS + 1, {}, False),
        (failed_result(ErrorCode.PVE_TIMEOUT), 2, {}, True),
        (failed_result(ErrorCode.CAPACITY), 1, {}, False),
        (failed_result(ErrorCode.TASK_FAILED), 1, {}, True),
        (failed_result(ErrorCode.TASK_FAILED), 2, {}, False),
        (failed_result(ErrorCode.TASK_TIMEOUT), 1, {}, True),
        (failed_result(ErrorCode.CAPACITY, is_effect_unknown=True), 1, {}, True),
        (failed_result(ErrorCode.INVALID_REQUEST), 1, {}, False),
        (failed_result(ErrorCode.PVE_API_ERROR), 1, {}, True),
        (failed_result(ErrorCode.PVE_API_ERROR), 2, {}, False),
        (failed_result(ErrorCode.VM_ID_TAKEN), 1, {"gets_new_vmid": True}, True),
        (failed_result(ErrorCode.VM_ID_TAKEN), 1, {"gets_new_vmid": False}, False),
        (failed_result(ErrorCode.VM_ID_TAKEN), 1, {}, False),
        (failed_result(ErrorCode.NODE_DOWN), 1, {"gets_new_vmid": True}, True),
        (failed_result(ErrorCode.PLAYBOOK_FAILED), 1, {}, True),
        (failed_result(ErrorCode.PLAYBOOK_FAILED), 2, {}, False),
        (failed_result(ErrorCode.PLAYBOOK_FAILED, is_effect_unknown=True), 1, {}, True),
        (
            failed_result(ErrorCode.PLAYBOOK_FAILED, is_effect_unknown=True),
            MAX_ATTEMPTS_IF_EFFECT_UNKNOWN - 1,
            {},
            True,
        ),
        (failed_result(ErrorCode.PLAYBOOK_FAILED, is_effect_unknown=True), MAX_ATTEMPTS_IF_EFFECT_UNKNOWN, {}, False),
        (failed_result(ErrorCode.NODE_DOWN), MAX_ATTEMPTS_IF_EFFECT_UNKNOWN, {}, True),
    ],
)
def test_which_jobs_are_attempted_again(
    result: JobResult, attempt: int, facts: dict[str, bool], is_retried: bool
) -> None:
    assert (backoff_s(job(attempt=attempt), result, **facts) is not None) is is_retried


def test_a_job_is_attempted_again_only_if_a_run_fits_after_the_backoff() -> None:
    needed_s = REPORT_MARGIN_S + MIN_RUN_S
    for _ in range(20):  # the backoff before the second attempt is between 1.4 s and 2.6 s
        assert backoff_s(job(needed_s + 2.6 + SLACK_S), failed_result()) is not None
        assert backoff_s(job(needed_s + 1.3), failed_result()) is None
        assert backoff_s(job(needed_s + 52.6 + SLACK_S), failed_result(), clock_offset_s=50) is not None
        assert backoff_s(job(needed_s + 51.3), failed_result(), clock_offset_s=50) is None
        assert backoff_s(job(-100), failed_result()) is None


# --- the backoff --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "average_s"), [(0, 2), (1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (6, 30), (100, 30)]
)
def test_the_backoff_doubles_up_to_its_maximum_and_has_jitter(attempt: int, average_s: float) -> None:
    waits_s = [retry.backoff_after_attempt_s(attempt) for _ in range(500)]
    assert 0.7 * average_s <= min(waits_s) < 0.8 * average_s
    assert 1.2 * average_s < max(waits_s) <= 1.3 * average_s


def test_the_wait_for_fulcrumcore_has_jitter_and_is_at_least_the_requested_wait() -> None:
    waits_s = [retry.backoff_after_unavailability_s(None) for _ in range(500)]
    assert 3.5 <= min(waits_s) < 4
    assert 6 < max(waits_s) <= 6.5
    assert min(retry.backoff_after_unavailability_s(5.0) for _ in range(100)) == 5.0
    assert retry.backoff_after_unavailability_s(100) == 100
    assert max(retry.backoff_after_unavailability_s(0) for _ in range(100)) <= 6.5
