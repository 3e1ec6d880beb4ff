"""Checks whether the agent has reached one of its limits, and restarts critical jobs whose thread has ended or hangs.

A critical job is a periodic task of the agent.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum

from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.log import get_logger
from executor.processes.memory import process_tree_memory_mib
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Minimum time between two checks of the critical jobs.
CHECK_INTERVAL_S = 30.0
#: A measurement of memory is cached for this time, because a measurement reads /proc for this process and each of its
#: descendants.
MAX_MEMORY_AGE_S = 5.0


class Limit(StrEnum):
    """The conditions under which an agent process claims no more jobs, waits for its running jobs, and ends.

    In `Mode.SERVE`, the parent process of the agent process then starts a new agent process. In the other modes
    (the agent ends when its work is done), no new agent process starts.
    """

    JOBS = "jobs"  #: this process has claimed SMITH_MAX_JOBS jobs
    MEMORY = "memory"  #: this process and all its descendants use SMITH_MAX_MEMORY_MIB of memory
    RUNTIME = "runtime"  #: this process has run for SMITH_MAX_RUNTIME_S
    #: A newer version of Agent Smith has migrated the schema. The next process waits until an operator has installed
    #: the newer version on this machine.
    SCHEMA = "schema"
    #: In FulcrumCore, the token of this process now belongs to another agent than at the start of this process.
    IDENTITY = "identity"


@dataclass(kw_only=True)
class Monitor:
    """Checks limits and critical jobs. The agent's main loop calls both checks in each iteration."""

    settings: Settings
    state: AgentState
    scheduler: Scheduler
    _started_at: float = field(default_factory=time.monotonic)
    _critical_jobs_checked_at: float = field(default_factory=time.monotonic)
    _memory_measured_at: float = 0.0
    _memory_mib: float = 0.0

    def find_reached_limit(self) -> Limit | None:
        """Return a limit that this process has reached, or None."""
        settings = self.settings
        if self.state.is_token_of_other_agent:
            return Limit.IDENTITY
        if self.state.is_schema_too_new:
            return Limit.SCHEMA
        if settings.smith_max_jobs and self.state.claimed_job_count >= settings.smith_max_jobs:
            return Limit.JOBS
        if settings.smith_max_runtime_s and time.monotonic() - self._started_at >= settings.smith_max_runtime_s:
            return Limit.RUNTIME
        if settings.smith_max_memory_mib and self.memory_mib() >= settings.smith_max_memory_mib:
            return Limit.MEMORY
        return None

    def memory_mib(self) -> float:
        """Return the memory of this process and all its descendants, at most MAX_MEMORY_AGE_S old.

        A page that several processes share counts once.
        """
        if time.monotonic() - self._memory_measured_at >= MAX_MEMORY_AGE_S:
            self._memory_mib = process_tree_memory_mib(os.getpid())
            self._memory_measured_at = time.monotonic()
        return self._memory_mib

    def restart_overdue_critical_jobs(self) -> None:
        """Restart overdue critical jobs (thread ended or hangs). Checks at most once per CHECK_INTERVAL_S."""
        if time.monotonic() - self._critical_jobs_checked_at < CHECK_INTERVAL_S:
            return
        self._critical_jobs_checked_at = time.monotonic()
        for name in self.scheduler.overdue_critical_jobs():
            log.error("critical_job_restarted", name=name)
            self.scheduler.restart(name)
