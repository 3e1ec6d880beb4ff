"""The servers with which the contract is checked: the simulator, or a real FulcrumCore that options of pytest name."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Protocol

import pytest
import requests
from smith_lab.simulator.control import SimulatorThread
from smith_lab.simulator.store import SEED_TOKEN
from support.conversation import TIMEOUT_S

#: How long a restarted FulcrumCore may take until it answers.
RESTART_TIMEOUT_S = 60


class Server(Protocol):
    """A server to which the requests of recorded conversations are sent."""

    api_url: str
    admin_token: str

    def can(self, need: str) -> bool:
        """Return whether this server can do what a conversation needs, `restart` or `time_out`."""

    def do(self, need: str) -> None:
        """`restart`: restart the server. `time_out`: wait until a job that was created just now has timed out."""


class SimulatedServer:
    def __init__(self, simulator: SimulatorThread) -> None:
        self._simulator = simulator
        self.api_url = simulator.api_url
        self.admin_token = SEED_TOKEN

    def can(self, need: str) -> bool:
        return True

    def do(self, need: str) -> None:
        if need == "restart":
            self._simulator.pause()
            self._simulator.resume()
        else:
            self._simulator.advance(self._simulator.server.store.options.job_timeout_s + 1)
            self._simulator.sweep()


class RealServer:
    def __init__(self, config: pytest.Config) -> None:
        self.api_url = config.getoption("--fulcrum-url").rstrip("/").removesuffix("/api/v1") + "/api/v1"
        self.admin_token = Path(config.getoption("--fulcrum-admin-token-file")).read_text().strip()
        self._timeout_s = float(config.getoption("--job-timeout") or 0)
        self._restart_command = config.getoption("--restart-command")

    def can(self, need: str) -> bool:
        return bool(self._restart_command if need == "restart" else self._timeout_s)

    def do(self, need: str) -> None:
        if need == "time_out":
            time.sleep(self._timeout_s)
            return
        subprocess.run(["/bin/sh", "-c", self._restart_command], check=True, timeout=RESTART_TIMEOUT_S)
        deadline = time.monotonic() + RESTART_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline, "FulcrumCore did not answer after its restart"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.api_url}/agents", timeout=TIMEOUT_S).status_code == 401
        except requests.ConnectionError:
            return False
