"""Concludes whether an agent process is running, from the row of the process in the table `nodes`.

In this table, a node is an agent process, not a node of Proxmox.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.agents import AgentProcessRow


#: An agent process has vanished if it has not updated its row in the table `nodes` for this many lease durations. A
#: running agent updates the row six times in each lease duration.
VANISHED_AFTER_LEASES = 2.0
#: This limit replaces VANISHED_AFTER_LEASES if the row names this host, and this host has no process with the row's
#: process id. The agent process may nevertheless be running in a container: a container can have the host name of this
#: host, but has its own process ids. A running agent updates the row twice within this limit.
VANISHED_AFTER_LEASES_WITHOUT_PROCESS = 1 / 3


def is_alive(process_row: AgentProcessRow, now: datetime, lease_s: float) -> bool:
    """Return whether the agent process is running: it has neither stopped nor vanished."""
    lease_count = VANISHED_AFTER_LEASES if _may_process_exist(process_row) else VANISHED_AFTER_LEASES_WITHOUT_PROCESS
    return process_row.stopped_at is None and now - process_row.seen_at <= timedelta(seconds=lease_s * lease_count)


def agent_state(process_row: AgentProcessRow, now: datetime, lease_s: float) -> str:
    """Return the state of the agent process: `running`, `draining`, `stopped` or `vanished`.

    A draining process has begun to stop. A vanished process has probably ended without storing that it stopped.
    """
    if process_row.stopped_at is not None:
        return "stopped"
    if not is_alive(process_row, now, lease_s):
        return "vanished"
    return "draining" if process_row.draining else "running"


def _may_process_exist(process_row: AgentProcessRow) -> bool:
    """Return whether the process may exist: the process is on another host, or its process id exists on this host."""
    if process_row.host != socket.gethostname():
        return True
    try:
        os.kill(process_row.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
