"""Stores how an attempt to process a job ends: the job ends with a result, or is requeued.

Also updates the mapping after a change of the VM. The mapping is the row that says which VM serves which service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from executor.agent.outcome import Ending, MappingChange, Outcome
from executor.database import job_queue, mappings, usage
from executor.database.engine import write_with_retry
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.errors import DatabaseUnavailable, StaleJob, StatementRefused
from executor.log import get_logger
from executor.model import JobResult, MappingState, ReportState
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: Error codes of a failed create after which no VM exists, because the run requested no change from Proxmox, or because
#: Proxmox has removed the incomplete VM. If the run's result contains a VM, a VM may exist in spite of the code.
CODES_WITHOUT_VM = frozenset(
    {
        ErrorCode.CANCELLED,
        ErrorCode.CAPACITY,
        ErrorCode.DEADLINE,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.NOT_FOUND,
        ErrorCode.PVE_AUTH,
        ErrorCode.PVE_PERMISSION,
        ErrorCode.PVE_TLS,
        ErrorCode.SECRET_MISSING,
        ErrorCode.STORAGE_UNAVAILABLE,
        ErrorCode.TASK_FAILED,
        ErrorCode.UNSUPPORTED_ACTION,
        ErrorCode.VM_ID_TAKEN,
        ErrorCode.VM_IDENTITY_MISMATCH,
        ErrorCode.VM_PROTECTED,
    }
)
#: A function that decides how an attempt ends. Its argument says whether the database has refused the first decision.
DecideOutcome = Callable[[bool], Outcome]


def store_outcome(engine: Engine, decide_outcome: DecideOutcome, lease: Lease, mapping: Mapping | None) -> Outcome:
    """Decide and store how an attempt ends; return the stored outcome.

    If the database refuses the outcome, `decide_outcome(True)` returns another outcome, which is stored instead. If
    no outcome were stored, the job would be released, and its playbook would run again and again. Raises StaleJob if
    the lease was lost, DatabaseError if nothing can be stored.
    """
    outcome = decide_outcome(False)
    try:
        _write_outcome(engine, outcome, lease, mapping)
    except StatementRefused:
        log.exception("job_result_refused_by_database")
        outcome = decide_outcome(True)
        _write_outcome(engine, outcome, lease, mapping)
    return outcome


def _write_outcome(engine: Engine, outcome: Outcome, lease: Lease, mapping: Mapping | None) -> None:
    if outcome.ending is Ending.KEEP_ROW_UNCHANGED:  # the lease was lost before the outcome was decided
        raise StaleJob(f"{outcome.reason} (job {lease.job_id})")

    def write(session: Session) -> None:
        if mapping is not None:
            _change_mapping(session, mapping, outcome, lease.job_id)
        if outcome.result is None:
            job_queue.requeue(
                session,
                lease,
                backoff_s=outcome.backoff_s,
                reason=outcome.reason,
                operator_reason=outcome.operator_reason,  # more details, which no tenant may read
                counts_as_attempt=outcome.counts_as_attempt,
            )
        else:
            job_queue.finish(session, lease, outcome.result, report_state_after(outcome))

    write_with_retry(engine, write, on_wait=_log_wait)


def _log_wait(error: DatabaseUnavailable) -> None:
    log.warning("job_end_waits_for_database", reason=str(error).splitlines()[0])


def report_state_after(outcome: Outcome) -> ReportState:
    """Return the report state of a job that ends with this outcome. Pure function.

    The agent sends a report only in the state DUE. The state is CLAIMED_ELSEWHERE if an agent with another database has
    claimed the job (error code JOB_CLAIMED_ELSEWHERE). It is ABANDONED if the agent can never claim the job for another
    reason, for example because FulcrumCore has deleted the job.
    """
    if outcome.ending is not Ending.END_WITHOUT_REPORT:
        return ReportState.DUE
    is_claimed_elsewhere = outcome.result is not None and outcome.result.code is ErrorCode.JOB_CLAIMED_ELSEWHERE
    return ReportState.CLAIMED_ELSEWHERE if is_claimed_elsewhere else ReportState.ABANDONED


def _change_mapping(session: Session, mapping: Mapping, outcome: Outcome, job_id: int) -> None:
    """Change the mapping as the outcome requires.

    The mapping stores how many cores, snapshots and backups and how much memory and disk space its VM uses. Before a
    run, a job reserves what it will add to these amounts. The reserved amounts are added to the mapping after a
    success, and after a failed create that may have made a VM. After a success, the result says how many cores and how
    much memory the VM actually has. The mapping of a create is RESERVED until the create succeeds.
    """
    result = outcome.result
    if outcome.mapping_change is MappingChange.DELETE:
        # The service has no VM with the reserved VMID. The row is kept, with the state DELETED and the reason.
        mappings.mark_reserved_mapping_deleted(session, mapping.id, result.message if result else outcome.reason)
    elif outcome.mapping_change is MappingChange.APPLY_RESULT and result is not None:
        if result.succeeded:
            mappings.apply_result(session, mapping.id, result.vm)
            usage.add_reserved_amounts(session, job_id, mapping.id)
            usage.store_actual_sizes(session, mapping.id, result.vm)
        elif result.code is ErrorCode.VM_NOT_FOUND:
            mappings.mark_vm_lost(session, mapping.id, result.message)
        elif mapping.state == MappingState.RESERVED and not _is_vm_absent(result):
            usage.add_reserved_amounts(session, job_id, mapping.id)


def _is_vm_absent(result: JobResult) -> bool:
    """Return whether a failed create has certainly made no VM.

    If this is not certain, for example because the run's processes were killed (`is_effect_unknown`), a partial clone
    may exist: a clone whose configuration was not finished.
    """
    return not result.vm and not result.is_effect_unknown and result.code in CODES_WITHOUT_VM


def log_outcome(job: Job, mapping: Mapping | None, outcome: Outcome) -> None:
    """Log how an attempt has ended."""
    result = outcome.result
    if result is None:
        backoff_s = round(outcome.backoff_s, 1)
        log.warning(
            "job_requeued", attempt=job.attempt, backoff_s=backoff_s, reason=outcome.operator_reason or outcome.reason
        )
    elif outcome.ending is Ending.END_WITHOUT_REPORT:
        # This event has the same name for both report states, ABANDONED and CLAIMED_ELSEWHERE.
        log.warning("job_abandoned", error_code=result.code, reason=outcome.reason)
    else:
        log.info(
            "job_finished",
            status="completed" if result.succeeded else "failed",
            error_code=result.code,
            error_message=result.message or None,
            operator_detail=_operator_detail(result),
            attempt=job.attempt,
            vmid=mapping.vmid if mapping else None,
            node=result.vm.get("node"),
            duration_s=round((utc_now() - job.received_at).total_seconds(), 2),
        )


def _operator_detail(result: JobResult) -> str | None:
    """Return the error text for the operator; None if the tenant gets the same text."""
    return result.operator_message if result.operator_message != result.message else None
