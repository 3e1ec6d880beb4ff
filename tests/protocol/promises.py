"""The promises that must hold after every event. R1 to R5 are their numbers in docs/promises.md."""

from __future__ import annotations

from protocol.worker import RUNNING
from protocol.world import Row, Slot, World

from executor.model import SETTLED_REPORT_STATES, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

OPEN = ("Pending", "Processing")


def broken_promise(before: World, after: World) -> str:
    """Return the promise that the event between the two states has broken, or ""."""
    return _broken_by_runs(before, after) or _broken_by_rows(after) or _broken_by_restart(after)


def _runs(world: World) -> list[Slot]:
    return [slot for agent in world.agents for slot in agent.slots if slot.step == RUNNING]


def _broken_by_runs(before: World, after: World) -> str:
    runs = _runs(after)
    if len(runs) > len(_runs(before)):
        if len(runs) > 1:
            return "R2: two runs change one VM at once"
        [run] = runs
        if after.core[run.job].status == "Pending":
            return f"R2: job {run.job + 1} runs before FulcrumCore has accepted its claim"
        if after.core[run.job].status == "Completed":
            return f"R2: job {run.job + 1} runs again after FulcrumCore has its result"
    if after.vms > 1:
        return "R2: the service has two VMs"
    if after.vms and not after.mapping and not runs:
        return "R4: the service's VM has no mapping"
    return ""


def _broken_by_rows(world: World) -> str:
    for number, (row, core_job) in enumerate(zip(world.rows, world.core, strict=True), start=1):
        if core_job.status == "Completed" and (row is None or row.status is not JobStatus.COMPLETED):
            return f"R3: FulcrumCore has job {number} as completed, the agents do not"
        if row is None or row.report not in SETTLED_REPORT_STATES:
            continue
        if core_job.status in OPEN and not _is_given_up_until_deadline(row):
            return f"R1: job {number} is given up while it is {core_job.status} in FulcrumCore"
        if row.report is ReportState.REPORTED and core_job.status != "Deleted":
            expected = ("Completed", None) if row.status is JobStatus.COMPLETED else ("Failed", row.error)
            if core_job != expected:
                return f"R3: the agents' result of job {number} is not the one in FulcrumCore"
    return ""


def _broken_by_restart(world: World) -> str:
    """Return the promise that a restart has broken: the agent may claim the jobs of its killed process at once."""
    alive = {agent.name for agent in world.agents if agent.is_alive}
    for number, row in enumerate(world.rows, start=1):
        if row and row.status is JobStatus.PROCESSING and row.owner and row.owner[1:] and row.owner[0] in alive:
            return f"R5: agent {row.owner[0]} cannot claim job {number} again after its restart"
    return ""


def _is_given_up_until_deadline(row: Row) -> bool:
    """Return whether another installation may have claimed the job. After the deadline, the agents report a failure."""
    return row.error == ErrorCode.JOB_CLAIMED_ELSEWHERE and not row.is_own_claim_given_up


def is_settled(world: World) -> bool:
    """Return whether every job has ended at FulcrumCore, and each row's report is settled."""
    return all(
        (row is None or row.report in SETTLED_REPORT_STATES) and core_job.status not in OPEN
        for row, core_job in zip(world.rows, world.core, strict=True)
    )
