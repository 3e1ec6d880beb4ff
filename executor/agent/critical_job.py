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
    run: Callable[[], float | None]  #: executes the critical job once; may return the seconds until the next execution
    wake_requested: threading.Event = field(default_factory=threading.Event)  #: set to start an execution now
    runs_on_each_agent: bool = True  #: if False, only one of the agents that share a database executes the job
    #: Executed instead of `run` when another agent executes the job: the work that concerns only this agent's machine.
    run_on_this_machine: Callable[[], object] | None = None
    #: While this returns False, this agent leaves the execution to other agents. Not used if `runs_on_each_agent`.
    may_start: Callable[[], bool] = lambda: True
    #: If True, `wake_requested` starts an execution even if another agent has executed the job within this interval.
    starts_early_on_request: bool = False
    #: Records whether FulcrumCore answers. The scheduler records failures in it, and `run` records successes.
    link: Link | None = None
    requested_delay_s: float | None = None  #: the delay that the last execution on this agent requested
    started_at: float = 0.0  #: monotonic; start of the current or last execution
    finished_at: float = 0.0  #: monotonic; end of the last execution
    #: The type of the last logged exception; '' after a success. The same type is not logged again before a success.
    #: FulcrumUnavailable is not logged here, because `link` logs the outage.
    logged_error_type: str = ""
    outage_failure_count: int = 0  #: number of executions in a row that FulcrumCore has not answered
    last_execution_started_at: datetime | None = None  #: UTC time at which `run` was last called
    last_error: str | None = None  #: error of the last execution
    unstored_execution_count: int = 0  #: number of executions that are not stored in the database yet
    stored_error: str | None = None  #: error of the newest stored execution
    stored_at: float = float("-inf")  #: monotonic time at which executions were last stored
    generation: int = 0  #: incremented by `restart`; a thread of an older generation ends

    @property
    def current_interval_s(self) -> float:
        """The interval, or the delay that the last execution on this agent requested instead."""
        return self.interval_s if self.requested_delay_s is None else self.requested_delay_s
