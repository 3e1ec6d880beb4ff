"""Step 7 of a job's processing (ARCHITECTURE.md): sends each job's result until FulcrumCore acknowledges it.

FulcrumCore refuses the report of a job whose status it has already changed to Completed or Failed. Then the reporter
reads the job with `GET /jobs/{id}`, to find out whether FulcrumCore had accepted an earlier report of this agent.
FulcrumCore never accepts two different results of one job. The outbox contains the ended jobs whose result FulcrumCore
has not acknowledged.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bound_contextvars

from executor.agent import crash_points
from executor.agent.state import AgentState
from executor.database import outbox
from executor.database.engine import reading, transaction
from executor.database.tables import Job
from executor.errors import ErrorCode, FulcrumAuthFailing, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.log import get_logger
from executor.model import JobResult, JobStatus, ReportState

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

BATCH_SIZE = 50
#: Number of parallel reports: with a slow FulcrumCore a burst of results must still arrive before the job timeout.
SENDERS = 4
MAX_BACKOFF_S = 60.0
#: How long the reporter waits when no report is due. A new result ends the wait; the end of a backoff does not.
IDLE_WAIT_S = 2.0
#: Keys of a run's result that are sent as `agentInstanceData`. FulcrumCore replaces all of that data at each report.
INSTANCE_DATA = ("vmid", "node", "name", "mac_address", "ip_addresses", "reboot_required", "snapshot", "backup")
#: After this many HTTP 500 responses to its completion, a job is reported as failed. The most likely cause is that
#: another service has the same instance id.
MAX_COMPLETIONS = 5


@dataclass(kw_only=True)
class Reporter:
    """Sends the due reports of the outbox."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    _unanswered_rounds: int = 0  #: rounds in a row in which FulcrumCore answered no report
    #: Threads are reused, because each thread keeps its connection to FulcrumCore open.
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(SENDERS, "report"))
    #: One round at a time: the flush at shutdown must not send a report that the loop is sending.
    _send_lock: threading.Lock = field(default_factory=threading.Lock)

    def send_due_reports(self) -> float:
        """Send every due report once; return the seconds to wait before the next call."""
        with self._send_lock:
            return self._send_due_reports()

    def _send_due_reports(self) -> float:
        with reading(self.engine) as session:
            due = outbox.due_reports(session, BATCH_SIZE)
        if not due:
            return IDLE_WAIT_S
        if any(list(self._senders.map(self._send_one, due))):
            self._unanswered_rounds = 0
            if self.state.fulcrum.note_up():
                self._reset_backoff()
            self.state.poll_requested.set()  # FulcrumCore may list the group's next job now
            return 0.0
        self._unanswered_rounds += 1
        return min(2.0 ** min(self._unanswered_rounds, 10), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)

    def flush(self, within_s: float) -> bool:
        """Send reports until none is due or the time has passed; return True when none is due."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with reading(self.engine) as session:
                if not outbox.due_reports(session, 1):
                    return True
            time.sleep(min(self.send_due_reports(), max(deadline - time.monotonic(), 0), 1.0))
        return False

    def _reset_backoff(self) -> None:
        with transaction(self.engine) as session:
            outbox.reset_report_backoff(session)

    def _send_one(self, job: Job) -> bool:
        """Report one job and store its report state, or postpone the report. Return True when FulcrumCore answered."""
        with bound_contextvars(job_id=job.fulcrum_id, service_id=job.service_id, action=job.action):
            try:
                state, note = self._settle(job)
            except FulcrumUnavailable as error:
                return self._postpone(job, error)
            except FulcrumRefused as refusal:
                # The job's status at FulcrumCore changed between two of our requests, so the report is retried.
                return self._postpone(job, FulcrumUnavailable(str(refusal), status=500))
            crash_points.reached("report_accepted", job.service_id)
            with transaction(self.engine) as session:
                outbox.note_reported(session, job.id, state, note)
            is_accepted = state is ReportState.REPORTED
            (log.info if is_accepted else log.error)(
                "job_reported", report_state=state, status=job.status, note=note or None
            )
            return True

    def _postpone(self, job: Job, error: FulcrumUnavailable) -> bool:
        """Store a backoff for the report. Return True when only this report failed (HTTP 500)."""
        backoff_s = min(2.0 ** min(job.report_attempts, 10), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        with transaction(self.engine) as session:
            outbox.postpone_report(
                session, job.id, backoff_s=max(backoff_s, error.retry_after_s or 0.0), note=str(error)
            )
        is_only_this_report = error.status == 500
        if not is_only_this_report:
            self.state.fulcrum.note_down(str(error))
        elif job.report_attempts == 0:
            log.warning("report_postponed", reason=str(error))
        return is_only_this_report

    def _settle(self, job: Job) -> tuple[ReportState, str]:
        """Report the job; return its report state and a note. Raises FulcrumError when the report must be retried."""
        try:
            return self._deliver(job)
        except FulcrumAuthFailing:
            # When FulcrumCore answers 403 to every request, `knows_job` raises, and the report is postponed.
            if self.fulcrum.knows_job(job.fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused the report of a job that it has", status=500) from None
            return ReportState.ABANDONED, "FulcrumCore does not know the job any more, or it is not ours"
        except FulcrumUnavailable as error:
            if error.status == 500 and job.status == JobStatus.COMPLETED and job.report_attempts >= MAX_COMPLETIONS:
                return self._fail_instead(job, f"FulcrumCore cannot store the result: {error}")
            raise

    def _deliver(self, job: Job) -> tuple[ReportState, str]:
        """Send the report, and react to a refusal."""
        try:
            self._send(job)
        except FulcrumRefused as refusal:
            return self._after_refusal(job, str(refusal))
        return ReportState.REPORTED, ""

    def _send(self, job: Job, *, with_properties: bool = True) -> None:
        """Call `complete` or `fail` of the job."""
        if job.status == JobStatus.COMPLETED:
            payload = completion(job, self.state.agent_id)
            if not with_properties:
                payload.pop("properties", None)
            self.fulcrum.complete_job(job.fulcrum_id, **payload)
        else:
            self.fulcrum.fail_job(job.fulcrum_id, job.error_message or f"{ErrorCode.INTERNAL}: no reason was kept")

    def _after_refusal(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        """Read the job's status from FulcrumCore, and decide by that what to do after a refused report."""
        status = self.fulcrum.get_job(job.fulcrum_id).status
        expected = "Completed" if job.status == JobStatus.COMPLETED else "Failed"
        if status == "Pending":  # the claim was lost, and only a claimed job can be completed or failed
            self.fulcrum.claim_job(job.fulcrum_id)
            self._send(job)
            return ReportState.REPORTED, ""
        if status == "Processing":
            return self._send_without_properties(job, refusal)
        if status == expected and self._is_our_result(job):
            return ReportState.REPORTED, "FulcrumCore had accepted an earlier report"
        return ReportState.OVERTAKEN, f"FulcrumCore has the job as {status}; our row keeps its own result"

    def _is_our_result(self, job: Job) -> bool:
        """True when FulcrumCore stores the result that this agent has sent.

        False when FulcrumCore failed the job itself after the job timeout: the error message is then another one.
        """
        if job.status == JobStatus.COMPLETED:
            return True
        return self.fulcrum.get_job(job.fulcrum_id).error_message == job.error_message

    def _send_without_properties(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        """Complete the job without properties, which may have caused the refusal. Fail it after a second refusal."""
        if job.status != JobStatus.COMPLETED:
            raise FulcrumUnavailable(f"the failure was refused: {refusal}", status=500)
        try:
            self._send(job, with_properties=False)
        except FulcrumRefused as second_refusal:
            return self._fail_instead(job, f"FulcrumCore refuses the result: {second_refusal}")
        return ReportState.REPORTED, f"reported without properties: {refusal}"

    def _fail_instead(self, job: Job, reason: str) -> tuple[ReportState, str]:
        """Report and store a failure as the job's result, because FulcrumCore does not accept the completion."""
        result = JobResult(succeeded=False, code=ErrorCode.INVALID_REQUEST, detail=reason)
        try:
            self.fulcrum.fail_job(job.fulcrum_id, result.message)
        except FulcrumRefused as refusal:
            return ReportState.OVERTAKEN, str(refusal)
        with transaction(self.engine) as session:
            outbox.replace_result(session, job.id, result)
        return ReportState.REPORTED, reason


def completion(job: Job, agent_id: str) -> dict[str, Any]:
    """Return the arguments of `FulcrumClient.complete_job`.

    After an update the arguments contain no properties, because FulcrumCore sets the service's properties to the job's
    params and would discard the reported ones. The instance id contains the agent's id, because an instance id must be
    unique in FulcrumCore's whole database.
    """
    vm = job.result or {}
    if vm.get("status") == "absent" or "vmid" not in vm:
        return {}
    if job.action == "delete":  # the VM may stay for a grace period, but the ended service must get no instance id
        return {
            "agent_instance_data": {name: vm[name] for name in ("vmid", "node", "name", "delete_at") if vm.get(name)}
        }
    data = {name: vm[name] for name in INSTANCE_DATA if vm.get(name) not in (None, "", [])}
    payload: dict[str, Any] = {"agent_instance_id": f"{agent_id}/{vm['vmid']}", "agent_instance_data": data}
    if job.action != "update":
        reported = {
            "vmid": vm["vmid"],
            "node": vm.get("node"),
            "macAddress": vm.get("mac_address"),
            "ipAddresses": vm.get("ip_addresses"),
            "lastSnapshot": vm.get("snapshot"),
        }
        payload["properties"] = {name: value for name, value in reported.items() if value}
    return payload
