# SPDX-License-Identifier: Apache-2.0
"""Interprets the Proxmox tasks that Proxmox lists. Pure functions."""

from __future__ import annotations

import re
from typing import Any


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort Proxmox tasks by their start time in seconds, then by `pstart`, their start time in clock ticks."""
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Return True for a running Proxmox task, which has no status or the status RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def failed(task: dict[str, Any]) -> bool:
    """Return True for a finished Proxmox task whose status is neither OK nor WARNINGS."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))
