"""What the agent learns from its first heartbeats.

These are: to which agent of FulcrumCore its token belongs, and whether another installation uses the token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from smith_lab.fulcrum_setup import add_agent
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.databases import migrated_sqlite_file
from support.simulator_world import World

from executor.agent.heartbeat import Heartbeat
from executor.agent.state import AgentState
from executor.agent.token_use import TokenUseChecker
from executor.database.engine import open_engine
from executor.fulcrum.client import FulcrumClient


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def test_a_process_whose_new_token_belongs_to_another_agent_claims_no_more_jobs(world: World) -> None:
    """The agent was deleted and created again in FulcrumCore, and its new token was written to the token file."""
    tokens = [world.ids.agent_token]
    state = AgentState()
    heartbeat = Heartbeat(fulcrum=FulcrumClient(world.sim.url, lambda: tokens[-1]), state=state)
    heartbeat.send()
    assert (state.agent_id, state.may_claim) == (world.ids.agent_id, True)

    new_id, new_token = add_agent(
        world.admin, name="again", provider_id=world.ids.provider_id, agent_type_id=world.ids.agent_type_id
    )
    tokens.append(new_token)
    with structlog.testing.capture_logs() as logs:
        heartbeat.send()
        heartbeat.send()

    changes = [entry for entry in logs if entry["event"] == "agent_identity_changed"]
    assert [(entry["old_agent_id"], entry["agent_id"]) for entry in changes] == [(world.ids.agent_id, new_id)]
    assert (state.is_token_of_other_agent, state.may_claim) == (True, False)


def test_one_warning_is_logged_at_the_start_if_another_executor_uses_the_token(world: World, tmp_path: Path) -> None:
    client = FulcrumClient(world.sim.url, lambda: world.ids.agent_token)
    client.put_status("Connected")  # sent by the other installation, which has another database
    engine = open_engine(f"sqlite:///{migrated_sqlite_file(tmp_path)}")
    token_use = TokenUseChecker(engine=engine, fulcrum=client)
    heartbeat = Heartbeat(
        fulcrum=client, state=AgentState(), on_agent_identified=token_use.warn_if_other_installation_uses_token
    )
    with structlog.testing.capture_logs() as logs:
        heartbeat.send()
        heartbeat.send()
    engine.dispose()
    assert [entry["agent_id"] for entry in logs if entry["event"] == "token_used_elsewhere"] == [world.ids.agent_id]
