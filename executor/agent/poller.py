"""Step 1 of 7: FulcrumCore's pending jobs become rows; polling the same job twice writes one."""

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

#: Jobs asked for at once; FulcrumCore sorts by group, so a short list would favour some tenants for ever.
PAGE_SIZE = 100
LARGEST_PAGE = 1000
#: Bounds of what is stored of one job. FulcrumCore itself bounds nothing.
MAX_PAYLOAD_CHARS = 256 * 1024
MAX_DEPTH = 32
#: Polls without a new job before the pause between them grows.
IDLE_POLLS = 30
LONGEST_PAUSE_S = 10.0


@dataclass(kw_only=True)
class Poller:
    """Asks FulcrumCore for work."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    job_timeout_s: float
    interval_s: float
    only_once: bool = False  #: `smith run --once`
    _page_size: int = PAGE_SIZE
    _idle_polls: int = 0

    def turn(self) -> float | None:
        """Poll unless no new job may be claimed; return the seconds until the next turn, None for the interval.

        Raises FulcrumUnavailable.
        """
        state = self.state
        if state.draining.is_set() or state.disabled or (self.only_once and state.polls):
            return None
        if state.agent_id and state.polls == 0:
            self.recover_claimed_jobs()
        return self.poll()

    def poll(self) -> float:
        """Write every pending job that has no row yet; return the seconds until the next poll.

        Raises FulcrumUnavailable.
        """
        if not self.state.agent_id:
            return self.interval_s  # the first heartbeat tells who we are
        answer = self.fulcrum.pending_jobs(limit=self._page_size)
        self.state.fulcrum.note_up()
        for description in answer.unusable:
            log.warning("pending_job_ignored", reason=description)
        self._page_size = LARGEST_PAGE if len(answer.jobs) >= self._page_size else PAGE_SIZE
        fresh = self._store([job for job in answer.jobs if self._is_ours(job)])
        self.state.polls += 1
        self._idle_polls = 0 if fresh else self._idle_polls + 1
        return self._pause_s()

    def recover_claimed_jobs(self) -> int:
        """Write rows for jobs that FulcrumCore has as Processing by us and that we do not know (a lost database)."""
        jobs = self.fulcrum.own_processing_jobs(self.state.agent_id)
        taken = self._store([job for job in jobs if self._is_ours(job)], already_claimed=True)
        if taken:
            log.warning("claimed_jobs_recovered", count=taken)
        return taken

    def _pause_s(self) -> float:
        if self._idle_polls <= IDLE_POLLS:
            return self.interval_s
        return min(self.interval_s * (1 + (self._idle_polls - IDLE_POLLS) / 10), max(LONGEST_PAUSE_S, self.interval_s))

    def _is_ours(self, job: CoreJob) -> bool:
        return job.agent_id is None or job.agent_id == self.state.agent_id

    def _store(self, jobs: list[CoreJob], *, already_claimed: bool = False) -> int:
        if not jobs:
            return 0
        with reading(self.engine) as session:
            known = queries.known_fulcrum_ids(session, [job.id for job in jobs])
        fresh = [job for job in jobs if job.id not in known]
        if not fresh:
            return 0
        with transaction(self.engine) as session:
            written = [job_queue.submit(session, self._row(job, already_claimed)) for job in fresh]
        crash_points.reached("rows_written")
        count = sum(job_id is not None for job_id in written)
        log.info("jobs_received", count=count)
        self.state.work_wanted.set()
        return count

    def _row(self, job: CoreJob, already_claimed: bool) -> NewJob:
        defects = list(job.defects)
        params, problem = bounded(job.params)
        defects += [f"params {problem}"] if problem else []
        raw_service = job.service.model_dump(mode="json", by_alias=True, exclude_none=True) if job.service else None
        service, problem = bounded(raw_service)
        defects += [f"service {problem}"] if problem else []
        service_id = _uuid_or_none(job.service.id if job.service else None)
        if service_id is None:
            defects.append("the service is missing or has no valid id")
        created_at = _sane_time(job.created_at)
        return NewJob(
            fulcrum_id=job.id,
            service_id=service_id,
            group_id=_uuid_or_none(job.service.group_id if job.service else None),
            tenant_id=_uuid_or_none(job.consumer_id or (job.service.consumer_id if job.service else None)),
            action=_shown_action(job.action),
            params=params,
            service=service,
            defect="; ".join(defects)[:500] or None,
            priority=max(-1000, min(job.priority, 1000)),
            core_created_at=created_at,
            deadline_at=created_at + timedelta(seconds=self.job_timeout_s),
            already_claimed=already_claimed,
        )


def bounded(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return the object if it may be stored, or None and what is wrong with it.

    A walk with a stack of its own: nesting of any depth cannot exhaust Python's.
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


def _shown_action(action: str | None) -> str:
    """Keep an action's text short and printable: it is compared, shown and logged, and never a path."""
    return "".join(char if char.isprintable() else "?" for char in action or "")[:100] or "?"


def _sane_time(created_at: datetime | None) -> datetime:
    now = utc_now()
    if created_at is None or abs((created_at.astimezone(UTC) - now).total_seconds()) > 10 * 365 * 86400:
        return now
    return created_at.astimezone(UTC)
