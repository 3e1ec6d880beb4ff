"""Fault tests: real processes, real sockets, a real database; each ends in a proof that all sides agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.rig import Rig, running_rig

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """Start rigs with settings of the test's own; the executor is the test's to start."""
    with ExitStack() as stack:
        count = 0

        def make(*, time_scale: float = 0.0, **settings: str) -> Rig:
            nonlocal count
            count += 1
            folder = tmp_path / f"rig{count}"
            folder.mkdir()
            return stack.enter_context(running_rig(folder, time_scale=time_scale, **settings))

        yield make


@pytest.fixture(scope="module")
def rig_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One running system; its clones take two seconds, so that they can be met at work."""
    with running_rig(tmp_path_factory.mktemp("rig"), time_scale=0.2) as rig:
        rig.start()
        yield rig


@pytest.fixture
def rig(rig_of_the_module: Rig) -> Iterator[Rig]:
    """The module's system; the faults of a test end with it, whatever became of it."""
    yield rig_of_the_module
    rig_of_the_module.heal()
