"""Starts a simulator in a thread or as a process, and calls its lab endpoints for tests and the demo."""

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
        """Call one lab endpoint; return its JSON."""
        # The encoder of requests refuses NaN and Infinity, which tests send.
        data = None if body is None else json.dumps(body)
        response = requests.request(method, f"{self.url}/lab/{path}", data=data, timeout=LAB_TIMEOUT_S)
        if response.status_code >= 400:
            raise requests.HTTPError(f"lab {method} {path}: {response.text}", response=response)
        return response.json()

    def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        return float(self.call_lab("GET", "clock")["now"])

    def set_clock(self, at: float | str) -> None:
        self.call_lab("POST", "clock", {"set": at})

    def advance(self, seconds: float) -> None:
        self.call_lab("POST", "clock", {"advance": seconds})

    def freeze(self, frozen: bool = True) -> None:
        self.call_lab("POST", "clock", {"freeze": frozen})

    def sweep(self) -> dict[str, int]:
        """Apply timeout and retention now; return how many rows each changed."""
        return dict(self.call_lab("POST", "sweep"))

    def fault(self, kind: str, **rule: Any) -> None:
        """Add one fault rule; smith_lab.simulator.fault_rules describes its members."""
        self.call_lab("POST", "faults", {"kind": kind, **rule})

    def clear_faults(self) -> None:
        self.call_lab("DELETE", "faults")

    def history(self, *, method: str | None = None, path: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return the calls so far, oldest first. `path` is the end of the calls' path."""
        query = urllib.parse.urlencode({"since": since, "method": method or "", "path_end": path or ""})
        return list(self.call_lab("GET", f"history?{query}"))

    def clear_history(self) -> None:
        self.call_lab("DELETE", "history")

    def reset(self) -> None:
        self.call_lab("POST", "reset")

    def switch(self, **switches: bool) -> None:
        """Set two_claims_win, database_down or vault_off."""
        self.call_lab("POST", "switches", switches)

    def set_options(self, **options: Any) -> None:
        self.call_lab("POST", "options", options)

    def revoke_token(self, **members: str) -> None:
        """Revoke every token with this name, id, value, role or agent_id."""
        self.call_lab("POST", "tokens/revoke", members)

    def expire_job(self, job_id: str) -> None:
        self.call_lab("POST", f"jobs/{job_id}/expire")

    def override_job(self, job_id: str, *, remove: tuple[str, ...] = (), **members: Any) -> None:
        """Replace or remove members of the job's JSON. The stored job stays, so it can be claimed and failed."""
        self.call_lab("POST", f"jobs/{job_id}/override", {"set": members, "remove": list(remove)})

    def delete_job(self, job_id: str) -> None:
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
        """Append raw JSON items to every agent's pending list."""
        self.call_lab("POST", "pending", list(items))

    def clear_pending(self) -> None:
        self.call_lab("DELETE", "pending")

    def state(self) -> dict[str, Any]:
        return dict(self.call_lab("GET", "state"))


class RunningSimulator(SimulatorControl):
    """A simulator in a thread of this process."""

    def __init__(self, server: SimulatorServer) -> None:
        super().__init__(server.url)
        self.server = server

    def pause(self) -> None:
        """Refuse connections until `resume`, as when FulcrumCore is down. State and port are kept."""
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()


@contextmanager
def running_simulator(*, port: int = 0, **options: Any) -> Iterator[RunningSimulator]:
    """Run a new simulator for the `with` block. `options` are those of `simulator.store.Options`."""
    server = SimulatorServer(Store(options=Options(**options)), LabState(), port=port)
    server.start()
    try:
        yield RunningSimulator(server)
    finally:
        server.stop()


class SimulatorProcess(SimulatorControl):
    """A simulator in a process of its own."""

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
    """Start `python -m smith_lab.simulator` and wait until it answers. The caller stops it."""
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
