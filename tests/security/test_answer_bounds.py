"""One answer of FulcrumCore or Proxmox can neither exhaust the memory nor occupy a thread for ever."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.certificates import make_certificates
from support.one_answer import READERS
from support.wire_server import Reply, WireServer, reply

from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
#: The limit for the peak of the reader's memory.
MAX_MIB = 300
#: Bodies that are larger than any limit, or need the most memory of those below a limit. Compressed, each has at
#: most about 100 kB.
BODIES: dict[str, bytes] = {
    "blanks": b" " * 64 * MIB,
    "lists": b'{"data":[' + b"[]," * 11 * MIB + b"[]]}",
    "small objects": b"[" + b'{"":0},' * MIB + b"{}]",
    "wide text": b'["' + "\U0001f600".encode() + b"x" * 31 * MIB + b'"]',
    "just below Proxmox's limit": b'{"data":[' + b'{"":0},' * (MIB - 4) + b"{}]}",
}


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    certificate, key = make_certificates(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture(scope="module")
def answers() -> list[Reply]:
    return [reply(200, gzip.compress(body, 1), Content_Encoding="gzip") for body in BODIES.values()]


@pytest.mark.parametrize("kind", READERS)
def test_an_answer_of_any_size_costs_a_limited_amount_of_memory(
    kind: str, answers: list[Reply], tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """The reader is a process of its own that reads all answers: the peak of its memory is that of the worst answer."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "lab", ".collections"))
    with WireServer(*answers, tls=tls) as server:
        port = server.url.rpartition(":")[2]
        ran = subprocess.run(
            [sys.executable, "-m", "support.one_answer", kind, port, str(tmp_path / "ca.pem"), str(len(answers))],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert len(server.requests) == len(answers)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout)
    assert measured["mib"] < MAX_MIB, measured


@pytest.fixture
def stop_sending() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
)
@pytest.mark.parametrize("login", [{"token_id": "job", "token_secret": "secret"}, {"password": "secret"}])
def test_an_answer_of_proxmox_that_never_ends_is_a_pve_timeout(  # noqa: PLR0917 (two of them are columns)
    tls: ssl.SSLContext,
    tmp_path: Path,
    stop_sending: threading.Event,
    beginning: bytes,
    piece: bytes,
    login: dict[str, str],
) -> None:
    """Each byte restarts the timeout of a read, so the wait needs a limit of its own."""

    def send_slowly(wire: ssl.SSLSocket) -> None:
        wire.sendall(beginning or b"HTTP/1.1 100 Continue\r\n\r\n")
        while not stop_sending.wait(0.05):
            wire.sendall(piece)

    with WireServer(send_slowly, tls=tls) as server:  # type: ignore[arg-type]
        port = int(server.url.rpartition(":")[2])
        address: dict[str, Any] = {"host": "127.0.0.1", "port": port, "user": "smith@pve"}
        connection = ProxmoxConnection(**address, verify=tmp_path / "ca.pem", **login)  # type: ignore[arg-type]
        with pytest.raises(JobError) as caught:
            ProxmoxReader(connection, timeout_s=0.2).vms()
        stop_sending.set()
    assert caught.value.code == "PVE_TIMEOUT"
