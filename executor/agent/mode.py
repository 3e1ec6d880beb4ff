"""Defines the modes of an agent, and checks whether the agent has done what its mode requires and must end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent.dispatcher import Dispatcher
from executor.agent.state import AgentState
from executor.database import agent_queries, queries
from executor.database.engine import read_only_session

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Mode(StrEnum):
    """Says when the agent ends by itself. A signal, or a limit such as SMITH_MAX_JOBS, may end it earlier."""

    SERVE = "serve"  #: the agent never ends by itself
    ONCE = "once"  #: the agent polls once, and ends when the jobs of that poll are processed and reported
    UNTIL_IDLE = "until-idle"  #: the agent ends when FulcrumCore has no more jobs for it


@dataclass(kw_only=True)
class AgentEndCheck:
    """Checks whether the agent has done what its mode requires. The main loop calls `is_done` in each iteration."""

    mode: Mode
    engine: Engine
    state: AgentState
    dispatcher: Dispatcher
    #: Used in `Mode.UNTIL_IDLE`: how many polls had finished when the agent became idle. None while it is not idle. The
    #: agent is idle when no job is pending or in process, and no report is due. The report of an ended job is due until
    #: FulcrumCore acknowledges or refuses it.
    _poll_count_when_idle: int | None = None

    def is_done(self) -> bool:
        """Return whether the agent must end.

        True when the agent has done what its mode requires, or when an operator has disabled it in FulcrumCore. Always
        False in Mode.SERVE. Sends no request to FulcrumCore.
        """
        if self.mode is Mode.SERVE or self.dispatcher.running_job_count:
            return False
        if self.state.is_disabled:  # the agent neither polls nor claims jobs
            return True
        if self.state.finished_poll_count == 0 or self._has_open_jobs():
            self._poll_count_when_idle = None
            return False
        return self.mode is Mode.ONCE or self._has_polled_twice_since_idle()

    def _has_open_jobs(self) -> bool:
        """True when a job is pending or in process, or when a report is due.

        While an operator has paused this process, or all agent processes of the database, pending jobs do not count.
        """
        with read_only_session(self.engine) as session:
            counts = queries.count_jobs(session)
            is_paused = agent_queries.find_pause(session) is not None or self.state.is_agent_process_paused
        open_job_count = counts["processing"] if is_paused else counts["pending"] + counts["processing"]
        return bool(open_job_count + counts["reports_due"])

    def _has_polled_twice_since_idle(self) -> bool:
        """True when two polls have finished since the first call that found no open job.

        A service group is a set of services of one customer. FulcrumCore lists the next job of a service group only
        after it has received the report of the group's previous job. The first of the two polls may have begun before
        FulcrumCore received the last report. The second began afterwards.
        """
        poll_count = self.state.finished_poll_count
        if self._poll_count_when_idle is None:
            self._poll_count_when_idle = poll_count
        if self.state.fulcrum_link.is_up:  # FulcrumCore answered the last call: poll now, not only after the interval
            self.state.poll_requested.set()
        return poll_count >= self._poll_count_when_idle + 2
