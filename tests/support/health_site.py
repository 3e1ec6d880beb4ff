"""An agent with its HTTP server, for the tests of that server."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from smith_lab.system import wait_for
from sqlalchemy import Engine

from executor.agent.state import AgentState
from executor.web import health
from executor.web.agent_view import AgentHandle, AgentView

TOKEN = "a-token-of-more-than-sixteen"
WITHIN_S = 60.0


class Site:
    """The parts of an agent, its pages on a socket, and a client."""

    def __init__(self, handle: AgentHandle, view: AgentView) -> None:
        self.handle = handle
        self.view = view

    @property
    def state(self) -> AgentState:
        return self.view.state

    @property
    def engine(self) -> Engine:
        return self.view.engine

    def attach(self, probe_interval_s: float = 0.05) -> None:
        """Attach the agent to the HTTP server, as the agent does at its start."""
        self.handle.attach(self.view, probe_interval_s=probe_interval_s)

    def turn(self, **quiet_s: float) -> None:
        """Record a turn of every loop: now, or `quiet_s` seconds ago for a loop named there."""
        for name in health.MAX_ITERATION_S_BY_LOOP:
            self.state.iteration_started_at[name] = time.monotonic() - quiet_s.get(name, 0.0)

    def ask(
        self, path: str, method: str = "GET", *, source: str = "127.0.0.1", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Send a request; return the status, the headers (names in lower case) and the body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.handle.port, WITHIN_S, source_address=(source, 0))
        try:
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            answer_headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer_headers, answer.read().decode()
        finally:
            connection.close()

    def checks(self, path: str, **headers: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Return the status of a health page, and its checks by name."""
        status, _headers, body = self.ask(path, **headers)
        return status, {check["name"]: check for check in json.loads(body)["checks"]}

    def metrics(self, **headers: str) -> dict[tuple[str, ...], float]:
        """Return every sample by its name and its labels' values."""
        status, answer_headers, body = self.ask("/metrics", **headers)
        assert status == 200, body
        assert answer_headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(body)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    def until(self, path: str, status: int) -> dict[str, dict[str, Any]]:
        """Wait until a page answers with this status; return its checks."""

        def checks_if_status() -> dict[str, dict[str, Any]] | None:
            answer = self.checks(path)
            return answer[1] if answer[0] == status else None

        return wait_for(checks_if_status, WITHIN_S, f"{path} to answer {status}")


MakeSite = Callable[..., Site]
