"""Asks a running job to end: on an operator's cancellation, at shutdown, or when the job's lease was lost."""

from __future__ import annotations


class StopSignal:
    """Asks one running job to end. The job's thread checks `is_sent`. This is not a signal of the operating system.

    The constants are the possible values of `reason`.
    """

    CANCELLED = "cancelled"  #: an operator cancelled the job: the job fails
    AGENT_STOPPING = "agent_stopping"  #: the agent is shutting down: the job is requeued
    #: another agent process may own the job now: this process must not write to the job's row
    LEASE_LOST = "lease_lost"

    def __init__(self) -> None:
        self.reason: str | None = None

    def send(self, reason: str) -> None:
        """Ask the job to end for this reason. Only the first call has an effect."""
        if self.reason is None:
            self.reason = reason

    def is_sent(self) -> bool:
        """True when the job has to end."""
        return self.reason is not None
