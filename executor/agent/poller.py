"""Step 1 of a job's processing (ARCHITECTURE.md): polls FulcrumCore and stores each pending job as one row.

The table of jobs is the agent's queue. A job may be open in FulcrumCore although its row says that it has ended, for
example because FulcrumCore's database was restored from a backup. Such a job is reopened: its row is changed, so that
the agent processes or reports the job again.

FulcrumCore identifies an agent by its token. If another installation, which has another database, uses the same token,
FulcrumCore lists the jobs of both installations as claimed by this agent.
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from executor.agent import crash_points, secret_owners
from executor.agent.log_limiter import LogLimiter
from executor.agent.state import AgentState
from executor.database import notifications, outbox, queries, reopening
from executor.database.engine import read_only_session, transaction
from executor.database.job_queue import NewJob
from executor.database.times import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumJob, PendingJobs
from executor.fulcrum.vault import SecretResolver
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Number of jobs requested per poll. In FulcrumCore, each service belongs to a group. FulcrumCore sorts jobs by group,
#: so a smaller page would contain the jobs of few groups only.
PAGE_SIZE = 100
#: Maximum number of reasons in the log line about jobs that were ignored.
MAX_LOGGED_REASONS = 3
#: Number of jobs that a poll requests if the previous poll returned a full page.
MAX_PAGE_SIZE = 1000
#: Maximum size and nesting depth of a job's params, and of its service. FulcrumCore itself has no such limits.
MAX_PAYLOAD_CHARS = 256 * 1024
MAX_DEPTH = 32
#: Number of characters that `check_json_object` counts for a value that is not a string.
CHARS_PER_OTHER_VALUE = 8
#: After this many polls in a row without a new job, the interval between two polls grows.
IDLE_POLLS_BEFORE_GROWTH = 30
#: The interval then grows linearly: this number of further polls without a new job adds the configured interval once.
IDLE_POLLS_PER_ADDED_INTERVAL = 10
#: The interval never grows above MAX_INTERVAL_S, nor above MAX_INTERVAL_SHARE_OF_TIMEOUT of the job timeout, so that
#: enough time is left for a job.
MAX_INTERVAL_S = 10.0
MAX_INTERVAL_SHARE_OF_TIMEOUT = 0.1
#: Interval at which the poller compares the table of jobs with the jobs that FulcrumCore lists as claimed by this
#: agent.
COMPARISON_INTERVAL_S = 300.0
#: A priority below -MAX_PRIORITY or above MAX_PRIORITY is replaced by the nearest of these two values.
MAX_PRIORITY = 1000
#: Maximum length of the text in a row's `defect`, which says what is invalid in the job.
MAX_DEFECT_CHARS = 500
#: Maximum length of an action's name; a longer name is cut.
MAX_ACTION_CHARS = 100
#: A job's creation time that differs from now by more than this is replaced by the present time.
MAX_CREATION_TIME_DIFFERENCE = timedelta(days=10 * 365)


@dataclass(kw_only=True)
class Poller:
    """Runs the critical job (periodic task) GetPendingJobs."""

    engine: Engine
    fulcrum: FulcrumClient
    secret_resolver: SecretResolver
    state: AgentState
    job_timeout_s: float  #: FulcrumCore's job timeout
    interval_s: float  #: the configured interval of this critical job
    polls_only_once: bool = False  #: for `smith run --once`
    _page_size: int = PAGE_SIZE
    _idle_poll_count: int = 0  #: number of polls since the last new job
    # `LogLimiter.should_log(count)` returns True if `count` is larger than in the last log line, or if this line is an
    # hour old. It returns False for 0.
    _unusable_jobs_log_limiter: LogLimiter = field(default_factory=LogLimiter)
    _other_agents_jobs_log_limiter: LogLimiter = field(default_factory=LogLimiter)
    _open_only_at_fulcrum_log_limiter: LogLimiter = field(default_factory=LogLimiter)
    _compared_at: float = field(default_factory=time.monotonic)  #: monotonic time of the last comparison

    @property
    def may_poll(self) -> bool:
        """True while the agent accepts new jobs.

        It accepts no job while it is shutting down (`draining`), and while an operator has disabled it in FulcrumCore
        (`is_disabled`). `may_use_database` is False while an agent with another id in FulcrumCore uses the database.
        Then this agent accepts no job. Processes with the same token may share a database.
        """
        has_polled = self.state.finished_poll_count > 0
        may_accept_jobs = (
            not self.state.draining.is_set() and not self.state.is_disabled and self.state.may_use_database
        )
        return bool(self.state.agent_id) and may_accept_jobs and not (self.polls_only_once and has_polled)

    def poll_if_allowed(self) -> float | None:
        """Poll if the agent accepts new jobs. Return the seconds until the next call.

        None means the interval of the critical job. Raises FulcrumUnavailable.
        """
        if not self.may_poll:
            return None
        if self.state.finished_poll_count == 0:
            self.recover_claimed_jobs()
        elif time.monotonic() - self._compared_at >= COMPARISON_INTERVAL_S:
            self._compared_at = time.monotonic()
            self.reopen_or_store_claimed_jobs()
        return self.poll()

    def poll(self) -> float:
        """Store every pending job that has no row yet; return the seconds until the next poll.

        Raises FulcrumUnavailable.
        """
        if not self.state.agent_id:
            return self.interval_s  # the agent's id is not known before the first heartbeat
        page = self.fulcrum.pending_jobs(limit=self._page_size)
        self.state.fulcrum_link.record_answer()  # ends a recorded outage of FulcrumCore
        self._log_unusable_jobs(page)
        is_page_full = len(page.jobs) >= self._page_size
        self._page_size = MAX_PAGE_SIZE if is_page_full else PAGE_SIZE
        new_count = self._store_new_jobs(self._jobs_for_this_agent(page.jobs))
        self.state.finished_poll_count += 1
        self._idle_poll_count = 0 if new_count else self._idle_poll_count + 1
        return self._next_interval_s()

    def _log_unusable_jobs(self, page: PendingJobs) -> None:
        """Log the number of ignored jobs: jobs without a valid id, and jobs beyond the requested number.

        `unread_count` is the number of jobs that FulcrumCore sent beyond the requested number.
        """
        count = len(page.unusable_item_descriptions) + page.unread_count
        if self._unusable_jobs_log_limiter.should_log(count):
            reasons = page.unusable_item_descriptions[:MAX_LOGGED_REASONS]
            log.warning("pending_jobs_ignored", count=count, reasons=reasons)

    def recover_claimed_jobs(self) -> int:
        """Store each job that this agent has claimed at FulcrumCore but that has no row; return the number of new rows.

        After a loss of the database, all claimed jobs lack a row.
        """
        jobs = self._jobs_for_this_agent(self.fulcrum.processing_jobs_of_agent(self.state.agent_id))
        recovered_count = self._store_new_jobs(jobs, is_claimed_at_fulcrum=True)
        if recovered_count:
            log.warning("claimed_jobs_recovered", count=recovered_count)
        self._update_and_log_jobs_open_only_at_fulcrum(jobs)
        return recovered_count

    def reopen_or_store_claimed_jobs(self) -> None:
        """Reopen or store each job that is claimed by this agent at FulcrumCore, but is not open in this database.

        A job that has ended in this database is reopened. A job without a row was claimed by another installation,
        because this agent stores each job before it claims the job. After a loss of the database,
        `recover_claimed_jobs` has stored the claimed jobs again before the first poll. A job of another installation is
        stored only to show it to operators.
        """
        jobs = self._jobs_for_this_agent(self.fulcrum.processing_jobs_of_agent(self.state.agent_id))
        self._reopen_jobs(jobs, are_claimed_at_fulcrum=True)
        with read_only_session(self.engine) as session:
            stored_ids = queries.stored_fulcrum_ids(session, [job.id for job in jobs])
        unknown_jobs = [job for job in jobs if job.id not in stored_ids]
        if unknown_jobs:
            rows = [
                replace(self._new_row(job, is_claimed_at_fulcrum=True), is_claimed_elsewhere=True)
                for job in unknown_jobs
            ]
            # Stores the jobs and, for each secret that a job names, the service that owns the secret.
            secret_owners.store_jobs_and_secret_owners(self.engine, self.secret_resolver, rows)
        self._update_and_log_jobs_open_only_at_fulcrum(jobs)

    def _update_and_log_jobs_open_only_at_fulcrum(self, processing_jobs: list[FulcrumJob]) -> None:
        """Update the rows of another installation's jobs, and log how many jobs are open only at FulcrumCore.

        A job is open only at FulcrumCore for one of two causes. Another installation has claimed the job. Or the job
        has ended in this database, and an attempt to report it has failed; the agent will retry the report.
        `processing_jobs` are all jobs that FulcrumCore lists as claimed by this agent.
        """
        with transaction(self.engine) as session:
            # Another installation's job has the report state CLAIMED_ELSEWHERE while FulcrumCore lists it as claimed,
            # and ABANDONED otherwise.
            outbox.update_jobs_claimed_elsewhere(session, [job.id for job in processing_jobs])
            counts = queries.count_jobs_open_only_at_fulcrum(session)  # one count for each of the two causes
        if self._open_only_at_fulcrum_log_limiter.should_log(sum(counts.values())):
            log.warning("unaccepted_jobs", **counts)  # jobs open only at FulcrumCore, counted by cause

    def _next_interval_s(self) -> float:
        further_idle_poll_count = max(self._idle_poll_count - IDLE_POLLS_BEFORE_GROWTH, 0)
        grown_interval_s = self.interval_s * (1 + further_idle_poll_count / IDLE_POLLS_PER_ADDED_INTERVAL)
        max_interval_s = min(MAX_INTERVAL_S, self.job_timeout_s * MAX_INTERVAL_SHARE_OF_TIMEOUT)
        return min(grown_interval_s, max(max_interval_s, self.interval_s))

    def _jobs_for_this_agent(self, jobs: list[FulcrumJob]) -> list[FulcrumJob]:
        """Return the jobs of this agent, and log the number of jobs of other agents.

        `state.agent_id` is the id of the agent to which the token belonged at the first heartbeat. If the token belongs
        to another agent now, FulcrumCore lists the jobs of that agent.
        """
        jobs_of_this_agent = [job for job in jobs if job.agent_id is None or job.agent_id == self.state.agent_id]
        other_agents_job_count = len(jobs) - len(jobs_of_this_agent)
        if self._other_agents_jobs_log_limiter.should_log(other_agents_job_count):
            log.warning("jobs_of_other_agents_ignored", count=other_agents_job_count)
        return jobs_of_this_agent

    def _store_new_jobs(self, jobs: list[FulcrumJob], *, is_claimed_at_fulcrum: bool = False) -> int:
        """Add a row for each job that has none; return the number of new rows.

        A job that has a row is reopened if the row says that the job has ended and needs no report.
        """
        if not jobs:
            return 0
        with read_only_session(self.engine) as session:
            stored_ids = queries.stored_fulcrum_ids(session, [job.id for job in jobs])
        self._reopen_jobs([job for job in jobs if job.id in stored_ids], are_claimed_at_fulcrum=is_claimed_at_fulcrum)
        new_jobs = [job for job in jobs if job.id not in stored_ids]
        if not new_jobs:
            return 0
        rows = [self._new_row(job, is_claimed_at_fulcrum=is_claimed_at_fulcrum) for job in new_jobs]
        count = secret_owners.store_jobs_and_secret_owners(self.engine, self.secret_resolver, rows)
        crash_points.crash_if_requested("rows_written")  # only tests request a crash
        log.info("jobs_received", count=count)
        self.state.dispatch_requested.set()
        return count

    def _reopen_jobs(self, jobs: list[FulcrumJob], *, are_claimed_at_fulcrum: bool) -> None:
        """Reopen each settled job: a job whose row says that it has ended and needs no report.

        FulcrumCore lists all `jobs` as open: as claimed by this agent (`are_claimed_at_fulcrum`), or as pending.
        """
        if not jobs:
            return
        with read_only_session(self.engine) as session:
            settled_ids = queries.settled_fulcrum_ids(session, [job.id for job in jobs])
        if not settled_ids:
            return
        with transaction(self.engine) as session:
            # The deadlines in the rows are times of FulcrumCore's clock.
            now_at_fulcrum = utc_now() + timedelta(seconds=self.fulcrum.clock_offset_s)
            count = reopening.reopen(
                session, settled_ids, are_claimed_at_fulcrum=are_claimed_at_fulcrum, now_at_fulcrum=now_at_fulcrum
            )
            notifications.notify_agent_processes_of_jobs(session)
        if count:
            log.warning("jobs_reopened", count=count)
            self.state.dispatch_requested.set()
            self.state.report_requested.set()

    def _new_row(self, job: FulcrumJob, is_claimed_at_fulcrum: bool) -> NewJob:
        """Return a job's new row. The row's `defect` says what is invalid; the worker fails a job with a defect."""
        defects = list(job.defects)
        params, problem = check_json_object(job.params)
        if problem:
            defects.append(f"params {problem}")
        fulcrum_service = job.service
        dumped_service = (
            fulcrum_service.model_dump(mode="json", by_alias=True, exclude_none=True) if fulcrum_service else None
        )
        service, problem = check_json_object(dumped_service)
        if problem:
            defects.append(f"service {problem}")
        service_id = _uuid_or_none(fulcrum_service.id if fulcrum_service else None)
        if service_id is None:
            defects.append("the service is missing or has no valid id")
        created_at = _plausible_creation_time(job.created_at)
        return NewJob(
            fulcrum_id=job.id,
            service_id=service_id,
            group_id=_uuid_or_none(fulcrum_service.group_id if fulcrum_service else None),
            # FulcrumCore calls the tenant a consumer.
            tenant_id=_uuid_or_none(job.consumer_id or (fulcrum_service.consumer_id if fulcrum_service else None)),
            action=_printable_action(job.action),
            params=params,
            service=service,
            defect="; ".join(defects)[:MAX_DEFECT_CHARS] or None,
            priority=max(-MAX_PRIORITY, min(job.priority, MAX_PRIORITY)),
            core_created_at=created_at,  # the time at which FulcrumCore created the job
            deadline_at=created_at + timedelta(seconds=self.job_timeout_s),
            is_claimed_at_fulcrum=is_claimed_at_fulcrum,
        )


def check_json_object(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return (value, None) for a JSON object within MAX_PAYLOAD_CHARS and MAX_DEPTH, and (None, None) for None.

    For any other value, return (None, description of the problem). The function is iterative, so deep nesting cannot
    cause RecursionError.
    """
    if value is None:
        return None, None
    if not isinstance(value, dict):
        return None, "is not a JSON object"
    size_chars = 0
    unchecked_values: list[tuple[Any, int]] = [(value, 1)]  # values that are not checked yet, with their depth
    while unchecked_values:
        item, depth = unchecked_values.pop()
        size_chars += len(item) if isinstance(item, str) else CHARS_PER_OTHER_VALUE
        if depth > MAX_DEPTH:
            return None, f"is nested more than {MAX_DEPTH} levels deep"
        if size_chars > MAX_PAYLOAD_CHARS:
            return None, f"is larger than {MAX_PAYLOAD_CHARS} characters"
        if isinstance(item, float) and not math.isfinite(item):
            return None, "contains a number that is not finite"
        if isinstance(item, dict):
            size_chars += sum(len(key) for key in item)
            unchecked_values += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            unchecked_values += [(child, depth + 1) for child in item]
    return value, None


def _uuid_or_none(text: Any) -> str | None:
    """Return the UUID in lower case with dashes, or None when the value is not the text of a UUID."""
    try:
        return str(uuid.UUID(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def _printable_action(action: str | None) -> str:
    """Return the action's name, shortened and with only printable characters. Commands and log lines show this name."""
    printable_text = "".join(char if char.isprintable() else "?" for char in action or "")
    return printable_text[:MAX_ACTION_CHARS] or "?"


def _plausible_creation_time(created_at: datetime | None) -> datetime:
    """Return a job's creation time in UTC. If the time is missing or implausible, return the present time."""
    now = utc_now()
    if created_at is None or abs(created_at.astimezone(UTC) - now) > MAX_CREATION_TIME_DIFFERENCE:
        return now
    return created_at.astimezone(UTC)
