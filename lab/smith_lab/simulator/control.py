"""Starts a simulator in a thread or as a process, and calls its lab endpoints for tests and the demo.

The lab endpoints are the paths below /lab, which control the simulator. `simulator.__main__` documents them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from smith_lab.simulator.history import FaultsAndHistory
from smith_lab.simulator.server import DEFAULT_HOST, SimulatorServer
from smith_lab.simulator.store import ServerOptions, Store

CALL_TIMEOUT_S = 10.0
#: How long `start_simulator_process` waits until the new process accepts calls.
START_TIMEOUT_S = 20.0
#: How long a process may take to end after SIGTERM. Then it is killed.
STOP_TIMEOUT_S = 10.0


class SimulatorControl:
    """Calls the lab endpoints of one simulator. Raises requests.HTTPError if the simulator refuses a call."""

    def __init__(self, url: str) -> None:
        self.url = url  #: the URL without /api/v1, as in the agent's setting FULCRUM_API_URL
        self.api_url = f"{url}/api/v1"

    def call_lab(self, method: str, path: str, body: Any = None) -> Any:
        """Call the lab endpoint /lab/<path>; return the JSON of its answer."""
        # Tests send NaN and Infinity. The argument `json` of `requests` refuses them, so this method encodes the body.
        data = None if body is None else json.dumps(body)
        response = requests.request(method, f"{self.url}/lab/{path}", data=data, timeout=CALL_TIMEOUT_S)
        if response.status_code >= 400:
            raise requests.HTTPError(f"lab {method} {path}: {response.text}", response=response)
        return response.json()

    def now(self) -> float:
        """Return the server's time, in seconds since 1970."""
        return float(self.call_lab("GET", "clock")["now"])

    def set_clock(self, new_time: float | str) -> None:
        """Set the server's time. `new_time` is a number of seconds since 1970, or an RFC 3339 text."""
        self.call_lab("POST", "clock", {"set": new_time})

    def advance(self, seconds: float) -> None:
        """Move the server's time forward."""
        self.call_lab("POST", "clock", {"advance": seconds})

    def freeze(self, frozen: bool = True) -> None:
        """Make the server's clock stand still, or let it run again if `frozen` is false."""
        self.call_lab("POST", "clock", {"freeze": frozen})

    def sweep(self) -> dict[str, int]:
        """Do FulcrumCore's maintenance work once, and return how many rows each part of the work changed.

        The parts are: fail jobs that exceeded the job timeout, delete jobs that ended longer ago than the server option
        `job_retention_s` and, if enabled, disconnect agents that sent no heartbeat.
        """
        return dict(self.call_lab("POST", "sweep"))

    def add_fault(self, kind: str, **parameters: Any) -> None:
        """Add a fault rule, which makes chosen API calls fail, delays them or processes them twice.

        The module `fault_rules` explains the kinds and the parameters of a rule.
        """
        self.call_lab("POST", "faults", {"kind": kind, **parameters})

    def clear_faults(self) -> None:
        self.call_lab("DELETE", "faults")

    def history(
        self, *, method: str | None = None, path_end: str | None = None, since: int = 0
    ) -> list[dict[str, Any]]:
        """Return the recorded API calls, oldest first.

        `method` and `path_end` select the calls with this method and this end of the path; None selects all calls.
        `since` selects the calls whose sequence number (`seq`) is greater than `since`.
        """
        query = urllib.parse.urlencode({"since": since, "method": method or "", "path_end": path_end or ""})
        return list(self.call_lab("GET", f"history?{query}"))

    def clear_history(self) -> None:
        self.call_lab("DELETE", "history")

    def reset(self) -> None:
        """Restore the initial tables, fault rules, history, switches (`set_switches`), server options and clock."""
        self.call_lab("POST", "reset")

    def set_switches(self, **switches: bool) -> None:
        """Turn wrong behaviours of the simulator on or off. store.Switches explains all switches.

        For example, the switch `two_claims_win` makes a second claim of a job succeed.
        """
        self.call_lab("POST", "switches", switches)

    def set_options(self, **options: Any) -> None:
        """Change server options: job_timeout_s, agent_timeout_s, … (store.ServerOptions explains them)."""
        self.call_lab("POST", "options", options)

    def revoke_tokens(self, **values: str) -> None:
        """Revoke every token that has all these values. `values` may contain name, id, value, role and agent_id."""
        self.call_lab("POST", "tokens/revoke", values)

    def expire_job(self, job_id: str) -> None:
        """Make the job fail by timeout now, even if it is younger than the job timeout."""
        self.call_lab("POST", f"jobs/{job_id}/expire")

    def override_job(self, job_id: str, *, remove: tuple[str, ...] = (), **new_values: Any) -> None:
        """Change the job's JSON in the simulator's answers: set `new_values`, and remove the members named in `remove`.

        The stored job does not change. So an agent that cannot parse the changed JSON can still claim the job and
        report it as failed.
        """
        self.call_lab("POST", f"jobs/{job_id}/override", {"set": new_values, "remove": list(remove)})

    def delete_job(self, job_id: str) -> None:
        """Delete the job, as FulcrumCore deletes old jobs."""
        self.call_lab("DELETE", f"jobs/{job_id}")

    def add_secret(self, value: Any) -> str:
        """Store a secret; return its `vault://` reference."""
        return str(self.call_lab("POST", "vault", {"value": value})["reference"])

    def secret_references(self) -> list[str]:
        """Return the references of all stored secrets, without `vault://`."""
        return list(self.call_lab("GET", "vault"))

    def delete_secret(self, reference: str) -> None:
        self.call_lab("DELETE", f"vault/{reference.removeprefix('vault://')}")

    def delete_all_secrets(self) -> None:
        self.call_lab("DELETE", "vault")

    def add_raw_pending_items(self, *items: Any) -> None:
        """Add these items to the list of pending jobs of every agent. `delete_raw_pending_items` removes them.

        An item may be any JSON, also JSON that is not a job.
        """
        self.call_lab("POST", "pending", list(items))

    def delete_raw_pending_items(self) -> None:
        self.call_lab("DELETE", "pending")

    def state(self) -> dict[str, Any]:
        """Return the rows of all tables except pools, install tokens, events and subscriptions.

        The values of tokens and secrets are left out.
        """
        return dict(self.call_lab("GET", "state"))


