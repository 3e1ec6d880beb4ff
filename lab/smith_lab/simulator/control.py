"""Starts a simulator in a thread or as a process, and calls its lab endpoints for tests and the demo.

`simulator.__main__` documents the lab endpoints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from smith_lab.simulator.history import LabState
from smith_lab.simulator.server import SimulatorServer
from smith_lab.simulator.store import Options, Store

LAB_TIMEOUT_S = 10.0
START_TIMEOUT_S = 20.0


class SimulatorControl:
    """Calls the lab endpoints of one simulator. Raises requests.HTTPError if the simulator refuses a call."""

    def __init__(self, url: str) -> None:
        self.url = url  #: the origin, the value of FULCRUM_API_URL
        self.api_url = f"{url}/api/v1"

    def call_lab(self, method: str, path: str, body: Any = None) -> Any:
        """Call the lab endpoint /lab/<path>; return the JSON of its answer."""
        # Tests send NaN and Infinity. The library requests refuses them in its argument `json`.
        data = None if body is None else json.dumps(body)
        response = requests.request(method, f"{self.url}/lab/{path}", data=data, timeout=LAB_TIMEOUT_S)
        if response.status_code >= 400:
            raise requests.HTTPError(f"lab {method} {path}: {response.text}", response=response)
        return response.json()

    def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        return float(self.call_lab("GET", "clock")["now"])

    def set_clock(self, at: float | str) -> None:
        """Set the server's time: seconds since the epoch, or an RFC 3339 text."""
        self.call_lab("POST", "clock", {"set": at})

    def advance(self, seconds: float) -> None:
        """Move the server's time forward."""
        self.call_lab("POST", "clock", {"advance": seconds})

    def freeze(self, frozen: bool = True) -> None:
        """Stop the server's clock, or let it run again."""
        self.call_lab("POST", "clock", {"freeze": frozen})

    def sweep(self) -> dict[str, int]:
        """Run FulcrumCore's maintenance once: job timeout, job retention and, if enabled, disconnecting silent agents.

        Return how many rows each part changed.
        """
        return dict(self.call_lab("POST", "sweep"))

    def fault(self, kind: str, **rule: Any) -> None:
        """Add one fault rule. The module smith_lab.simulator.fault_rules describes its kind and its other members."""
        self.call_lab("POST", "faults", {"kind": kind, **rule})

    def clear_faults(self) -> None:
        self.call_lab("DELETE", "faults")

    def history(self, *, method: str | None = None, path: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return the recorded API calls, oldest first.

        `path` is what the path of a call must end with. `since` is a number `seq`; only later calls are returned.
        """
        query = urllib.parse.urlencode({"since": since, "method": method or "", "path_end": path or ""})
        return list(self.call_lab("GET", f"history?{query}"))

    def clear_history(self) -> None:
        self.call_lab("DELETE", "history")

    def reset(self) -> None:
        """Return the simulator to the state of a new server."""
        self.call_lab("POST", "reset")

    def switch(self, **switches: bool) -> None:
        """Turn wrong behaviours on or off: two_claims_win, database_down, vault_off (see store.Switches)."""
        self.call_lab("POST", "switches", switches)

    def set_options(self, **options: Any) -> None:
        """Change settings of the simulated server (see store.Options)."""
        self.call_lab("POST", "options", options)

    def revoke_token(self, **members: str) -> None:
        """Revoke every token with this name, id, value, role or agent_id."""
        self.call_lab("POST", "tokens/revoke", members)

    def expire_job(self, job_id: str) -> None:
        """Fail the job by timeout now, at any age."""
        self.call_lab("POST", f"jobs/{job_id}/expire")

    def override_job(self, job_id: str, *, remove: tuple[str, ...] = (), **members: Any) -> None:
        """Replace or remove members of the job's JSON in answers. The stored job does not change.

        So an agent can still claim the job and report it as failed.
        """
        self.call_lab("POST", f"jobs/{job_id}/override", {"set": members, "remove": list(remove)})

    def delete_job(self, job_id: str) -> None:
        """Delete the job, as FulcrumCore's retention does."""
        self.call_lab("DELETE", f"jobs/{job_id}")

    def add_secret(self, value: Any) -> str:
        """Store a secret; return its `vault://` reference."""
        return str(self.call_lab("POST", "vault", {"value": value})["reference"])

    def secrets(self) -> list[str]:
        """Return the references of all stored secrets, without `vault://`."""
        return list(self.call_lab("GET", "vault"))

    def delete_secret(self, reference: str) -> None:
        self.call_lab("DELETE", f"vault/{reference.removeprefix('vault://')}")

    def delete_all_secrets(self) -> None:
        self.call_lab("DELETE", "vault")

    def inject_pending(self, *items: Any) -> None:
        """Append any JSON items to the list of pending jobs of every agent, until `clear_pending` removes them."""
        self.call_lab("POST", "pending", list(items))

    def clear_pending(self) -> None:
        self.call_lab("DELETE", "pending")

    def state(self) -> dict[str, Any]:
        """Return every table, without the values of tokens and secrets."""
        return dict(self.call_lab("GET", "state"))


class RunningSimulator(SimulatorControl):
    """A simulator in a thread of this process."""

    def __init__(self, server: SimulatorServer) -> None:
        super().__init__(server.url)
        self.server = server

    def pause(self) -> None:
        """Refuse connections until `resume`, as when FulcrumCore is down. The simulator keeps its state and port."""
        self.server.pause()

    def resume(self) -> None:
        """Accept connections again."""
        self.server.resume()


@contextmanager
def running_simulator(*, port: int = 0, **options: Any) -> Iterator[RunningSimulator]:
    """Run a new simulator for the `with` block. `options` are members of `simulator.store.Options`."""
    server = SimulatorServer(Store(options=Options(**options)), LabState(), port=port)
    server.start()
    try:
        yield RunningSimulator(server)
    finally:
        server.stop()


class SimulatorProcess(SimulatorControl):
    """A simulator in a separate process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.port = port
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Stop the process; its state is lost. A second call does nothing."""
        _stop(self._process)


def start_simulator_process(*arguments: str, port: int = 0, log_file: Path | None = None) -> SimulatorProcess:
    """Start `python -m smith_lab.simulator` with these arguments, and wait until it answers.

    The caller must stop the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "smith_lab.simulator", "--port", str(port)]
        command += ["--port-file", str(port_file), *arguments]
        with open(log_file or Path("/dev/null"), "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            return SimulatorProcess(process, _wait_for_port(process, port_file))
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=LAB_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], port_file: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the simulator ended with {process.returncode}")
        if port_file.exists():
            return int(port_file.read_text())
        time.sleep(0.02)
    raise TimeoutError(f"the simulator did not start within {START_TIMEOUT_S:.0f} s")
