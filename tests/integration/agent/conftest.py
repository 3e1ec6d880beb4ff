"""A dispatcher with all its parts on an empty SQLite database, and a FulcrumCore simulator for each module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.agent_parts import AgentParts
from support.databases import migrated_sqlite_file
from support.outbox_world import Outbox
from support.simulator_world import World

from executor.database.engine import open_engine


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


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("outbox"))


@pytest.fixture
def outbox(sim: SimulatorThread, template: Path, tmp_path: Path) -> Iterator[Outbox]:
    shutil.copyfile(template, tmp_path / "smith.db")
    engine, world = open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), World(sim)
    yield Outbox(world, engine)
    world.close()
    engine.dispose()
