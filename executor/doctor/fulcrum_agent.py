"""Checks that the token's agent is enabled, no other installation uses the token, and FulcrumCore's clock is right.

Several installations of Agent Smith may use one token only if they share one database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from executor.agent.token_use import CONNECTED_STATUS, has_recent_heartbeat
from executor.database import agent_queries, queries
from executor.database.times import utc_now
from executor.doctor.checks import CLOCK_REMEDY, Area, CheckResult, ResultFactory
from executor.doctor.database_reads import read_database
from executor.errors import DatabaseError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import DISABLED_STATUS, FulcrumAgent
from executor.settings.settings import Settings
from executor.views.agent_liveness import is_alive

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_RESULT_FACTORY = ResultFactory(Area.FULCRUM)
#: The check warns if FulcrumCore's clock and this machine's clock differ by more than this. Jobs can still
#: succeed, because the agent measures the jobs' deadlines with FulcrumCore's clock.
MAX_CLOCK_OFFSET_S = 5.0
OTHER_INSTALLATION_REMEDY = (
    "stop the other installation, or give it another token, or use its database here: SMITH_DATABASE_URL=<its URL>"
)


def check_agent(agent: FulcrumAgent, client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    """Check the agent that FulcrumCore has returned for the token."""
    yield _RESULT_FACTORY.ok("token", f"agent {agent.name or '?'} ({agent.id})")
    yield _check_enabled(agent)
    yield _check_clock(client)
    yield from _check_use_of_token(agent, client, settings)


def _check_enabled(agent: FulcrumAgent) -> CheckResult:
    participant = agent.participant  # the provider's organisation in FulcrumCore
    if agent.status == DISABLED_STATUS:
        # The remedy enables the agent. The agent's next heartbeat changes the status to Connected.
        remedy = f'PATCH /agents/{agent.id} {{"status": "Disconnected"}}'
        return _RESULT_FACTORY.warn("enabled", "the agent is disabled in FulcrumCore, so it claims no jobs", remedy)
    if participant is not None and participant.status == DISABLED_STATUS:
        text = f"the provider {participant.name} of the agent is disabled in FulcrumCore, so the agent claims no jobs"
        return _RESULT_FACTORY.warn("enabled", text, f'PATCH /participants/{participant.id} {{"status": "Enabled"}}')
    return _RESULT_FACTORY.ok("enabled", f"status {agent.status}")


def _check_clock(client: FulcrumClient) -> CheckResult:
    offset_s = client.clock_offset_s
    direction = "ahead of" if offset_s > 0 else "behind"
    text = f"FulcrumCore's clock is {abs(offset_s):.1f} s {direction} this machine's clock"
    if abs(offset_s) > MAX_CLOCK_OFFSET_S:
        return _RESULT_FACTORY.warn("clock", f"{text}: one of the two clocks is wrong", CLOCK_REMEDY)
    return _RESULT_FACTORY.ok("clock", text)


def _check_use_of_token(agent: FulcrumAgent, client: FulcrumClient, settings: Settings) -> Iterator[CheckResult]:
    """Warn if the database's newest job belongs to another agent, or if another installation uses the token.

    The other installation has its own database. Its sign is that FulcrumCore has a recent heartbeat of the agent, but
    this database has no row of a running agent process. The two installations would claim each other's jobs. Both
    warnings are named "same agent", because the token and the database must belong to the same agent.
    """
    try:
        agent_id_of_jobs = read_database(settings, queries.agent_id_of_newest_job, if_no_database_file=None)
        is_process_running = read_database(
            settings, lambda session: _is_agent_process_running(session, settings), if_no_database_file=False
        )
    except DatabaseError:
        return  # the check of the database reports this error
    if agent_id_of_jobs not in (None, agent.id):
        text = f"the jobs in the database belong to agent {agent_id_of_jobs}, but the token belongs to agent {agent.id}"
        token_remedy = f"FULCRUM_API_TOKEN_FILE=<file with the token of agent {agent_id_of_jobs}>"
        yield _RESULT_FACTORY.warn(
            "same agent", text, token_remedy, "SMITH_DATA_DIR=<a new folder>, to start with an empty database"
        )
    elif (
        agent.status == CONNECTED_STATUS
        and not is_process_running
        and has_recent_heartbeat(agent, client.clock_offset_s)
    ):
        text = "no agent process uses this database, but another agent process sends heartbeats with this token"
        service_remedy = (
            "if the other process is agent-smith.service on this machine, check with the settings of this unit: "
            "smith doctor --as-service"
        )
        yield _RESULT_FACTORY.warn("same agent", text, OTHER_INSTALLATION_REMEDY, service_remedy)


def _is_agent_process_running(session: Session, settings: Settings) -> bool:
    agent_processes = agent_queries.processes_without_stop_time(session)
    return any(is_alive(process, utc_now(), settings.smith_lease_s) for process in agent_processes)
