"""Asks a running job to end: sent by an operator's cancellation, by the shutdown, or after a lost lease."""

from __future__ import annotations


class StopSignal:
    """Asks a running job to end, and says why."""

    CANCELLED = "operator"  #: cancelled by an operator: the job fails
    AGENT_STOPPING = "stopping"  #: the agent has to stop: the job is requeued
    LEASE_LOST = "lost"  #: another agent owns the job now: write nothing

    def __init__(self) -> None:
        self.reason: str | None = None

    def send(self, reason: str) -> None:
        """Ask the job to end; only the first reason counts."""
        if self.reason is None:
            self.reason = reason

    def is_sent(self) -> bool:
        """True when the job has to end."""
        return self.reason is not None
