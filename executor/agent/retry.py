"""Decides how long a job's run may take, whether the job gets another attempt, and after which backoff.

A `Reaction` (executor/shared/reactions.py) says for an error code whether the job is attempted again: never (NEVER),
once (ONCE), only with another VMID (NEW_VMID), or until MAX_ATTEMPTS is reached (LATER, CHECK_FIRST). With CHECK_FIRST,
the failed attempt may have changed something, so the next attempt first checks what exists.
"""

from __future__ import annotations

import random
from contextlib import suppress

from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import JobError
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode
from executor.shared.reactions import Reaction, reaction_to

#: Minimum time for a run. A job with less time left fails without a run, because even the shortest playbook needs
#: about this time.
MIN_RUN_S = 10.0
#: Time reserved for the report between the end of a run and FulcrumCore's timeout.
REPORT_MARGIN_S = 10.0
#: Backoff before the second attempt. It is doubled for each further attempt, up to MAX_BACKOFF_S, and has jitter.
MIN_BACKOFF_S = 2.0
MAX_BACKOFF_S = 30.0
#: Average backoff after FulcrumCore or the database did not answer. It need not grow with the attempts, because the
#: agent claims no job while it knows that FulcrumCore or the database does not answer.
UNAVAILABILITY_BACKOFF_S = 5.0
#: Maximum number of attempts of a job.
MAX_ATTEMPTS = 8
#: Maximum number of attempts of a job if it is unknown what its last run changed: the run was killed, lost a part of
#: its output, or may not have started. Further attempts may fail for the same reason, for example because the machine
#: has too little memory for the run.
MAX_ATTEMPTS_IF_EFFECT_UNKNOWN = 3


def require_time_left_s(job: Job, *, clock_offset_s: float) -> float:
    """Return how many seconds a run may take. Raises JobError when less than MIN_RUN_S are left.

    `clock_offset_s` is how far FulcrumCore's clock is ahead of this machine's clock. If an earlier attempt has failed,
    the JobError has the code and texts of that attempt's error, because that error caused the lack of time. If no
    attempt has failed, the code is DEADLINE.
    """
    now_at_fulcrum = utc_now().timestamp() + clock_offset_s
    time_left_s = job.deadline_at.timestamp() - now_at_fulcrum - REPORT_MARGIN_S
    if time_left_s < MIN_RUN_S:
        previous_code, _, previous_detail = (job.error_message or "").partition(": ")
        if previous_detail and previous_code in set(ErrorCode):
            operator_detail = (job.operator_detail or "").partition(": ")[2]
            raise JobError(ErrorCode(previous_code), previous_detail, operator_detail)
        raise JobError(
            ErrorCode.DEADLINE, f"only {max(time_left_s, 0):.0f} s are left before the job timeout, too few for a run"
        )
    return time_left_s


def backoff_if_retried_s(
    job: Job, result: JobResult, *, clock_offset_s: float, gets_new_vmid: bool = False
) -> float | None:
    """Return the backoff before the job's next attempt, or None when the job must not be attempted again.

    `gets_new_vmid` is True if the next attempt uses another VMID.
    """
    if result.succeeded or result.code is None or job.attempt >= MAX_ATTEMPTS:
        return None
    if result.is_effect_unknown and job.attempt >= MAX_ATTEMPTS_IF_EFFECT_UNKNOWN:
        return None
    reaction = Reaction.CHECK_FIRST if result.is_effect_unknown else reaction_to(result.code)
    if reaction is Reaction.NEVER or (reaction is Reaction.ONCE and job.attempt > 1):
        return None
    if reaction is Reaction.NEW_VMID and not gets_new_vmid:
        return None
    backoff_s = backoff_after_attempt_s(job.attempt)
    with suppress(JobError):  # raised when the time is too short for a run even without a backoff
        if require_time_left_s(job, clock_offset_s=clock_offset_s) - backoff_s >= MIN_RUN_S:
            return backoff_s
    return None


def backoff_after_attempt_s(attempt: int) -> float:
    """Return a wait that grows with each attempt and has jitter."""
    return _with_jitter(min(MIN_BACKOFF_S * 2.0 ** max(attempt - 1, 0), MAX_BACKOFF_S))


def backoff_after_unavailability_s(retry_after_s: float | None) -> float:
    """Return the backoff after FulcrumCore or the database did not answer.

    A job whose run was ended because the agent had not renewed its leases in time gets the same backoff.

    The backoff is at least `retry_after_s`, the value of the `Retry-After` header in FulcrumCore's answer, if any.
    """
    return max(_with_jitter(UNAVAILABILITY_BACKOFF_S), retry_after_s or 0.0)


def _with_jitter(average_s: float) -> float:
    return average_s * random.uniform(0.7, 1.3)  # noqa: S311 (jitter, not a secret)
