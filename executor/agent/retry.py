"""Decides how long a job's run may take, whether the job gets another attempt, and after which backoff."""

from __future__ import annotations

import random
from contextlib import suppress

from executor.database.tables import Job, utc_now
from executor.errors import ErrorCode, JobError
from executor.model import JobResult
from executor.proxmox.error_rules import Reaction, reaction_to

#: A job with less time left than this fails without a run, because the shortest playbook needs about this time.
MIN_RUN_S = 10.0
#: Time reserved for the report between the end of a run and FulcrumCore's timeout.
REPORT_MARGIN_S = 10.0
#: Backoff before the second attempt. It is doubled for each further attempt, up to MAX_BACKOFF_S, and has jitter.
MIN_BACKOFF_S = 2.0
MAX_BACKOFF_S = 30.0
MAX_ATTEMPTS = 8
#: A job fails after this many killed runs: most likely the machine has too little memory for the run.
MAX_KILLED_RUNS = 3
#: Errors that are never retried, although `reaction_to` would allow it, because an operator should see them at once.
NEVER_RETRIED = frozenset({ErrorCode.CAPACITY, ErrorCode.TASK_FAILED, ErrorCode.TASK_TIMEOUT})


def require_time_left_s(job: Job, *, clock_offset_s: float) -> float:
    """Return how many seconds a run may take. Raises JobError when they are too few to start a run.

    `clock_offset_s`: how far FulcrumCore's clock is ahead of this machine's clock. The JobError has the code and text
    of the previous attempt's error, because that error is the cause. Without a previous error, the code is DEADLINE.
    """
    now_at_core = utc_now().timestamp() + clock_offset_s
    left_s = job.deadline_at.timestamp() - now_at_core - REPORT_MARGIN_S
    if left_s < MIN_RUN_S:
        code, _, last_error = (job.error_message or "").partition(": ")
        if last_error and code in set(ErrorCode):
            raise JobError(ErrorCode(code), last_error)
        raise JobError(ErrorCode.DEADLINE, f"{max(left_s, 0):.0f} s are left, too few to begin")
    return left_s


def backoff_before_retry_s(job: Job, result: JobResult, *, clock_offset_s: float) -> float | None:
    """Return the backoff before the job's next attempt, None when there must be no further attempt."""
    if result.succeeded or result.code is None or result.code in NEVER_RETRIED or job.attempt >= MAX_ATTEMPTS:
        return None
    if result.was_killed and job.attempt >= MAX_KILLED_RUNS:
        return None
    reaction = Reaction.CHECK if result.was_killed else reaction_to(result.code)
    if reaction is Reaction.NO or (reaction is Reaction.ONCE and job.attempt > 1):
        return None
    backoff = backoff_s(job.attempt)
    with suppress(JobError):
        if require_time_left_s(job, clock_offset_s=clock_offset_s) - backoff >= MIN_RUN_S:
            return backoff
    return None


def backoff_s(attempt: int, requested_s: float | None = None) -> float:
    """Return a wait that grows with each attempt, with jitter, and is at least `requested_s` (HTTP Retry-After)."""
    grown = min(MIN_BACKOFF_S * 2.0 ** max(attempt - 1, 0), MAX_BACKOFF_S)
    return max(grown * random.uniform(0.7, 1.3), requested_s or 0.0)  # noqa: S311 (jitter, not a secret)
