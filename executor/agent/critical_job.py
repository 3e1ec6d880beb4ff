"""Defines a critical job: a periodic task of the agent, such as Heartbeat."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from executor.agent.state import Link


@dataclass(kw_only=True)
class CriticalJob:
    """A periodic task of the agent. In the comments, an agent is one agent process."""

    name: str
    interval_s: float
    #: Executes the critical job once. Returns the seconds until the next execution; None means `interval_s`.
    run: Callable[[], float | None]
    #: Set to end the wait for the next execution.
    wake_requested: threading.Event = field(default_factory=threading.Event)
    #: False: only one of the agents that share a database executes the job.
    is_executed_by_each_process: bool = True
    #: Does the part of `run` that is necessary on each machine, such as the deletion of old artifacts. Called instead
    #: of `run` when another agent executes the job.
    run_if_other_process_executes: Callable[[], object] | None = None
    #: While this returns False, this agent does not execute the job; another agent may. Not used if
    #: `is_executed_by_each_process`.
    may_start: Callable[[], bool] = lambda: True
    #: A period begins with an execution of the job, and is a little shorter than the interval. No agent executes the
    #: job again before the period is over. True: when `wake_requested` is set, the job is executed at once, even during
    #: a period. Not used if `is_executed_by_each_process`.
    ignores_period_if_requested: bool = False
    #: Records whether FulcrumCore answers. The scheduler records failures in it. The critical jobs Heartbeat and
    #: GetPendingJobs record successes. None: the scheduler records no failure of this critical job.
    fulcrum_link: Link | None = None
    #: Delay from the last execution on this agent to the next one; None: the delay is `interval_s`. The execution has
    #: returned this delay. After an execution that failed with FulcrumUnavailable, it is the scheduler's backoff.
    delay_instead_of_interval_s: float | None = None
    #: Monotonic time of the last start of the job's thread or of an execution, whichever is later. An execution calls
    #: `run` or, when another agent executes the job, `run_if_other_process_executes`.
    started_at: float = 0.0
    finished_at: float = 0.0  #: monotonic; end of the last execution, or start of the job's thread if that is later
    #: The type of the last logged exception; '' after a success. Until a success, an exception of this type is not
    #: logged again. FulcrumUnavailable does not change this value; `fulcrum_link` logs an outage of FulcrumCore.
    logged_error_type: str = ""
    outage_failure_count: int = 0  #: number of executions in a row that failed because FulcrumCore did not answer
    last_execution_started_at: datetime | None = None  #: UTC time at which `run` was last called
    last_error: str | None = None  #: error of the last execution
    #: Number of executions that are not stored in the database yet. `smith critical list` shows the stored executions.
    unstored_execution_count: int = 0
    stored_error: str | None = None  #: error of the newest stored execution
    stored_at: float = float("-inf")  #: monotonic time at which executions were last stored
    #: The number of the newest thread of the job. If an execution hangs, a new thread replaces the old one. A thread
    #: with a lower number ends after its current execution.
    generation: int = 0

    @property
    def delay_until_next_execution_s(self) -> float:
        """Seconds until the next execution: `delay_instead_of_interval_s`, or `interval_s` if that is None."""
        return self.interval_s if self.delay_instead_of_interval_s is None else self.delay_instead_of_interval_s
