"""Step 1 of a job's processing (ARCHITECTURE.md): polls FulcrumCore and stores each pending job as one row."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from executor.agent import crash_points
from executor.agent.state import AgentState
from executor.database import job_queue, queries
from executor.database.engine import reading, transaction
from executor.database.job_queue import NewJob
from executor.database.tables import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreJob
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Number of jobs requested per poll. FulcrumCore sorts jobs by group, so a small page would hold jobs of few groups.
PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
#: Limits of a job's params and service; FulcrumCore has no such limits.
MAX_PAYLOAD_CHARS = 256 * 1024
MAX_DEPTH = 32
#: The interval grows after this many polls without a new job.
IDLE_POLLS = 30
MAX_INTERVAL_S = 10.0


@dataclass(kw_only=True)
class Poller:
    """Runs the critical job GetPendingJobs."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    job_timeout_s: float
    interval_s: float
    only_once: bool = False  #: poll only once, for `smith run --once`
    _page_size: int = PAGE_SIZE
    _idle_polls: int = 0

    def poll_if_allowed(self) -> float | None:
        """Poll, unless the agent accepts no new jobs. Return the seconds until the next call, None for the interval.

        Raises FulcrumUnavailable.
        """
        state = self.state
        if state.draining.is_set() or state.disabled or (self.only_once and state.polls):
            return None
        if state.agent_id and state.polls == 0:
            self.recover_claimed_jobs()
        return self.poll()

    def poll(self) -> float:
        """Store every pending job that has no row yet; return the seconds until the next poll.

        Raises FulcrumUnavailable.
        """
        if not self.state.agent_id:
            return self.interval_s  # the first heartbeat reads the id
        page = self.fulcrum.pending_jobs(limit=self._page_size)
        self.state.fulcrum.note_up()
        for description in page.unusable_items:
            log.warning("pending_job_ignored", reason=description)
        self._page_size = MAX_PAGE_SIZE if len(page.jobs) >= self._page_size else PAGE_SIZE
        new = self._store([job for job in page.jobs if self._is_ours(job)])
        self.state.polls += 1
        self._idle_polls = 0 if new else self._idle_polls + 1
        return self._next_interval_s()

    def recover_claimed_jobs(self) -> int:
        """Store each job that this agent has claimed at FulcrumCore but that has no row; return the number of new rows.

        The rows are missing when the database was lost.
        """
        jobs = self.fulcrum.own_processing_jobs(self.state.agent_id)
        recovered = self._store([job for job in jobs if self._is_ours(job)], already_claimed=True)
        if recovered:
            log.warning("claimed_jobs_recovered", count=recovered)
        return recovered

    def _next_interval_s(self) -> float:
        if self._idle_polls <= IDLE_POLLS:
            return self.interval_s
        return min(self.interval_s * (1 + (self._idle_polls - IDLE_POLLS) / 10), max(MAX_INTERVAL_S, self.interval_s))

    def _is_ours(self, job: CoreJob) -> bool:
        return job.agent_id is None or job.agent_id == self.state.agent_id

    def _store(self, jobs: list[CoreJob], *, already_claimed: bool = False) -> int:
        """Add a row for each job that has none; return the number of new rows."""
        if not jobs:
            return 0
        with reading(self.engine) as session:
            known = queries.known_fulcrum_ids(session, [job.id for job in jobs])
        new = [job for job in jobs if job.id not in known]
        if not new:
            return 0
        with transaction(self.engine) as session:
            written = [job_queue.submit(session, self._row(job, already_claimed)) for job in new]
        crash_points.reached("rows_written")
        count = sum(job_id is not None for job_id in written)
        log.info("jobs_received", count=count)
        self.state.dispatch_requested.set()
        return count

    def _row(self, job: CoreJob, already_claimed: bool) -> NewJob:
        """Return the new row of a job. Its `defect` lists what is invalid; the worker fails such a job."""
        defects = list(job.defects)
        params, problem = within_limits(job.params)
        defects += [f"params {problem}"] if problem else []
        raw_service = job.service.model_dump(mode="json", by_alias=True, exclude_none=True) if job.service else None
        service, problem = within_limits(raw_service)
        defects += [f"service {problem}"] if problem else []
        service_id = _uuid_or_none(job.service.id if job.service else None)
        if service_id is None:
            defects.append("the service is missing or has no valid id")
        created_at = _plausible_time(job.created_at)
        return NewJob(
            fulcrum_id=job.id,
            service_id=service_id,
            group_id=_uuid_or_none(job.service.group_id if job.service else None),
            tenant_id=_uuid_or_none(job.consumer_id or (job.service.consumer_id if job.service else None)),
            action=_printable_action(job.action),
            params=params,
            service=service,
            defect="; ".join(defects)[:500] or None,
            priority=max(-1000, min(job.priority, 1000)),
            core_created_at=created_at,
            deadline_at=created_at + timedelta(seconds=self.job_timeout_s),
            already_claimed=already_claimed,
        )


def within_limits(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return the value and None if it is an object within the limits above, else None and a description of the problem.

    The function is iterative, so deep nesting cannot cause RecursionError.
    """
    if value is None:
        return None, None
    if not isinstance(value, dict):
        return None, "is not an object"
    size = 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        size += len(item) if isinstance(item, str) else 8
        if depth > MAX_DEPTH:
            return None, f"is nested more than {MAX_DEPTH} deep"
        if size > MAX_PAYLOAD_CHARS:
            return None, f"is larger than {MAX_PAYLOAD_CHARS} characters"
        if isinstance(item, float) and not math.isfinite(item):
            return None, "holds a number that is not finite"
        if isinstance(item, dict):
            size += sum(len(key) for key in item)
            pending += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            pending += [(child, depth + 1) for child in item]
    return value, None


def _uuid_or_none(text: Any) -> str | None:
    try:
        return str(uuid.UUID(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def _printable_action(action: str | None) -> str:
    """Return the action's name, cut to 100 characters and made printable, because it is shown and logged."""
    return "".join(char if char.isprintable() else "?" for char in action or "")[:100] or "?"


def _plausible_time(created_at: datetime | None) -> datetime:
    """Return the time if it is within ten years of now, else now."""
    now = utc_now()
    if created_at is None or abs((created_at.astimezone(UTC) - now).total_seconds()) > 10 * 365 * 86400:
        return now
    return created_at.astimezone(UTC)
