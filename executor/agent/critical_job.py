"""Defines a critical job: a periodic task of the agent, such as Heartbeat."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from executor.agent.state import Link


@dataclass(kw_only=True)
class CriticalJob:
    """A periodic task of the agent."""

    name: str
    interval_s: float
    #: Executes the critical job once. Returns the seconds until the next execution; None means `interval_s`.
    run: Callable[[], float | None]
    #: Set to end the wait for the next execution.
    wake_requested: threading.Event = field(default_factory=threading.Event)
    runs_on_each_agent: bool = True  #: if False, only one of the agents that share a database executes the job
    #: Does the part of `run` that is necessary on each machine, such as the deletion of old artifacts. Called instead
    #: of `run` when another agent executes the job.
    run_if_other_agent_executes: Callable[[], object] | None = None
    #: While this returns False, this agent does not execute the job; another agent may. Not used if
    #: `runs_on_each_agent`.
    may_start: Callable[[], bool] = lambda: True
    #: If True, the job is executed when `wake_requested` is set. If False, it is executed then only if no
    #: agent has executed it within the interval. Not used if `runs_on_each_agent`.
    starts_early_on_request: bool = False
    #: Records whether FulcrumCore answers. The scheduler records failures in it, and `run` records successes. None: an
    #: execution sends no request to FulcrumCore, or its failure is not recorded as an outage.
    fulcrum_link: Link | None = None
    requested_delay_s: float | None = None  #: delay until the next execution, requested by the last one on this agent
    started_at: float = 0.0  #: monotonic; last start of an execution, also of `run_if_other_agent_executes`
    finished_at: float = 0.0  #: monotonic; end of the last execution
    #: The type of the last logged exception; '' after a success. Until a success, an exception of this type is not
    #: logged again. FulcrumUnavailable is not logged here, because `fulcrum_link` logs the outage.
    logged_error_type: str = ""
    outage_failure_count: int = 0  #: number of executions in a row that failed because FulcrumCore did not answer
    last_execution_started_at: datetime | None = None  #: UTC time at which `run` was last called
    last_error: str | None = None  #: error of the last execution
    #: Number of executions that are not stored in the database yet. `smith critical list` shows the stored executions.
    unstored_execution_count: int = 0
    stored_error: str | None = None  #: error of the newest stored execution
    stored_at: float = float("-inf")  #: monotonic time at which executions were last stored
    generation: int = 0  #: number of the newest thread of the job; a thread with a lower number ends

    @property
    def delay_until_next_execution_s(self) -> float:
        """Seconds until the next execution: `requested_delay_s`; without a requested delay, `interval_s`."""
        return self.interval_s if self.requested_delay_s is None else self.requested_delay_s
