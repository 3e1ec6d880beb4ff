"""Chooses the server on which the contract tests run: the simulator, or the real FulcrumCore named by an option."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from smith_lab.simulator.control import running_simulator
from support.contract_servers import RealServer, Server, SimulatedServer


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contract", "contract with FulcrumCore")
    group.addoption("--fulcrum-url", metavar="URL", help="check a real FulcrumCore instead of the simulator")
    group.addoption("--fulcrum-admin-token-file", metavar="FILE", help="a file with an admin token of this FulcrumCore")
    group.addoption(
        "--job-timeout", metavar="S", help="seconds until FulcrumCore has failed a job that is not reported"
    )
    group.addoption("--restart-command", metavar="COMMAND", help="shell command that restarts FulcrumCore")
    group.addoption("--record", action="store_true", help="store the server's answers in tests/contract/answers")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.config.getoption("--fulcrum-url", None):
        yield RealServer(request.config)
        return
    with running_simulator() as simulator:
        yield SimulatedServer(simulator)
