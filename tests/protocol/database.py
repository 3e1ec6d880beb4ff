"""The model of the database: what the statements of `job_queue`, `outbox` and `mappings` do with a row."""

from __future__ import annotations

from protocol.decisions import Decisions
from protocol.world import LEASE_TICKS, Row, Slot, World, with_row

from executor.agent.outcome import MappingChange, Outcome
from executor.agent.outcome_store import report_state_after
from executor.database.reopening import CODES_WITHOUT_RESULT
from executor.model import SETTLED_REPORT_STATES, JobResult, JobStatus, MappingState, ReportState
from executor.shared.error_codes import ErrorCode


def claim(row: Row, owner: str) -> Row:
    return row._replace(
        status=JobStatus.PROCESSING, owner=owner, epoch=row.epoch + 1, attempt=row.attempt + 1, lease=LEASE_TICKS
    )


def has_lease(world: World, owner: str, slot: Slot) -> bool:
    row = world.rows[slot.job]
    return row is not None and row.status is JobStatus.PROCESSING and (row.owner, row.epoch) == (owner, slot.epoch)


def note_claim_sent(row: Row) -> Row:
    return row._replace(is_claim_sent=True)


def note_claim_accepted(row: Row) -> Row:
    return row._replace(is_claimed=True)


def note_started(row: Row) -> Row:
    return row._replace(is_started=True)


def finish(row: Row, result: JobResult, state: ReportState = ReportState.DUE) -> Row:
    status = JobStatus.COMPLETED if result.succeeded else JobStatus.FAILED
    return row._replace(status=status, lease=0, report=state, error=result.code)


def requeue(row: Row, *, counts_as_attempt: bool = True) -> Row:
    attempt = row.attempt if counts_as_attempt else row.attempt - 1
    return row._replace(status=JobStatus.PENDING, owner=None, lease=0, attempt=attempt)


def reap_or_release_row(row: Row, decisions: Decisions) -> Row:
    """Reap or release the job."""
    crashes = row.crashes + 1
    status = decisions.status_after_crash(crashes)
    ended = row._replace(status=status, owner=None, lease=0, crashes=crashes, epoch=row.epoch + 1)
    if status is JobStatus.PENDING:
        return ended
    return ended._replace(report=ReportState.DUE, error=ErrorCode.QUARANTINED)


def reap_or_release(world: World, job: int, decisions: Decisions) -> World:
    row = world.rows[job]
    assert row is not None
    return with_row(world, job, reap_or_release_row(row, decisions))


def reopen(row: Row, *, are_claimed_at_fulcrum: bool) -> Row:
    if row.report not in SETTLED_REPORT_STATES:
        return row
    is_claimed_elsewhere = row.error == ErrorCode.JOB_CLAIMED_ELSEWHERE
    if are_claimed_at_fulcrum and is_claimed_elsewhere:  # the deadline may have passed at any time
        return row._replace(report=ReportState.DUE)
    is_abandoned = row.report in (ReportState.ABANDONED, ReportState.CLAIMED_ELSEWHERE)
    has_no_result = is_abandoned and (not row.is_started or row.error in CODES_WITHOUT_RESULT)
    if not has_no_result:
        return row._replace(report=ReportState.DUE)
    return row._replace(
        status=JobStatus.PENDING,
        report=ReportState.NONE,
        error=None,
        owner=None,
        lease=0,
        is_claim_sent=row.is_claim_sent and not is_claimed_elsewhere,
        is_claimed=are_claimed_at_fulcrum,
        epoch=row.epoch + 1,
    )


def set_report_state(row: Row, state: ReportState) -> Row:
    return row._replace(report=state) if row.report is ReportState.DUE else row


def replace_result(row: Row, code: ErrorCode) -> Row:
    return row._replace(status=JobStatus.FAILED, error=code) if row.report is ReportState.DUE else row


def store_outcome(world: World, slot: Slot, outcome: Outcome) -> World:
    """Store how an attempt ends, as `outcome_store` does in one transaction."""
    row = world.rows[slot.job]
    assert row is not None
    if outcome.mapping_change is MappingChange.DELETE and world.mapping == MappingState.RESERVED:
        world = world._replace(mapping="")
    elif outcome.mapping_change is MappingChange.APPLY_RESULT and outcome.result and outcome.result.succeeded:
        world = world._replace(mapping=MappingState.ACTIVE if world.mapping else "")
    if outcome.result is None:
        return with_row(world, slot.job, requeue(row, counts_as_attempt=outcome.counts_as_attempt))
    ended = finish(row, outcome.result, report_state_after(outcome))
    is_own_claim_given_up = slot.was_sent and ended.error == ErrorCode.JOB_CLAIMED_ELSEWHERE
    return with_row(world, slot.job, ended._replace(is_own_claim_given_up=is_own_claim_given_up))
