"""Concludes whether an agent process is running, from its row in the table `nodes` (not a Proxmox node)."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta

from executor.database.tables.agents import Node

#: An agent process has vanished if it has not updated its row in the table `nodes` for this many lease durations. A
#: running agent updates the row six times in each lease duration.
VANISHED_AFTER_LEASES = 2.0
#: This limit replaces VANISHED_AFTER_LEASES if the row names this host, but its process id does not exist here. Two
#: missing updates are required also in this case: the process may run in a container, which has the same host name but
#: other process ids.
VANISHED_AFTER_LEASES_WITHOUT_PROCESS = 1 / 3


def is_alive(node: Node, now: datetime, lease_s: float) -> bool:
    """Return whether the agent process is running: it has neither stopped nor vanished."""
    leases = VANISHED_AFTER_LEASES if _may_process_exist(node) else VANISHED_AFTER_LEASES_WITHOUT_PROCESS
    return node.stopped_at is None and now - node.seen_at <= timedelta(seconds=lease_s * leases)


def agent_state(node: Node, now: datetime, lease_s: float) -> str:
    """Return the state of the agent process: `running`, `draining`, `stopped` or `vanished` (ended without a stop)."""
    if node.stopped_at is not None:
        return "stopped"
    if not is_alive(node, now, lease_s):
        return "vanished"
    return "draining" if node.draining else "running"


def _may_process_exist(node: Node) -> bool:
    """Return whether the process may exist: the process is on another host, or its process id exists on this host."""
    if node.host != socket.gethostname():
        return True
    try:
        os.kill(node.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
