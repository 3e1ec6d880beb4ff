"""Counts and times jobs for Prometheus.

The values start at 0 in each process, which Prometheus expects. No label contains the id of a job, a service or a VM,
so the number of series stays small.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from executor.database import queries
from executor.database.engine import reading
from executor.database.tables import Job, utc_now
from executor.errors import DatabaseError, ErrorCode
from executor.model import JobStatus, ReportState
from executor.runs.actions import ACTION_PATTERN

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: Without this call, each counter would have a second series with its creation time.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types

#: Maximum number of actions that get their own label value, because a service type may define any number of actions.
#: Further actions are counted as OTHER.
MAX_ACTIONS = 32
OTHER = "other"
#: From one second (the action `start`) to above FulcrumCore's default job timeout of five minutes.
DURATION_BUCKETS_S = (1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 180, 300, 600)
WAIT_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)


class Meters:
    """Holds the counters of one agent process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._jobs = Counter(
            "smith_jobs",
            "Ended attempts by outcome: completed, failed, put_back (requeued), abandoned (FulcrumCore had ended the "
            "job), lost (the lease was lost, or the end could not be stored)",
            ["action", "outcome"],
            registry=self.registry,
        )
        self._errors = Counter("smith_job_errors", "Failed jobs by error code", ["code"], registry=self.registry)
        self._duration = Histogram(
            "smith_job_duration_seconds",
            "Time from the start of an attempt until its end is stored",
            ["action"],
            buckets=DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._wait = Histogram(
            "smith_queue_wait_seconds",
            "Time from the poll that stored a job to the start of its first attempt",
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._actions: set[str] = set()
        self._lock = threading.Lock()

    def note_started(self, job: Job) -> None:
        """Record how long a job has waited, at the start of its first attempt."""
        if job.attempt == 1:
            self._wait.observe(max((utc_now() - job.received_at).total_seconds(), 0.0))

    def note_ended(self, engine: Engine, job: Job, took_s: float) -> None:
        """Count an ended attempt. The job's row says with which outcome it ended."""
        row: Job | None = None
        try:
            with reading(engine) as session:
                row = queries.get_job(session, job.id)
        except DatabaseError:
            pass  # the end of the job could not be stored either, so the attempt counts as lost
        action = self._action(job.action, row)
        self._jobs.labels(action=action, outcome=_outcome(row)).inc()
        self._duration.labels(action=action).observe(took_s)
        if row is not None and row.status == JobStatus.FAILED and row.error_code:
            self._errors.labels(code=row.error_code).inc()

    def _action(self, action: str, row: Job | None) -> str:
        """Return the label value for an action: its name if it has a playbook, for at most MAX_ACTIONS names."""
        if not ACTION_PATTERN.match(action) or (row is not None and row.error_code == ErrorCode.UNSUPPORTED_ACTION):
            return OTHER
        with self._lock:
            if len(self._actions) < MAX_ACTIONS:
                self._actions.add(action)
            return action if action in self._actions else OTHER


def _outcome(row: Job | None) -> str:
    if row is None or row.status == JobStatus.PROCESSING:
        return "lost"
    if row.status == JobStatus.PENDING:
        return "put_back"
    if row.report_state == ReportState.ABANDONED and row.status == JobStatus.FAILED:
        return "abandoned"
    return str(row.status)
