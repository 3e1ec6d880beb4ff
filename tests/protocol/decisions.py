"""The decisions in the model are made by the pure functions of the code. A test may replace one by a wrong decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from protocol.world import LEASE_TICKS, TICK_S, orm_job

from executor.agent import claim, fence, outcome, reaper, refusals, report
from executor.agent.claim import JobNotClaimable
from executor.agent.outcome import Outcome, ResultOrError
from executor.agent.state import HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED
from executor.agent.stop_signal import StopSignal
from executor.database import reaping
from executor.database.times import utc_now
from executor.errors import FulcrumUnavailable
from executor.model import JobResult, JobStatus
from executor.shared.error_codes import ErrorCode


def _failed(code: ErrorCode, **fields: Any) -> JobResult:
    return JobResult(succeeded=False, code=code, detail="failed", **fields)


#: How an attempt at a job may end.
ENDS: dict[str, ResultOrError] = {
    "success": JobResult(succeeded=True, vm={"vmid": 100}),
    "failure": _failed(ErrorCode.INVALID_REQUEST),
    "no room": _failed(ErrorCode.CAPACITY),
    "no VM": _failed(ErrorCode.VM_NOT_FOUND),
    "killed": _failed(ErrorCode.PLAYBOOK_FAILED, is_effect_unknown=True),
    "ended by the guard": _failed(ErrorCode.LEASE_LOST),
    "stopped": _failed(ErrorCode.CANCELLED),
    "no answer": FulcrumUnavailable("no answer"),
    "one failed request": FulcrumUnavailable("refused", status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED),
    **{
        code: JobNotClaimable(code, code)
        for code in (ErrorCode.DEADLINE, ErrorCode.JOB_CLAIMED_ELSEWHERE, ErrorCode.JOB_GONE)
    },
}


@cache
def _decide(  # noqa: PLR0917 (the facts on which the outcome depends)
    job: int,
    attempt: int,
    end: str,
    is_stopped: bool,
    is_mapping_reserved: bool,
    has_unused_reservation: bool,
    refused: bool,
) -> Outcome:
    return outcome.outcome_of_attempt(
        orm_job(job, attempt, utc_now() + timedelta(hours=1)),
        ENDS[end],
        stop_reason=StopSignal.LEASE_LOST if is_stopped else None,
        clock_offset_s=0.0,
        is_mapping_reserved=is_mapping_reserved,
        has_unused_reservation=has_unused_reservation,
        has_database_refused_result=refused,
    )


def _is_fence_due(since_renewal: int, has_other_agents: bool) -> bool:
    return fence.must_end_runs(
        "auto", since_renewal * TICK_S, lease_s=LEASE_TICKS * TICK_S, has_other_agents=has_other_agents
    )


def _guard_limit_s(has_other_agents: bool) -> float:
    """Return how many seconds after the last renewal the guards end the runs, whether or not the agent works."""
    return fence.runs_deadline_s("auto", 0.0, lease_s=LEASE_TICKS * TICK_S, has_other_agents=has_other_agents)


def _is_of_earlier_process(owner: str | None, agent: str) -> bool:
    """Return whether a row belongs to the killed process of an agent, as `nodes.boot_ids_of_earlier_processes` does."""
    return owner == f"{agent}'"


def _has_other_agents_after_lost_answer(had_other_agents: bool, has_other_agents: bool) -> bool:
    """Return whether an agent fences after its renewal was stored, if the answer of the database did not reach it.

    An agent begins to fence before the commit (`Fence.try_set_runs_deadline`), but stops to fence only after the
    answer.
    """
    return had_other_agents or has_other_agents


@dataclass(frozen=True)
class Decisions:
    """The functions with which the agents of the model decide."""

    first_request: Callable[..., claim.FirstRequest] = claim.first_request
    require_job_open: Callable[[str | None], None] = claim.require_job_open
    require_claim_by_this_agent: Callable[..., None] = claim.require_claim_by_this_agent
    refusals_after_check: Callable[..., dict[str, refusals.Refusals]] = refusals.refusals_after_check
    is_gone: Callable[[refusals.Refusals], bool] = refusals.is_gone
    decide: Callable[..., Outcome] = _decide
    reaction_to_refusal: Callable[..., report.RefusalReaction] = report.reaction_to_refusal
    status_after_crash: Callable[[int], JobStatus] = reaping.status_after_crash
    is_fence_due: Callable[[int, bool], bool] = _is_fence_due
    guard_limit_s: Callable[[bool], float] = _guard_limit_s
    is_of_earlier_process: Callable[[str | None, str], bool] = _is_of_earlier_process
    has_other_agents_after_lost_answer: Callable[[bool, bool], bool] = _has_other_agents_after_lost_answer
    observe: Callable[..., reaper.LeaseObservation] = reaper.observe_leases
    decide_reaping: Callable[..., reaper.ReapDecision] = reaper.decide_reaping
