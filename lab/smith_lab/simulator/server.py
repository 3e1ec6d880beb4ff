"""Runs the FulcrumCore simulator's HTTP server: uvicorn in a thread.

Tests add fault rules, which make chosen API calls fail or delay them. The fault layer is the middleware that applies
these rules. It also adds each API call to the history, from which tests read what the server received.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from uvicorn.protocols.http.h11_impl import H11Protocol

from smith_lab.simulator import maintenance
from smith_lab.simulator.api import API_PREFIX, Api, answer_routing_error
from smith_lab.simulator.cors import Cors
from smith_lab.simulator.fault_layer import FaultLayer
from smith_lab.simulator.history import FaultsAndHistory
from smith_lab.simulator.lab_api import lab_routes
from smith_lab.simulator.store import Store

#: The default of the address on which the server listens.
DEFAULT_HOST = "127.0.0.1"
#: How long `stop` waits for unfinished calls, such as calls that a test delays by a fault rule.
SHUTDOWN_TIMEOUT_S = 1
#: How long a client may keep an idle connection open.
KEEP_ALIVE_S = 60
#: How long `start` waits until uvicorn accepts calls.
START_TIMEOUT_S = 10.0


class _ProtocolWithTransport(H11Protocol):
    """Adds the connection (`transport`) to the state of each request, so that a fault rule can close the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


def make_app(store: Store, faults_and_history: FaultsAndHistory) -> Starlette:
    """Return the ASGI application: the API, the lab endpoints (they control the simulator), and the fault layer."""
    app = Starlette(
        routes=[*lab_routes(store, faults_and_history), Mount(API_PREFIX, app=Api(store))],
        middleware=[Middleware(FaultLayer, store=store, faults_and_history=faults_and_history), Middleware(Cors)],
        exception_handlers={404: answer_routing_error, 405: answer_routing_error},
    )
    app.router.redirect_slashes = False
    return app


class SimulatorServer:
    """One simulator on one port. `pause` closes the socket and every connection. `resume` opens the same port again."""

    def __init__(
        self, store: Store, faults_and_history: FaultsAndHistory, *, host: str = DEFAULT_HOST, port: int = 0
    ) -> None:
        self.store = store
        self.faults_and_history = faults_and_history
        self.host = host
        self.port = port
        self._app = make_app(store, faults_and_history)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._maintenance_stop_requested = threading.Event()
        self._maintenance_thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The server's URL without a path. An agent gets it in FULCRUM_API_URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the server accepts calls."""
        return self._thread is not None

    def start(self) -> None:
        """Start to accept calls. If the port is 0, the operating system chooses a port, which `resume` uses again."""
        listener = _open_listener(self.host, self.port)
        self.port = listener.getsockname()[1]
        self.store.origin = self.url  # the store needs it for URLs in answers
        self._server = uvicorn.Server(_server_config(self._app))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="fulcrum-simulator", daemon=True
        )
        self._thread.start()
        self._wait_until_started()
        self._start_maintenance_thread()

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._server is not None and not self._server.started:
            if time.monotonic() > deadline or self._thread is None or not self._thread.is_alive():
                raise RuntimeError("the simulator did not start")
            time.sleep(0.005)

    def _start_maintenance_thread(self) -> None:
        """Start the thread that does FulcrumCore's periodic maintenance. If the interval is 0, start no thread."""
        interval_s = self.store.options.maintenance_interval_s
        if interval_s <= 0:
            return
        self._maintenance_stop_requested.clear()
        self._maintenance_thread = threading.Thread(
            target=self._repeat_maintenance, args=(interval_s,), name="maintenance", daemon=True
        )
        self._maintenance_thread.start()

    def _repeat_maintenance(self, interval_s: float) -> None:
        """Do the maintenance once per interval, until the server stops.

        It fails overdue jobs, deletes old jobs, and sets agents without heartbeats to the status Disconnected.

        The members `job_maintenance` and `agent_maintenance` of the store's options can turn parts of this work off.
        """
        while not self._maintenance_stop_requested.wait(interval_s):
            with self.store.lock:
                maintenance.sweep(self.store)

    def stop(self) -> None:
        """Close the socket and every connection. A second call does nothing."""
        self._maintenance_stop_requested.set()
        if self._maintenance_thread is not None:
            self._maintenance_thread.join()
            self._maintenance_thread = None
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._server = self._thread = None

    def pause(self) -> None:
        """Refuse connections until `resume`, as if FulcrumCore were down. The rows in the store do not change."""
        self.stop()

    def resume(self) -> None:
        """Accept calls on the same port again.

        Each start of FulcrumCore adds an admin token `change-me`. For the first start, the store has added the token.
        """
        with self.store.lock:
            self.store.add_seed_token()
        self.start()


def _open_listener(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only on sockets that were created with IPPROTO_TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _server_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_ProtocolWithTransport,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,  # the fault layer adds this header, with the time of the simulator's clock
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
