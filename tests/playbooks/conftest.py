"""One stand-in for the session; each test leaves the cluster as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
from executor_bench import ExecutorBench
from lab_bench import LabBench, is_wanted, problem
from play_bench import ROOT, Bench, load
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from warm_plays import WarmPlays


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Refuse `-m lab` without a lab: the tests would pass on the stand-in, and somebody would believe them."""
    if config.getoption("markexpr", "") == "lab" and (missing := problem()):
        raise pytest.UsageError(missing)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


@pytest.fixture(scope="session")
def bench_of_the_session(stand_in: ProxmoxStandIn, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(pve=stand_in, folder=tmp_path_factory.mktemp("plays"))


@pytest.fixture(scope="session")
def warm_plays(stand_in: ProxmoxStandIn) -> Iterator[WarmPlays | None]:
    """Plays as cheap as the executor's; None where another Ansible is to be tested, which may have no warm runs."""
    if "TEST_ANSIBLE_PLAYBOOK" in os.environ:
        yield None
        return
    plays = WarmPlays(stand_in)
    plays.start()
    yield plays
    plays.close()


@pytest.fixture(scope="session")
def real_bench(tmp_path_factory: pytest.TempPathFactory) -> LabBench:
    return LabBench(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Where a test plays: on the stand-in; one that is marked `lab`, on a real Proxmox when there is one.

    A test that is marked `by_hand` plays as a person does, the others from the servers of warm runs.

    Whatever was done to the stand-in is undone; its VMs may stay, no other test knows them. In a lab nothing stays.
    """
    if is_wanted() and request.node.get_closest_marker("lab"):
        real: LabBench = request.getfixturevalue("real_bench")
        yield real
        real.clear()
        return
    bench: Bench = request.getfixturevalue("bench_of_the_session")
    is_by_hand = request.node.get_closest_marker("by_hand") is not None
    yield bench if is_by_hand else replace(bench, warm=request.getfixturevalue("warm_plays"))
    pve = bench.pve
    pve.control("clear_faults")
    pve.control("time_scale", scale=0)
    pve.control("storage", storage="local-lvm", avail=2000 * 1024**3, active=1)


@pytest.fixture(scope="session")
def warm_executor(stand_in: ProxmoxStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorBench]:
    """The executor's own way, warm: for tests that need many plays."""
    executor = ExecutorBench.at(stand_in, tmp_path_factory.mktemp("warm-executor"))
    executor.warm_up()
    yield executor
    executor.runner.stop_warm()


@pytest.fixture(scope="session")
def decide() -> ModuleType:
    """The filters, as Python functions."""
    return load(ROOT / "playbooks" / "filter_plugins" / "smith.py")


@pytest.fixture(scope="session")
def looking() -> ModuleType:
    """The look-up plugin, as a Python module."""
    return load(ROOT / "playbooks" / "action_plugins" / "smith_vm_facts.py")
