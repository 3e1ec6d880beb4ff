"""Runs a FulcrumCore whose process and whose PostgreSQL a test kills: a given binary, or the simulator in its place."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import requests
from smith_lab.fulcrum_setup import SEED_TOKEN
from smith_lab.simulator.control import SimulatorThread
from support.databases import PostgresCluster, empty_cluster, postgres_binaries

START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0
#: The database keeps every commit when its processes are killed. It need not survive a crash of the machine.
DATABASE_OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=80")
DATABASE = "fulcrum_db"
#: The age at which FulcrumCore fails a job (its default), and how often it looks for such jobs.
JOB_TIMEOUT = "5m"
JOB_MAINTENANCE_INTERVAL = "10s"


class Core(Protocol):
    """A FulcrumCore that can be killed. `restore` starts all that was killed."""

    url: str
    parts: tuple[str, ...]  #: what can be killed: `process`, `database` or both

    def kill(self, part: str) -> None:
        """Kill a part with SIGKILL."""

    def restore(self) -> None:
        """Start the killed parts and wait until FulcrumCore answers."""


@dataclass(kw_only=True)
class RealCore:
    """A binary of FulcrumCore with a PostgreSQL server of its own."""

    binary: Path
    cluster: PostgresCluster
    folder: Path
    environment: dict[str, str]
    url: str
    parts: tuple[str, ...] = ("process", "database")
    _process: subprocess.Popen[bytes] | None = None
    _is_database_killed: bool = False

    def start(self) -> None:
        """Start the binary and wait until it answers."""
        with (self.folder / "fulcrum.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_until_fulcrumcore_answers()

    def kill(self, part: str) -> None:
        if part == "database":
            self.cluster.kill()
            self._is_database_killed = True
        elif self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restore(self) -> None:
        if self._is_database_killed:
            self.cluster.start()
            self._is_database_killed = False
        if self._process is None:
            self.start()
        else:
            self._wait_until_fulcrumcore_answers()

    def _wait_until_fulcrumcore_answers(self) -> None:
        """Wait until FulcrumCore reads its database. Without the database, FulcrumCore answers every token with 403."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts_seed_token():
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                raise RuntimeError((self.folder / "fulcrum.log").read_text(errors="replace")[-3000:])
            time.sleep(0.1)

    def _accepts_seed_token(self) -> bool:
        """Return whether FulcrumCore accepts the token that each new database of FulcrumCore contains."""
        headers = {"Authorization": f"Bearer {SEED_TOKEN}"}
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(f"{self.url}/api/v1/metric-types", headers=headers, timeout=CALL_TIMEOUT_S)
            return answer.status_code == 200
        return False

    def stop(self) -> None:
        """Kill the process. The cluster ends by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class SimulatedCore:
    """The simulator in the place of a binary. A kill makes it refuse connections, or answer 403 as without database."""

    simulator: SimulatorThread
    parts: tuple[str, ...] = ("database", "process")

    @property
    def url(self) -> str:
        return self.simulator.url

    def kill(self, part: str) -> None:
        if part == "database":
            # The call that FulcrumCore processes at this moment may be stored although it gets no answer.
            self.simulator.add_fault("drop_after", path=r"/jobs/", times=1)
            self.simulator.add_fault("status", status=403, path="^/api/")
        else:
            self.simulator.pause()

    def restore(self) -> None:
        if not self.simulator.server.is_running:
            self.simulator.resume()
        self.simulator.clear_faults()


@contextmanager
def running_real_core(binary: Path, folder: Path) -> Iterator[RealCore]:
    """Run a binary of FulcrumCore on an empty database. Raises RuntimeError without a PostgreSQL server.

    Settings in this process's environment that begin with FULCRUM_ are passed on, apart from those of the run.
    """
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL server on this machine")
    with empty_cluster(binaries, DATABASE_OPTIONS) as cluster:
        cluster.execute(f"CREATE DATABASE {DATABASE}")
        port, health_port = _free_ports(2)
        folder.mkdir()
        core = RealCore(
            binary=binary,
            cluster=cluster,
            folder=folder,
            environment=_environment(cluster, port, health_port),
            url=f"http://127.0.0.1:{port}",
        )
        try:
            core.start()
            yield core
        finally:
            core.stop()


def _environment(cluster: PostgresCluster, port: int, health_port: int) -> dict[str, str]:
    """Return the environment variables of the binary."""
    dsn = f"host={cluster.folder} user=smith dbname={DATABASE}"
    inherited = {name: value for name, value in os.environ.items() if name.startswith("FULCRUM_")}
    return {
        "PATH": os.environ["PATH"],
        "FULCRUM_VAULT_ENCRYPTION_KEY": secrets.token_hex(32),
        "FULCRUM_AUTHENTICATORS": "token",
        "FULCRUM_LOG_LEVEL": "error",
        "FULCRUM_JOB_MAINTENANCE": "true",
        "FULCRUM_JOB_MAINTENANCE_INTERVAL": JOB_MAINTENANCE_INTERVAL,
        "FULCRUM_JOB_TIMEOUT_INTERVAL": JOB_TIMEOUT,
    } | inherited | {
        "FULCRUM_PUBLIC_BASE_URL": f"http://127.0.0.1:{port}",
        "FULCRUM_PORT": str(port),
        "FULCRUM_HEALTH_PORT": str(health_port),
        "FULCRUM_DB_DSN": dsn,
        "FULCRUM_METRIC_DB_DSN": dsn,
        "FULCRUM_SCHEDULER_LOCKER_DB_DSN": dsn,
    }  # fmt: skip


def _free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
