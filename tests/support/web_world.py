"""What the tests of the pages share: the pages of an agent on a socket, with a database that a test fills."""

from __future__ import annotations

import http.client
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import Engine

from executor.agent.meters import PrometheusMetrics
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.database import agent_queries, nodes
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import Settings, load_settings
from executor.web.agent_view import AgentHandle, AgentView
from executor.web.server import serving_pages

TOKEN = "a-token-of-more-than-sixteen"
WITHIN_S = 60.0
BOOT_ID = "boot-1"
#: The login of a Proxmox that does not answer: no test of the pages needs one.
NO_PROXMOX = {
    "PROXMOX_HOST": "127.0.0.1",
    "PROXMOX_PORT": "1",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "smith",
    "PROXMOX_TOKEN_SECRET": "not-a-secret",
}


@dataclass
class Answer:
    """The response of a page."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Browser:
    """Sends requests as a browser does. It stores the session cookie and sends it with later requests."""

    port: int
    source: str = "127.0.0.1"
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, {"Accept": "text/html,*/*", **headers})

    def post(self, path: str, form: dict[str, str], **headers: str) -> Answer:
        sent = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{self.port}"}
        return self._ask("POST", path, urlencode(form), {"Accept": "text/html", **sent, **headers})

    def log_in(self, name: str = "Ada", token: str = TOKEN, **headers: str) -> Answer:
        return self.post("/login", {"name": name, "token": token}, **headers)

    def act(self, path: str, **form: str) -> Answer:
        """Send a form, with the form token of the page /audit."""
        page = self.get("/audit").text
        token = page.partition('name="form_token" value="')[2].partition('"')[0]
        return self.post(path, {"form_token": token, **form})

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, WITHIN_S, source_address=(self.source, 0))
        try:
            sent = {name.replace("_", "-"): value for name, value in (self.headers | headers).items() if value}
            if self.cookie:
                sent["Cookie"] = self.cookie
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, received, response.read().decode())
        finally:
            connection.close()
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


@dataclass(frozen=True)
class PagesSite:
    """The pages of an agent, and what they read."""

    handle: AgentHandle
    view: AgentView
    settings: Settings

    @property
    def engine(self) -> Engine:
        return self.view.engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.handle.port}"

    def browser(self, **headers: str) -> Browser:
        return Browser(self.handle.port, headers=headers)

    def logged_in(self, name: str = "Ada") -> Browser:
        """Log in with this name; return the browser, which has the session cookie."""
        browser = self.browser()
        assert browser.log_in(name).status == 303
        return browser


@contextmanager
def running_pages(folder: Path, database_file: Path, *, attached: bool = True, **variables: str) -> Iterator[PagesSite]:
    """Serve the pages of an agent that runs nothing. `variables` are settings; a token is set.

    Without `attached`, the pages have no access to the agent yet, as while the agent starts.

    A database that is in the folder already is used again, and one that SMITH_DATABASE_URL names must be migrated.
    """
    environ = {"SMITH_DATA_DIR": str(folder), "SMITH_RUN_DIR": str(folder / "run"), "SMITH_CONCURRENCY": "4"}
    environ |= {"SMITH_HTTP_ADDR": "127.0.0.1:0", "SMITH_HTTP_TOKEN": TOKEN} | NO_PROXMOX | variables
    settings = load_settings(env_file=None, environ={name: value for name, value in environ.items() if value})
    if not settings.smith_database_url.startswith("postgresql") and not (folder / "smith.db").exists():
        shutil.copyfile(database_file, folder / "smith.db")
    engine = open_engine(settings.smith_database_url)
    with transaction(engine) as session:
        if agent_queries.find_process_not_stopped(session, BOOT_ID) is None:
            nodes.store_agent_start(
                session, AgentProcess(boot_id=BOOT_ID, host="here", pid=1, version="0", concurrency=4)
            )
    view = AgentView(
        boot_id=BOOT_ID,
        settings=settings,
        state=AgentState(),
        scheduler=Scheduler(engine, []),
        engine=engine,
        proxmox=ProxmoxReader(ProxmoxConnection.from_settings(settings), timeout_s=1),
        meters=PrometheusMetrics(),
        measure_memory_mib=lambda: 12.0,
    )
    try:
        with serving_pages(settings) as handle:
            if attached:
                handle.attach(view)
            yield PagesSite(handle, view, settings)
    finally:
        engine.dispose()


def address_of_this_machine() -> str:
    """Return an IPv4 address of this machine that is not a loopback address. Skip the test if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, only chooses the address of the sender
        except OSError:
            pytest.skip("this machine has only loopback addresses")
        return str(probe.getsockname()[0])
