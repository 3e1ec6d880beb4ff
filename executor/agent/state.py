"""Holds what the threads of one agent share: flags, counters, and whether FulcrumCore answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from executor.log import get_logger

log = get_logger(__name__)

#: Time after a recovery in which a failed call starts no new outage, because the call may have begun before the
#: recovery.
LATE_FAILURE_S = 2.0
#: The `status` of the exception FulcrumUnavailable if only the request for one job, service or report failed. The
#: agent then retries, and records no outage of FulcrumCore. FulcrumCore has answered 500, or it has answered another
#: status, such as 403, which the agent replaces by 500 because the refusal may be temporary.
HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED = 500


@dataclass(frozen=True, kw_only=True)
class LinkLogFunctions:
    """The functions that log the outages and recoveries of one link: the connection to FulcrumCore or to Proxmox."""

    log_stopped_answering: Callable[..., object]  #: called if the system had answered before
    log_not_answering: Callable[..., object]  #: called if the system has not answered since the start of this process
    log_login_refused: Callable[..., object]  #: called if the system answers, but refuses the token or the password
    log_answered_again: Callable[..., object]


def fulcrum_log_functions() -> LinkLogFunctions:
    """Return the functions that log the outages and recoveries of FulcrumCore."""
    return LinkLogFunctions(
        log_stopped_answering=lambda **fields: log.warning("fulcrum_stopped_answering", **fields),
        log_not_answering=lambda **fields: log.warning("fulcrum_not_answering", **fields),
        log_login_refused=lambda **fields: log.warning("fulcrum_token_refused", **fields),
        log_answered_again=lambda **fields: log.info("fulcrum_answered_again", **fields),
    )


def proxmox_log_functions() -> LinkLogFunctions:
    """Return the functions that log the outages and recoveries of Proxmox."""
    return LinkLogFunctions(
        log_stopped_answering=lambda **fields: log.warning("proxmox_stopped_answering", **fields),
        log_not_answering=lambda **fields: log.warning("proxmox_not_answering", **fields),
        log_login_refused=lambda **fields: log.warning("proxmox_login_refused", **fields),
        log_answered_again=lambda **fields: log.info("proxmox_answered_again", **fields),
    )


class Link:
    """Records whether an outside system answers. Logs each outage and each recovery once for all threads."""

    def __init__(self, log_functions: LinkLogFunctions) -> None:
        self._log_functions = log_functions
        self._has_answered = False
        self._lock = threading.Lock()
        self._down_since: float | None = None  #: monotonic time of the start of the outage; None without an outage
        self._recovered_at = float("-inf")  #: monotonic time of the end of the last outage
        self._reason = ""
        #: Set at each recovery of the system, so that every loop that waits because of the outage continues.
        self.recovery_events: list[threading.Event] = []

    @property
    def is_up(self) -> bool:
        """True unless the last recorded call failed; also True before the first call."""
        return self._down_since is None

    @property
    def reason(self) -> str:
        """The last error of the current outage; '' while the system answers."""
        return self._reason

    def record_answer(self) -> bool:
        """Record an answer of the system. The first answer after an outage sets the recovery events.

        Returns True for this first answer.
        """
        with self._lock:
            self._has_answered = True
            down_since, self._down_since, self._reason = self._down_since, None, ""
            if down_since is None:
                return False
            self._recovered_at = time.monotonic()
        self._log_functions.log_answered_again(outage_s=round(time.monotonic() - down_since, 1))
        for event in self.recovery_events:
            event.set()
        return True

    def record_failed_call(self, reason: str, *, has_refused_credentials: bool = False) -> None:
        """Record a failed call; log the first one of each outage. Do nothing within LATE_FAILURE_S of a recovery.

        `has_refused_credentials` is True if the system has answered that the token or the password is not valid.
        """
        with self._lock:
            if time.monotonic() - self._recovered_at < LATE_FAILURE_S:
                return
            is_new_outage = self._down_since is None
            if is_new_outage:
                self._down_since = time.monotonic()
            self._reason = reason
            has_answered = self._has_answered
        if not is_new_outage:
            return
        if has_refused_credentials:
            self._log_functions.log_login_refused(reason=reason)
        elif has_answered:
            self._log_functions.log_stopped_answering(reason=reason)
        else:
            self._log_functions.log_not_answering(reason=reason)


@dataclass(frozen=True, kw_only=True)
class CurrentPause:
    """The pause of all agent processes that use the database. An operator has started the pause."""

    since: datetime
    who: str  #: name of the operator
    reason: str


@dataclass
class AgentState:
    """The shared state of one agent process."""

    #: Says whether FulcrumCore answers.
    fulcrum_link: Link = field(default_factory=lambda: Link(fulcrum_log_functions()))
    agent_id: str = ""  #: FulcrumCore's id of this agent, '' until the first heartbeat
    is_token_of_other_agent: bool = False  #: the token belongs to another agent now, so this process must be restarted
    #: False while another agent uses the database: an agent with another id and token in FulcrumCore. Several processes
    #: of one agent may use one database. On PostgreSQL, the process starts with False, and sets True when it has
    #: checked that no other agent uses the database.
    may_use_database: bool = True
    #: FulcrumCore's id of another agent that uses the database; '' if none is known
    id_of_other_agent_on_database: str = ""
    is_schema_too_new: bool = False  #: a newer version has migrated the database, so this process must be restarted
    is_disabled: bool = False  #: an operator has disabled the agent in FulcrumCore: it claims no jobs
    #: The pause that was last read from the database; None if there is none. It is only shown and logged: each claim
    #: reads the pause from the database.
    pause: CurrentPause | None = None
    #: Set when this process begins to stop, and claims no more jobs.
    draining: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)  #: set when every loop must end
    #: Wakes the dispatcher, which claims jobs from the database and starts them.
    dispatch_requested: threading.Event = field(default_factory=threading.Event)
    heartbeat_requested: threading.Event = field(default_factory=threading.Event)  #: wakes the heartbeat
    poll_requested: threading.Event = field(default_factory=threading.Event)  #: wakes the poller
    report_requested: threading.Event = field(default_factory=threading.Event)  #: wakes the reporter
    #: Set when FulcrumCore answers again after an outage. The reporter then ends the backoff of every report.
    fulcrum_recovered: threading.Event = field(default_factory=threading.Event)
    finished_poll_count: int = 0  #: how many polls this process has finished
    heartbeat_at: float = 0.0  #: Unix time of the last accepted heartbeat; 0 before the first
    #: The monotonic start time of each loop's last iteration. The key is the name of the loop.
    iteration_started_at: dict[str, float] = field(default_factory=dict)
    #: An operator has paused this agent process with `smith nodes drain`: it claims no jobs. (`draining` is set
    #: only when the process stops.) The table `nodes` and the command `smith nodes` call an agent process a node. A
    #: Proxmox node is not meant.
    is_agent_process_paused: bool = False
    #: The maximum number of parallel jobs, as read from the database: SMITH_CONCURRENCY, which the process has stored
    #: there, or a lower limit that an operator has set. None until it is read, or if the database has no row of this
    #: process.
    max_parallel_jobs: int | None = None
    claimed_job_count: int = 0  #: how many jobs this process has claimed
    ended_job_count: int = 0  #: how many claimed jobs this process no longer runs, for example a requeued job

    def __post_init__(self) -> None:
        self.fulcrum_link.recovery_events += [
            self.fulcrum_recovered,
            self.heartbeat_requested,
            self.report_requested,
            self.poll_requested,
            self.dispatch_requested,
        ]

    @property
    def is_ready(self) -> bool:
        """True after the first accepted heartbeat, and during each outage of FulcrumCore.

        systemd waits until the agent is ready. An outage must not prolong this wait.
        """
        return bool(self.agent_id) or not self.fulcrum_link.is_up

    @property
    def summary(self) -> str:
        """The agent's status in one line, for `systemctl status`."""
        running_job_count = self.claimed_job_count - self.ended_job_count
        if self.draining.is_set():
            activity = "draining"
        elif self.id_of_other_agent_on_database:
            activity = "waiting, because another agent uses the database"
        elif self.is_disabled:
            activity = "disabled in FulcrumCore"
        elif self.pause is not None or self.is_agent_process_paused:
            activity = "paused"
        else:
            activity = "working"
        jobs = "1 running job" if running_job_count == 1 else f"{running_job_count} running jobs"
        outage = "" if self.fulcrum_link.is_up else f", FulcrumCore cannot be used: {self.fulcrum_link.reason}"
        return f"{activity}, {jobs}{outage}"

    def record_pause(self, pause: CurrentPause | None) -> None:
        """Record the current pause, or None, and log each change."""
        earlier_pause, self.pause = self.pause, pause
        if pause is not None and pause != earlier_pause:
            log.warning("agents_paused", who=pause.who, reason=pause.reason, since=pause.since.isoformat())
        elif pause is None and earlier_pause is not None:
            log.info("agents_resumed", reason=earlier_pause.reason)

    def record_other_agent_on_database(self, agent_id: str, *, cluster: str) -> None:
        """Record which other agent of FulcrumCore uses the database. Log its id when the id changes.

        `agent_id` is the id of the other agent, '' if this agent uses the database. `cluster` is the name of the other
        agent's Proxmox cluster (SMITH_CLUSTER).
        """
        if agent_id and agent_id != self.id_of_other_agent_on_database:
            log.error("database_of_another_agent", agent_id=agent_id, cluster=cluster)
        if not agent_id and not self.may_use_database:
            self.poll_requested.set()
            self.dispatch_requested.set()
        self.id_of_other_agent_on_database, self.may_use_database = agent_id, not agent_id

    def record_iteration_start(self, loop: str) -> None:
        """Record that a loop has started an iteration."""
        self.iteration_started_at[loop] = time.monotonic()

    @property
    def may_claim(self) -> bool:
        """True when this agent process may claim new jobs, without regard to `pause`.

        Each claim reads the pause from the database.
        """
        must_be_restarted = self.is_token_of_other_agent or self.is_schema_too_new
        is_usable = bool(self.agent_id) and self.may_use_database and not must_be_restarted and not self.is_disabled
        is_working = not self.draining.is_set() and not self.is_agent_process_paused
        return is_usable and is_working and self.fulcrum_link.is_up

    def record_operator_limits(self, *, is_paused: bool, max_jobs: int | None) -> None:
        """Record what operators have set for this agent process: a pause, and the maximum number of parallel jobs.

        `max_jobs` becomes `max_parallel_jobs`. Log each change, but not the first value of `max_jobs`.
        """
        if is_paused != self.is_agent_process_paused:
            self.is_agent_process_paused = is_paused
            if is_paused:
                log.warning("node_paused")
            else:
                log.info("node_resumed")
            self.dispatch_requested.set()
        if max_jobs != self.max_parallel_jobs:
            is_first = self.max_parallel_jobs is None
            self.max_parallel_jobs = max_jobs
            if not is_first:
                log.warning("node_limit_changed", max_jobs=max_jobs)
                self.dispatch_requested.set()
