"""Unit tests start no servers: a test that needs a server is an integration test."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that listens on a socket, or that leaves a process running."""
    started: list[subprocess.Popen[Any]] = []
    start = subprocess.Popen.__init__

    def start_and_record(process: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
        start(process, *args, **options)
        started.append(process)

    monkeypatch.setattr(socket.socket, "listen", _refuse)
    monkeypatch.setattr(subprocess.Popen, "__init__", start_and_record)
    yield
    running = [process.args for process in started if process.poll() is None]
    assert not running, f"a unit test leaves processes running: {running}"


def _refuse(*_args: object) -> NoReturn:
    raise AssertionError("a unit test listens on a socket; move it to tests/integration")
