"""Fixtures of the playbook tests. All share one stand-in of Proxmox; its faults are cleared after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from both_ways import WAYS, Play, by_hand, by_the_agent
from executor_bench import ExecutorBench
from lab_bench import LabBench, problem_of_settings
from play_bench import Bench
from smith_lab.lab_test.lab_settings import is_lab_configured
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from warm_plays import WarmPlays


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Refuse `-m lab` without a lab: otherwise the tests would silently run on the stand-in."""
    if config.getoption("markexpr", "") == "lab" and (missing := problem_of_settings()):
        raise pytest.UsageError(missing)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


@pytest.fixture(scope="session")
def session_bench(stand_in: ProxmoxStandIn, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(pve=stand_in, folder=tmp_path_factory.mktemp("plays"))


@pytest.fixture(scope="session")
def warm_plays(stand_in: ProxmoxStandIn) -> Iterator[WarmPlays | None]:
    """Servers that fork plays; None if TEST_ANSIBLE_PLAYBOOK names another Ansible, which may not support warm runs."""
    if "TEST_ANSIBLE_PLAYBOOK" in os.environ:
        yield None
        return
    plays = WarmPlays(stand_in)
    plays.start()
    yield plays
    plays.close()


@pytest.fixture(scope="session")
def lab_bench(tmp_path_factory: pytest.TempPathFactory) -> LabBench:
    return LabBench(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Runs a test's playbooks on the stand-in, or, for the mark `lab` and with a configured lab, on a real Proxmox.

    A test with the mark `by_hand` runs `ansible-playbook`; the others use the servers of warm runs.

    Afterwards faults are cleared on the stand-in; its VMs stay, as no other test uses them. A lab's VMs are deleted.
    """
    if is_lab_configured(os.environ) and request.node.get_closest_marker("lab"):
        real: LabBench = request.getfixturevalue("lab_bench")
        yield real
        real.clear()
        return
    bench: Bench = request.getfixturevalue("session_bench")
    is_by_hand = request.node.get_closest_marker("by_hand") is not None
    yield bench if is_by_hand else replace(bench, warm=request.getfixturevalue("warm_plays"))
    pve = bench.pve
    pve.control("clear_faults")
    pve.control("time_scale", scale=0)
    pve.control("storage", storage="local-lvm", avail=2000 * 1024**3, active=1)


@pytest.fixture(params=["8.4.1", "9.0.10"])
def pve_version(request: pytest.FixtureRequest, bench: Bench) -> Iterator[str]:
    """The version of the stand-in. The test runs once for each version."""
    bench.pve.control("version", version=request.param)
    yield str(request.param)
    bench.pve.control("version", version="9.0.10")


@pytest.fixture(scope="session")
def shared_executor(stand_in: ProxmoxStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorBench]:
    """The executor's runner, shared by all tests. It starts warm runs, which cost less CPU than new processes."""
    executor = ExecutorBench.at(stand_in, tmp_path_factory.mktemp("shared-executor"))
    executor.warm_up()
    yield executor
    executor.runner.stop_warm_server()


@pytest.fixture(params=WAYS)
def play(request: pytest.FixtureRequest, bench: Bench) -> Play:
    """A function that runs an action. The test runs twice: with actions run by hand, and run by the agent."""
    return by_hand(bench) if request.param == WAYS[0] else by_the_agent(request.getfixturevalue("shared_executor"))
