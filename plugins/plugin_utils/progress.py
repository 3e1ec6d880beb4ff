# SPDX-License-Identifier: Apache-2.0
"""Writes an action plugin's progress lines: one line for each step, and every few seconds one line about a long wait.

If an operator runs the playbook by hand, the lines are part of Ansible's output. In a run of the agent, each line is an
event in the artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Minimum time between two lines about the same wait.
MIN_INTERVAL_S = 5.0


class Progress:
    """Writes the progress lines of one execution of an action plugin for one guest."""

    def __init__(self, print_line: Callable[[str], object], vmid: int, name: str) -> None:
        self._print_line = print_line
        self._guest_text = f"VM {vmid} ({name})"
        self._started_monotonic_s = time.monotonic()
        self._last_line_monotonic_s = self._started_monotonic_s

    def write_line(self, text: str) -> None:
        """Write a line, usually about a step that begins now.

        Spaces replace unprintable characters, because a name or a text may come from a tenant or from Proxmox.
        """
        self._last_line_monotonic_s = time.monotonic()
        line = f"{self._guest_text}: {text} [{self._last_line_monotonic_s - self._started_monotonic_s:.1f} s]"
        self._print_line("".join(char if char.isprintable() else " " for char in line))

    def is_wait_line_due(self) -> bool:
        """Return True if the last line is so old that a line about the current wait may be written."""
        return time.monotonic() - self._last_line_monotonic_s >= MIN_INTERVAL_S
