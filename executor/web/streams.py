"""Limits the event streams (server-sent events) that update the pages of jobs, and ends them when the server stops.

A stream occupies a connection for minutes. The limit keeps connections free for health checks and metrics.
"""

from __future__ import annotations

import asyncio

#: Maximum number of streams at once.
MAX_STREAMS = 20


class StreamCounter:
    """Counts the streams. Only the thread of the event loop may use it."""

    def __init__(self) -> None:
        self._count = 0
        self._stopping = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether no further stream is allowed."""
        return self._count >= MAX_STREAMS

    def add_stream(self) -> None:
        """Count one more stream."""
        self._count += 1

    def remove_stream(self) -> None:
        """Count one stream less."""
        self._count -= 1

    def end_all_streams(self) -> None:
        """Make all streams end, because the server stops."""
        self._stopping.set()

    async def wait_for_stop(self, timeout_s: float) -> bool:
        """Wait until the server stops, at most for this time. Return whether the server is stopping."""
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
