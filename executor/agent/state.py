"""What the loops of one agent know of each other: flags and two links, each with its own lock."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from executor.log import get_logger

log = get_logger(__name__)


#: So long after an outage a failure may be of a call that began during it.
STRAGGLERS_S = 2.0


class Link:
    """Whether an outside system answers. A change is logged once, however many calls notice it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._back_at = float("-inf")
        self._reason = ""

    @property
    def is_up(self) -> bool:
        """True until a call fails, and again after one succeeds."""
        return self._down_since is None

    @property
    def reason(self) -> str:
        """Why it is down, '' while it is up."""
        return self._reason

    def note_up(self) -> bool:
        """Write down an answer; True when it is the first after an outage."""
        with self._lock:
            since, self._down_since, self._reason = self._down_since, None, ""
            if since is None:
                return False
            self._back_at = time.monotonic()
        log.info(f"{self._name}_answered_again", outage_s=round(time.monotonic() - since, 1))
        return True

    def note_down(self, reason: str) -> None:
        """Write down a failure; only the first of an outage is logged, and none that is late for the one before."""
        with self._lock:
            if time.monotonic() - self._back_at < STRAGGLERS_S:
                return
            first = self._down_since is None
            if first:
                self._down_since = time.monotonic()
            self._reason = reason
        if first:
            log.warning(f"{self._name}_stopped_answering", reason=reason)


@dataclass
class AgentState:
    """Shared by the loops of one agent process."""

    fulcrum: Link = field(default_factory=lambda: Link("fulcrum"))
    agent_id: str = ""  #: ours at FulcrumCore, '' until it was asked
    disabled: bool = False  #: FulcrumCore says that we are to rest
    draining: threading.Event = field(default_factory=threading.Event)  #: nothing new is claimed
    stopping: threading.Event = field(default_factory=threading.Event)  #: every loop ends
    work_wanted: threading.Event = field(default_factory=threading.Event)  #: wakes the dispatcher
    poll_wanted: threading.Event = field(default_factory=threading.Event)  #: wakes the poller
    report_wanted: threading.Event = field(default_factory=threading.Event)  #: wakes the reporter
    polls: int = 0  #: finished polls of this process
    heard_at: float = 0.0  #: when FulcrumCore last took a heartbeat, seconds since the epoch; 0 before the first
    turns: dict[str, float] = field(default_factory=dict)  #: when each loop last turned, by the monotonic clock
    jobs_claimed: int = 0  #: taken from the queue by this process
    jobs_ended: int = 0

    @property
    def is_ready(self) -> bool:
        """True when FulcrumCore was heard, or did not answer our first question: nobody should wait for it."""
        return bool(self.agent_id) or not self.fulcrum.is_up

    @property
    def summary(self) -> str:
        """Say in one line what the agent is at."""
        running = self.jobs_claimed - self.jobs_ended
        doing = (
            "draining" if self.draining.is_set() else "resting, disabled in FulcrumCore" if self.disabled else "at work"
        )
        core = "" if self.fulcrum.is_up else f", FulcrumCore does not answer: {self.fulcrum.reason}"
        return f"{doing}, {running} job{'' if running == 1 else 's'} under way{core}"

    def note_turn(self, loop: str) -> None:
        """Write down that a loop moves."""
        self.turns[loop] = time.monotonic()

    @property
    def may_claim(self) -> bool:
        """True when new work may begin."""
        return bool(self.agent_id) and not self.disabled and not self.draining.is_set() and self.fulcrum.is_up
