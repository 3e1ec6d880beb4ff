"""A dispatcher with all its parts on an empty SQLite database, and a FulcrumCore simulator for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.agent_parts import AgentParts
from support.simulator_world import World


@pytest.fixture(scope="module")
def sim_of_parts() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def parts(sim_of_parts: SimulatorThread, sqlite_engine: Engine, tmp_path: Path) -> Iterator[AgentParts]:
    """Return the parts. At the end, wait until no job runs."""
    world = World(sim_of_parts)
    parts = AgentParts(tmp_path, sqlite_engine, world)
    yield parts
    (tmp_path / "go").touch()  # the playbooks of some tests wait for this file
    parts.wait_until_idle()
    world.close()
