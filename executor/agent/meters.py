"""Counts the attempts to process jobs, and measures their durations, for Prometheus.

In a new process, each counter starts at 0, as Prometheus expects. No label contains the id of a job, a service or a VM,
so the number of series stays small. The metrics of VMs, which are sent to FulcrumCore, are in metrics.py.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from executor.database import queries
from executor.database.engine import read_only_session
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.errors import DatabaseError
from executor.model import JobStatus, ReportState
from executor.runs.actions import ACTION_PATTERN
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: Without this call, each counter would have a second series with its creation time.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the function has no type annotations

#: Maximum number of actions that get a label value of their own. This maximum limits the number of series, because a
#: service type may define any number of actions. All further actions have the label value OTHER_ACTIONS.
MAX_LABELLED_ACTIONS = 32
OTHER_ACTIONS = "other"
#: The buckets range from one second, the duration of the action `start`, to more than FulcrumCore's default job timeout
#: of five minutes.
DURATION_BUCKETS_S = (1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 180, 300, 600)
WAIT_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)


class PrometheusMetrics:
    """Holds the Prometheus counters and histograms of one agent process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ended_attempts = Counter(
            "smith_jobs",
            "Ended attempts to process a job, by outcome: completed, failed, put_back (the job was requeued), "
            "abandoned (FulcrumCore had ended or deleted the job, or an agent with another database had claimed it), "
            "lost (the lease of the job was lost, or the end of the attempt could not be stored)",
            ["action", "outcome"],
            registry=self.registry,
        )
        self._failed_jobs = Counter("smith_job_errors", "Failed jobs by error code", ["code"], registry=self.registry)
        self._attempt_duration = Histogram(
            "smith_job_duration_seconds",
            "Time from the start of an attempt until its end is stored",
            ["action"],
            buckets=DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._queue_wait = Histogram(
            "smith_queue_wait_seconds",
            "Time from the poll that stored a job to the start of its first attempt",
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._labelled_actions: set[str] = set()  #: the actions that have a label value of their own
        self._lock = threading.Lock()

    def record_queue_wait(self, job: Job) -> None:
        """Record how long a job has waited. Called at the start of each attempt; has an effect only at the first."""
        # If FulcrumCore does not answer in the first attempt, the next attempt also gets the number 1 (`job.attempt`).
        # `claim_sent_at` is set if an earlier attempt has tried to claim the job at FulcrumCore.
        is_first_start = job.attempt == 1 and job.claim_sent_at is None
        if is_first_start:
            waited_s = (utc_now() - job.received_at).total_seconds()
            self._queue_wait.observe(max(waited_s, 0.0))

    def count_ended_attempt(self, engine: Engine, job: Job, duration_s: float) -> None:
        """Count an ended attempt of `job`. Its outcome is read from the job's row in the database."""
        stored_job: Job | None = None
        try:
            with read_only_session(engine) as session:
                stored_job = queries.get_job(session, job.id)
        except DatabaseError:
            pass  # the database has probably not stored the end of the job either; so the attempt counts as lost
        action = self._action_label(job.action, stored_job)
        self._ended_attempts.labels(action=action, outcome=_outcome_label(stored_job)).inc()
        self._attempt_duration.labels(action=action).observe(duration_s)
        if stored_job is not None and stored_job.status == JobStatus.FAILED and stored_job.error_code:
            self._failed_jobs.labels(code=stored_job.error_code).inc()

    def _action_label(self, action: str, stored_job: Job | None) -> str:
        """Return the label value for an action: its name, or OTHER_ACTIONS.

        OTHER_ACTIONS stands for all actions without a playbook or with an invalid name (ACTION_PATTERN), and for every
        further action when MAX_LABELLED_ACTIONS actions have a label value of their own.
        """
        has_no_playbook = stored_job is not None and stored_job.error_code == ErrorCode.UNSUPPORTED_ACTION
        if has_no_playbook or not ACTION_PATTERN.match(action):
            return OTHER_ACTIONS
        with self._lock:
            if len(self._labelled_actions) < MAX_LABELLED_ACTIONS:
                self._labelled_actions.add(action)
            return action if action in self._labelled_actions else OTHER_ACTIONS


def _outcome_label(stored_job: Job | None) -> str:
    """Return the outcome of an attempt from the job's row. The help text of `smith_jobs` explains the outcomes."""
    if stored_job is None or stored_job.status == JobStatus.PROCESSING:
        return "lost"
    if stored_job.status == JobStatus.PENDING:
        return "put_back"
    # A completed job counts as completed, even if it was deleted in FulcrumCore before the report.
    is_abandoned = stored_job.report_state in (ReportState.ABANDONED, ReportState.CLAIMED_ELSEWHERE)
    if is_abandoned and stored_job.status == JobStatus.FAILED:
        return "abandoned"
    return str(stored_job.status)