class SimulatorThread(SimulatorControl):
    """A simulator in a thread of this process. `SimulatorProcess` is a simulator in another process."""

    def __init__(self, server: SimulatorServer) -> None:
        super().__init__(server.url)
        self.server = server

    def pause(self) -> None:
        """Refuse connections until `resume`, as if FulcrumCore were down. The simulator keeps its state and port."""
        self.server.pause()

    def resume(self) -> None:
        """Accept connections again."""
        self.server.resume()


@contextmanager
def running_simulator(
    *, host: str = DEFAULT_HOST, port: int = 0, new_service_id: Callable[[], str] | None = None, **options: Any
) -> Iterator[SimulatorThread]:
    """Run a new simulator for the `with` block. `options` are members of `simulator.store.ServerOptions`.

    `new_service_id` returns the id of each new service. Without it, the ids are random.
    """
    store = Store(options=ServerOptions(**options), new_service_id=new_service_id)
    server = SimulatorServer(store, FaultsAndHistory(), host=host, port=port)
    server.start()
    try:
        yield SimulatorThread(server)
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
        """Stop the process. Its state is lost. A second call does nothing."""
        _stop_process(self._process)


def start_simulator_process(*arguments: str, port: int = 0, log_file: Path | None = None) -> SimulatorProcess:
    """Start `python -m smith_lab.simulator` with these arguments, and wait until it accepts calls.

    The caller must stop the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "smith_lab.simulator", "--port", str(port)]
        command += ["--port-file", str(port_file), *arguments]
        with open(log_file or os.devnull, "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            return SimulatorProcess(process, _wait_for_port(process, port_file))
        except BaseException:
            _stop_process(process)
            raise


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], port_file: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the simulator ended with exit code {process.returncode}")
        if port_file.exists():
            return int(port_file.read_text())
        time.sleep(0.02)
    raise TimeoutError(f"the simulator did not start within {START_TIMEOUT_S:.0f} s")
