"""Warns at the start of an agent if another installation, with another database, uses the same token for FulcrumCore.

FulcrumCore sees both installations as the same agent, so each installation would claim jobs of the other. `smith
doctor` reports this problem, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from executor.database import agent_queries
from executor.database.engine import read_only_session
from executor.errors import DatabaseError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumAgent
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum age of a recent heartbeat. A connected agent sends at least two heartbeats in this time,
#: because their interval is at most 25 s. If the last heartbeat at FulcrumCore is newer than the last heartbeat in the
#: database by more than this time, another installation has sent it. A smaller difference is normal: an agent stores a
#: heartbeat some seconds after it has sent it.
RECENT_HEARTBEAT_S = 60.0
#: FulcrumCore's status of an agent that sends heartbeats.
CONNECTED_STATUS = "Connected"


@dataclass(frozen=True, kw_only=True)
class TokenUseChecker:
    """Compares the last heartbeat that FulcrumCore has received with the last heartbeat in our database."""

    engine: Engine
    fulcrum: FulcrumClient

    def warn_if_other_installation_uses_token(self, agent: FulcrumAgent) -> None:
        """Log a warning if another installation uses the token.

        The caller has read `agent` from FulcrumCore before this process sent its first heartbeat. FulcrumCore sets
        `agent.updated_at` at each heartbeat.
        """
        try:
            with read_only_session(self.engine) as session:
                # The name of each critical job (a periodic task of the agent, not a job of FulcrumCore), and the time
                # of its last successful execution.
                last_ok_at_by_name = {job.name: job.last_ok_at for job in agent_queries.list_critical_jobs(session)}
        except DatabaseError:
            return  # the next step that needs the database reports this error
        if is_token_used_elsewhere(
            agent, last_ok_at_by_name.get("Heartbeat"), clock_offset_s=self.fulcrum.clock_offset_s
        ):
            log.warning("token_used_elsewhere", agent_id=agent.id, last_heartbeat_at=agent.updated_at)


def is_token_used_elsewhere(
    agent: FulcrumAgent, our_last_heartbeat_at: datetime | None, *, clock_offset_s: float
) -> bool:
    """Return whether FulcrumCore has received a recent heartbeat from an agent that uses another database.

    `clock_offset_s` is FulcrumCore's clock minus this machine's clock.
    """
    if agent.updated_at is None or agent.status != CONNECTED_STATUS or not has_recent_heartbeat(agent, clock_offset_s):
        return False
    if our_last_heartbeat_at is None:
        return True
    our_heartbeat_in_fulcrum_time_s = our_last_heartbeat_at.timestamp() + clock_offset_s
    return agent.updated_at.timestamp() - our_heartbeat_in_fulcrum_time_s > RECENT_HEARTBEAT_S


def has_recent_heartbeat(agent: FulcrumAgent, clock_offset_s: float) -> bool:
    """Return whether FulcrumCore has changed the agent's row recently. Each heartbeat changes this row."""
    if agent.updated_at is None:
        return False
    return time.time() + clock_offset_s - agent.updated_at.timestamp() < RECENT_HEARTBEAT_S
