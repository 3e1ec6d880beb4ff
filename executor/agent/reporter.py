"""Step 7 of 7: the outbox. FulcrumCore hears each outcome until it acknowledges it, and never two different ones.

An answer that says no is not believed before `GET /jobs/{id}` was asked: our earlier report may have been heard.
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
#: Reports sent at the same time: a slow FulcrumCore must not let a burst miss its limit.
SENDERS = 4
LONGEST_PAUSE_S = 60.0
#: Whoever leaves a report wakes us; this is for one whose pause is over.
IDLE_PAUSE_S = 2.0
#: What FulcrumCore keeps of a result as the instance's data. It is replaced whole, so each report tells all it knows.
INSTANCE_DATA = ("vmid", "node", "name", "mac_address", "ip_addresses", "reboot_required", "snapshot", "backup")
#: A completion that answers 500 this often is told as a failure: the instance id is held by a stale service.
PATIENCE_ATTEMPTS = 5


@dataclass(kw_only=True)
class Reporter:
    """Sends what is due."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    _silent_turns: int = 0
    #: Threads that stay: each keeps its connection to FulcrumCore from one report to the next.
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(SENDERS, "report"))
    #: One turn at a time: the last flush of a leaving agent must not send what the loop is just sending.
    _one_turn: threading.Lock = field(default_factory=threading.Lock)

    def turn(self) -> float:
        """Send every due report once; return the seconds until the next turn is worth it."""
        with self._one_turn:
            return self._turn()

    def _turn(self) -> float:
        with reading(self.engine) as session:
            due = outbox.due_reports(session, BATCH_SIZE)
        if not due:
            return IDLE_PAUSE_S
        if any(list(self._senders.map(self._send_one, due))):
            self._silent_turns = 0
            if self.state.fulcrum.note_up():
                self._hasten()
            self.state.poll_wanted.set()  # FulcrumCore shows a group's next job only now
            return 0.0
        self._silent_turns += 1
        return min(2.0 ** min(self._silent_turns, 10), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)

    def flush(self, within_s: float) -> bool:
        """Send what is due before the agent leaves; True when nothing is left."""
        limit = time.monotonic() + within_s
        while time.monotonic() < limit:
            with reading(self.engine) as session:
                if not outbox.due_reports(session, 1):
                    return True
            time.sleep(min(self.turn(), max(limit - time.monotonic(), 0), 1.0))
        return False

    def _hasten(self) -> None:
        with transaction(self.engine) as session:
            outbox.reset_report_backoff(session)

    def _send_one(self, job: Job) -> bool:
        """Report one job; True when FulcrumCore was heard."""
        with bound_contextvars(job_id=job.fulcrum_id, service_id=job.service_id, action=job.action):
            try:
                state, note = self._settle(job)
            except FulcrumUnavailable as error:
                return self._postpone(job, error)
            except FulcrumRefused as refusal:
                # The job moved between two of our questions: the next turn asks again.
                return self._postpone(job, FulcrumUnavailable(str(refusal), status=500))
            crash_points.reached("report_accepted", job.service_id)
            with transaction(self.engine) as session:
                outbox.note_reported(session, job.id, state, note)
            known = state is ReportState.REPORTED
            (log.info if known else log.error)("job_reported", report_state=state, status=job.status, note=note or None)
            return True

    def _postpone(self, job: Job, error: FulcrumUnavailable) -> bool:
        pause_s = min(2.0 ** min(job.report_attempts, 10), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311
        with transaction(self.engine) as session:
            outbox.postpone_report(session, job.id, backoff_s=max(pause_s, error.retry_after_s or 0.0), note=str(error))
        answered_about_this_job = error.status == 500
        if not answered_about_this_job:
            self.state.fulcrum.note_down(str(error))
        elif job.report_attempts == 0:
            log.warning("report_postponed", reason=str(error))
        return answered_about_this_job

    def _settle(self, job: Job) -> tuple[ReportState, str]:
        try:
            return self._deliver(job)
        except FulcrumAuthFailing:
            # On everything: postponed by the error of the next call.
            if self.fulcrum.knows_job(job.fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused the report of a job that it has", status=500) from None
            return ReportState.ABANDONED, "FulcrumCore does not know the job any more, or it is not ours"
        except FulcrumUnavailable as error:
            if error.status == 500 and job.status == JobStatus.COMPLETED and job.report_attempts >= PATIENCE_ATTEMPTS:
                return self._fail_instead(job, f"FulcrumCore cannot store the result: {error}")
            raise

    def _deliver(self, job: Job) -> tuple[ReportState, str]:
        try:
            self._send(job)
        except FulcrumRefused as refusal:
            return self._after_refusal(job, str(refusal))
        return ReportState.REPORTED, ""

    def _send(self, job: Job, *, with_properties: bool = True) -> None:
        if job.status == JobStatus.COMPLETED:
            payload = completion(job, self.state.agent_id)
            if not with_properties:
                payload.pop("properties", None)
            self.fulcrum.complete_job(job.fulcrum_id, **payload)
        else:
            self.fulcrum.fail_job(job.fulcrum_id, job.error_message or f"{ErrorCode.INTERNAL}: no reason was kept")

    def _after_refusal(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        """Let `GET /jobs/{id}` decide what a refusal means."""
        status = self.fulcrum.get_job(job.fulcrum_id).status
        wanted = "Completed" if job.status == JobStatus.COMPLETED else "Failed"
        if status == "Pending":  # never claimed: it can only be ended after a claim
            self.fulcrum.claim_job(job.fulcrum_id)
            self._send(job)
            return ReportState.REPORTED, ""
        if status == "Processing":
            return self._without_what_was_refused(job, refusal)
        if status == wanted and self._may_be_ours(job):
            return ReportState.REPORTED, "an earlier report had been heard"
        return ReportState.ORPHANED, f"FulcrumCore has the job as {status}; the outcome here is kept"

    def _may_be_ours(self, job: Job) -> bool:
        """A Failed job is ours if FulcrumCore holds our text: its own timeout fails jobs too."""
        if job.status == JobStatus.COMPLETED:
            return True
        return self.fulcrum.get_job(job.fulcrum_id).error_message == job.error_message

    def _without_what_was_refused(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        if job.status != JobStatus.COMPLETED:
            raise FulcrumUnavailable(f"the failure was refused: {refusal}", status=500)
        try:
            self._send(job, with_properties=False)
        except FulcrumRefused as again:
            return self._fail_instead(job, f"FulcrumCore refuses the result: {again}")
        return ReportState.REPORTED, f"without properties: {refusal}"

    def _fail_instead(self, job: Job, reason: str) -> tuple[ReportState, str]:
        result = JobResult(succeeded=False, code=ErrorCode.INVALID_REQUEST, detail=reason)
        try:
            self.fulcrum.fail_job(job.fulcrum_id, result.message)
        except FulcrumRefused as refusal:
            return ReportState.ORPHANED, str(refusal)
        with transaction(self.engine) as session:
            outbox.replace_outcome(session, job.id, result)
        return ReportState.REPORTED, reason


def completion(job: Job, agent_id: str) -> dict[str, Any]:
    """Return the members of a `complete` call.

    After an update FulcrumCore replaces the properties by the job's params, so they would be lost: data only.
    The instance id is unique over FulcrumCore's whole database, hence the agent's id before the VMID.
    """
    vm = job.result or {}
    if vm.get("status") == "absent" or "vmid" not in vm:
        return {}
    if job.action == "delete":  # it is kept a while: to FulcrumCore it is gone, and an instance id would be taken back
        return {
            "agent_instance_data": {name: vm[name] for name in ("vmid", "node", "name", "delete_at") if vm.get(name)}
        }
    data = {name: vm[name] for name in INSTANCE_DATA if vm.get(name) not in (None, "", [])}
    payload: dict[str, Any] = {"agent_instance_id": f"{agent_id}/{vm['vmid']}", "agent_instance_data": data}
    if job.action != "update":
        told = {
            "vmid": vm["vmid"],
            "node": vm.get("node"),
            "macAddress": vm.get("mac_address"),
            "ipAddresses": vm.get("ip_addresses"),
            "lastSnapshot": vm.get("snapshot"),
        }
        payload["properties"] = {name: value for name, value in told.items() if value}
    return payload
