# SPDX-License-Identifier: Apache-2.0
"""Writes the progress of an action: one line for each step, and for a long wait one line every few seconds.

If an operator runs the playbook by hand, the lines are part of Ansible's output. In a run of the agent, each line is an
event in the artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Minimum time between two lines about the same wait.
MIN_INTERVAL_S = 5.0


class Progress:
    """The progress of one action on one guest."""

    def __init__(self, write: Callable[[str], object], vmid: int, name: str) -> None:
        """Prepare the lines. `write` prints a line."""
        self._write = write
        self._guest = f"VM {vmid} ({name})"
        self._started = time.monotonic()
        self._written_at = self._started

    def step(self, text: str) -> None:
        """Write a line about a step that begins now.

        Only printable characters are written, because names and texts may come from outside.
        """
        self._written_at = time.monotonic()
        line = f"{self._guest}: {text} [{self._written_at - self._started:.1f} s]"
        self._write("".join(char if char.isprintable() else " " for char in line))

    def is_wait_line_due(self) -> bool:
        """Return True if the last line is so old that a line about the current wait may be written."""
        return time.monotonic() - self._written_at >= MIN_INTERVAL_S
