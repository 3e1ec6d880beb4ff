"""Step 7 of a job's processing (ARCHITECTURE.md): sends each job's result until FulcrumCore acknowledges the result.

A report is the request that sends the result of a job. The outbox contains the ended jobs whose result FulcrumCore has
not acknowledged. The report of a job in the outbox is due if the report is neither in backoff nor claimed by another
agent process. A claim of a report reserves the report for a short time.

FulcrumCore never accepts a second result of a job: it refuses the report of a job whose status is Completed or Failed.
Then the reporter reads the job with `GET /jobs/{id}`, to find out whether FulcrumCore had accepted an earlier report of
this agent.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

from executor.agent import crash_points
from executor.agent.claim import JOB_GONE_TEXT
from executor.agent.refusals import Http403Counter
from executor.agent.report import RefusalReaction, completion_arguments, reaction_to_refusal
from executor.agent.state import HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED, AgentState  # 500: only one request failed
from executor.database import outbox
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.errors import DatabaseError, FulcrumAuthError, FulcrumError, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.log import get_logger
from executor.model import JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode
from executor.shared.run_until import boottime_s

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum number of reports per round. A round is one call of `send_due_reports`.
BATCH_SIZE = 50
#: Maximum number of reports per round when several agent processes may use the database, so that each process sends
#: some reports.
SHARED_BATCH_SIZE = 12
#: How long an agent process claims the reports of a round on a shared database, so that no other process sends them. If
#: the process is killed, other agent processes send these reports after this time.
REPORT_CLAIM_S = 60.0
#: The share of REPORT_CLAIM_S after which no further report of the round starts, so that each report ends within
#: REPORT_CLAIM_S.
START_SHARE_OF_CLAIM = 0.5
#: Reports are sent in parallel, so that many results arrive before FulcrumCore's job timeout, even when
#: FulcrumCore is slow.
SENDER_THREADS = 4
#: Maximum of the growing backoff of a report, and of the growing wait after rounds in which FulcrumCore answered no
#: report. Two backoffs may be longer: REFUSED_REPORT_BACKOFF_S, and a backoff that FulcrumCore requests.
MAX_BACKOFF_S = 60.0
#: Backoff of a report that FulcrumCore refuses while the job is still processing in FulcrumCore.
REFUSED_REPORT_BACKOFF_S = 600.0
HTTP_TOO_MANY_REQUESTS = 429
#: Maximum exponent of the exponential backoff, to prevent an overflow. MAX_BACKOFF_S limits the result.
MAX_BACKOFF_EXPONENT = 10
#: How long the reporter waits when the outbox contains reports, but none is due. A new result ends the wait early. A
#: report whose backoff ends during the wait is sent after the wait.
BACKOFF_WAIT_S = 2.0
#: How long the reporter waits when the outbox is empty. A new result of this agent process ends the wait early.
#: A report that `smith jobs retry` or another agent process adds to the outbox is sent after the wait.
IDLE_WAIT_S = 5.0
#: Maximum wait between two rounds of `Reporter.flush`, which sends the remaining reports before the agent exits.
MAX_FLUSH_WAIT_S = 1.0
#: When FulcrumCore answers HTTP 500 to the completion of a job more often than this in a row, the job is reported as
#: failed. The most likely cause is that another service in FulcrumCore has the same `agent_instance_id`.
MAX_FAILED_COMPLETIONS = 5


@dataclass(kw_only=True)
class Reporter:
    """Sends the due reports of the outbox."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    #: Counts the requests about a job that FulcrumCore has refused with HTTP 403. A job counts as gone (deleted, or
    #: given to another agent) only after several refusals: FulcrumCore also answers 403 while its database is down.
    http_403_counter: Http403Counter
    clock: Callable[[], float] = boottime_s  #: counts the time while this process or its machine is suspended, too
    _unanswered_round_count: int = 0  #: number of rounds in a row in which FulcrumCore answered no report
    #: For each `job.id`: how many times in a row FulcrumCore has answered HTTP 500 to the completion. The numbers are
    #: only in memory: after a restart of the agent, they start at 0.
    _failed_completion_counts: dict[int, int] = field(default_factory=dict)
    #: Threads are reused, because each thread keeps its connection to FulcrumCore open.
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(SENDER_THREADS, "report"))
    #: Held during each round: `flush`, called at shutdown, must not send a report that the report thread is sending.
    _round_lock: threading.Lock = field(default_factory=threading.Lock)

    def send_due_reports(self) -> float:
        """Send at most BATCH_SIZE due reports, each once. Return the seconds to wait before the next call.

        While an agent with another id in FulcrumCore uses the database, send no report: FulcrumCore would refuse
        reports of the other agent's jobs.
        """
        if not self.state.may_use_database:
            return IDLE_WAIT_S
        with self._round_lock:
            return self._run_round()

    def _run_round(self) -> float:
        if self.state.fulcrum_recovered.is_set():
            self._end_all_backoffs()
        started_at = self.clock()
        due_jobs = self._take_due_reports()
        if not due_jobs:
            with read_only_session(self.engine) as session:
                return BACKOFF_WAIT_S if outbox.has_unacknowledged_reports(session) else IDLE_WAIT_S
        is_fulcrum_down = threading.Event()
        # No report starts after this time, because another process may send the reports when REPORT_CLAIM_S has passed.
        latest_start = started_at + REPORT_CLAIM_S * START_SHARE_OF_CLAIM if self._shares_database else float("inf")
        answered_flags = list(
            self._senders.map(
                lambda job: self._report_unless_fulcrum_down(job, is_fulcrum_down, latest_start), due_jobs
            )
        )
        if self._shares_database and not all(answered_flags):
            # Of `due_jobs`, only the unsent reports still have a claim that this call can release. A sent report has a
            # new state or a backoff instead.
            with transaction(self.engine) as session:
                outbox.release_reports(session, due_jobs)
        if any(answered_flags):
            self._unanswered_round_count = 0
            self.state.fulcrum_link.record_answer()  # ends a recorded outage of FulcrumCore
            # FulcrumCore lists the next job of a group of services only after the report of the group's previous job.
            self.state.poll_requested.set()
            return 0.0
        self._unanswered_round_count += 1
        return _backoff_s(self._unanswered_round_count)

    @property
    def _shares_database(self) -> bool:
        """True if other agent processes may use the database. Only one agent process uses an SQLite database."""
        return self.engine.dialect.name != "sqlite"

    def _take_due_reports(self) -> Sequence[Job]:
        """Return the due reports of this round. On a shared database, claim them for REPORT_CLAIM_S."""
        if not self._shares_database:
            with read_only_session(self.engine) as session:
                return outbox.jobs_with_due_report(session, BATCH_SIZE)
        with transaction(self.engine) as session:
            return outbox.claim_due_reports(session, SHARED_BATCH_SIZE, claim_duration_s=REPORT_CLAIM_S)

    def flush(self, timeout_s: float) -> bool:
        """Send reports until no report is due or `timeout_s` has passed; return True when no report is due."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with read_only_session(self.engine) as session:
                if not outbox.jobs_with_due_report(session, limit=1):
                    return True
            requested_wait_s = self.send_due_reports()
            time_left_s = max(deadline - time.monotonic(), 0)
            time.sleep(min(requested_wait_s, time_left_s, MAX_FLUSH_WAIT_S))
        return False

    def _end_all_backoffs(self) -> None:
        """End the backoff of all postponed reports, because FulcrumCore answers again after an outage.

        After a database error, the event `fulcrum_recovered` is set again, so that the next round tries again.
        """
        self.state.fulcrum_recovered.clear()
        try:
            with transaction(self.engine) as session:
                outbox.end_report_backoffs(session)
        except DatabaseError:
            self.state.fulcrum_recovered.set()
            raise
        self._unanswered_round_count = 0

    def _report_unless_fulcrum_down(self, job: Job, is_fulcrum_down: threading.Event, latest_start: float) -> bool:
        """Report one job. Return True when FulcrumCore answered.

        Send no report if a report of this round got no answer, or if `state.stopping` is set. An exiting agent sets
        `state.stopping` after `flush`. Send no report after `latest_start` (a time of `clock`). This time may pass
        while the process is suspended or FulcrumCore is slow. A report that is not sent stays due.
        """
        if is_fulcrum_down.is_set() or self.state.stopping.is_set() or self.clock() >= latest_start:
            return False
        has_answered = self._report_and_store_state(job)
        if not has_answered:
            is_fulcrum_down.set()
        return has_answered

    def _report_and_store_state(self, job: Job) -> bool:
        """Report one job and store its report state, or postpone the report. Return True when FulcrumCore answered."""
        with bound_contextvars(job_id=job.fulcrum_id, service_id=job.service_id, action=job.action):
            try:
                report_state, note = self._report_result(job)
            except FulcrumUnavailable as error:
                return self._postpone_report(job, error)
            except FulcrumRefused as refusal:
                # FulcrumCore has refused a request of `_handle_refusal`, probably because the job's status there
                # changed after the refused report. So the report is retried.
                # HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED (HTTP 500) is set here, as if FulcrumCore had answered 500.
                # It means that only this request failed: there is no outage.
                return self._postpone_report(
                    job, FulcrumUnavailable(str(refusal), status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED)
                )
            crash_points.crash_if_requested("report_accepted", job.service_id)  # only tests request a crash
            with transaction(self.engine) as session:
                outbox.set_report_state(session, job.id, report_state, note, epoch=job.epoch)
            log_report = log.info if report_state is ReportState.REPORTED else log.error
            log_report("job_reported", report_state=report_state, status=job.status, note=note or None)
            return True

    def _postpone_report(self, job: Job, error: FulcrumUnavailable) -> bool:
        """Store a backoff for the report. Return True if FulcrumCore is up and only this report failed."""
        backoff_s = max(_backoff_s(job.report_attempts), error.retry_after_s or 0.0)
        with transaction(self.engine) as session:
            outbox.postpone_report(session, job.id, backoff_s=backoff_s, note=str(error), epoch=job.epoch)
        # HTTP 429 is not recorded as an outage, because the end of an outage ends all backoffs, also the backoff that
        # FulcrumCore requests with HTTP 429.
        concerns_only_this_report = error.status in (HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED, HTTP_TOO_MANY_REQUESTS)
        if not concerns_only_this_report:
            has_refused_credentials = isinstance(error, FulcrumAuthError)
            self.state.fulcrum_link.record_failed_call(str(error), has_refused_credentials=has_refused_credentials)
        elif job.report_attempts == 0:
            log.warning("report_postponed", reason=str(error))
        return concerns_only_this_report

    def _report_result(self, job: Job) -> tuple[ReportState, str]:
        """Report the job; return its report state and a note for operators.

        Raises FulcrumError when the report must be retried.
        """
        try:
            outcome = self._send_or_handle_refusal(job)
            self._failed_completion_counts.pop(job.id, None)
            return outcome
        except FulcrumAuthError:
            # Raises FulcrumUnavailable if FulcrumCore does not accept the agent's token, or while it is not certain
            # that the job is gone. Then the report is postponed.
            # `refused_request` completes the error text "FulcrumCore refused to …".
            self.http_403_counter.require_job_gone(job.fulcrum_id, refused_request="accept the report")
            return ReportState.ABANDONED, JOB_GONE_TEXT  # the report is not sent again
        except FulcrumUnavailable as error:
            has_completion_failed = (
                error.status == HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED and job.status == JobStatus.COMPLETED
            )
            earlier_failure_count = self._failed_completion_counts.pop(job.id, 0)
            if has_completion_failed and earlier_failure_count >= MAX_FAILED_COMPLETIONS:
                self._failed_completion_counts[job.id] = earlier_failure_count  # kept if the next call raises
                outcome = self._report_failure_instead(job, error)
                del self._failed_completion_counts[job.id]
                return outcome
            if has_completion_failed:
                self._failed_completion_counts[job.id] = earlier_failure_count + 1
            raise

    def _send_or_handle_refusal(self, job: Job) -> tuple[ReportState, str]:
        """Send the report; return its report state and a note."""
        try:
            self._send_result(job)
        except FulcrumRefused as refusal:
            return self._handle_refusal(job, str(refusal))
        return ReportState.REPORTED, ""

    def _send_result(self, job: Job, *, should_send_properties: bool = True) -> None:
        """Send the job's completion or failure to FulcrumCore."""
        if job.status == JobStatus.COMPLETED:
            arguments = completion_arguments(job, self.state.agent_id)
            if not should_send_properties:
                arguments.pop("properties", None)
            self.fulcrum.complete_job(job.fulcrum_id, **arguments)
        else:
            self.fulcrum.fail_job(job.fulcrum_id, job.error_message or f"{ErrorCode.INTERNAL}: no reason was stored")

    def _handle_refusal(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        """React to a refused report: the job's status at FulcrumCore determines the reaction."""
        fulcrum_job = self.fulcrum.get_job(job.fulcrum_id)
        reaction = reaction_to_refusal(
            is_completion=job.status == JobStatus.COMPLETED,
            error_message=job.error_message,
            status_at_fulcrum=fulcrum_job.status,
            error_at_fulcrum=fulcrum_job.error_message,
        )
        if reaction is RefusalReaction.CLAIM_AND_SEND:  # the job is pending in FulcrumCore, which has lost the claim
            self.fulcrum.claim_job(job.fulcrum_id)
            self._send_result(job)
            return ReportState.REPORTED, ""
        if reaction is RefusalReaction.SEND_WITHOUT_PROPERTIES:
            return self._send_without_properties(job, refusal)
        if reaction is RefusalReaction.SETTLE_AS_REPORTED:
            return ReportState.REPORTED, "FulcrumCore had accepted an earlier report"
        end_text = f"FulcrumCore has ended the job itself ({fulcrum_job.status})"
        return ReportState.ENDED_BY_FULCRUM, f"{end_text}; the agent's result is only in the agent's database"

    def _send_without_properties(self, job: Job, refusal: str) -> tuple[ReportState, str]:
        """Complete the job without the service's properties, which probably caused the refusal.

        If FulcrumCore refuses the report without properties, too, report the job as failed.

        If the refused report was the report of a failed job, it had no properties. Then send nothing, and raise the
        exception that postpones the report.
        """
        if job.status != JobStatus.COMPLETED:
            raise _error_for_refused_report("the report of the failure", refusal)
        try:
            self._send_result(job, should_send_properties=False)
        except FulcrumRefused as second_refusal:
            return self._report_failure_instead(job, second_refusal)
        return ReportState.REPORTED, f"reported without properties: {refusal}"

    def _report_failure_instead(self, job: Job, cause: FulcrumError) -> tuple[ReportState, str]:
        """Report the job as failed, because FulcrumCore does not accept the completion.

        The failure replaces the job's stored result.

        FulcrumCore's own text is stored only in the report's note for operators, because it may contain SQL, paths or
        names.
        """
        detail = f"FulcrumCore does not accept the result of the job (HTTP {cause.status})"
        result = JobResult(succeeded=False, code=ErrorCode.RESULT_REFUSED, detail=detail)
        try:
            self.fulcrum.fail_job(job.fulcrum_id, result.message)
        except FulcrumRefused as refusal:
            raise _error_for_refused_report("the result, and then the report of a failure", str(refusal)) from None
        with transaction(self.engine) as session:
            outbox.replace_result(session, job.id, result, epoch=job.epoch)
        return ReportState.REPORTED, str(cause)


def _error_for_refused_report(refused_report: str, refusal: str) -> FulcrumUnavailable:
    """Return the exception that postpones a report for REFUSED_REPORT_BACKOFF_S.

    Only a change in FulcrumCore can make the report succeed. The report is sent again and again, because the job is
    still processing in FulcrumCore, and blocks its service and its group.
    """
    text = f"FulcrumCore refused {refused_report}: {refusal}"
    return FulcrumUnavailable(
        text, status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED, retry_after_s=REFUSED_REPORT_BACKOFF_S
    )


def _backoff_s(failure_count: int) -> float:
    """Return a wait that grows with the number of failures, with jitter."""
    max_backoff_s = min(2.0 ** min(failure_count, MAX_BACKOFF_EXPONENT), MAX_BACKOFF_S)
    return max_backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a secret)
