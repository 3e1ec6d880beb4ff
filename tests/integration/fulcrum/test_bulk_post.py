"""Metrics are posted by a shorter code path, which sends the same request and raises the same errors."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.certificates import make_certificates
from support.wire_server import Serve, WireServer, reply

from executor.errors import FulcrumAuthError, FulcrumError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.transport import Transport

TOKEN = "tok-8c1f0c77e5"
PATH = "/metric-entries"
BODY = {"agentInstanceId": "a/101", "resourceId": "cpu", "typeName": "vm.cpu.usage", "value": 0.25}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a WireServer with these replies. The server ends with the test."""
    with ExitStack() as stack:
        yield lambda *replies, **more: stack.enter_context(WireServer(*replies, **more))


def transport_to(url: str, verify: bool | str = True, get_token: Callable[[], str] = lambda: TOKEN) -> Transport:
    return Transport(url, get_token, verify, (5, 5), lambda: None)


def post(transport: Transport, *, reuses_prepared_request: bool, body: Any = None) -> None:
    transport.request_without_result(
        "POST", PATH, body=BODY if body is None else body, reuses_prepared_request=reuses_prepared_request
    )


def _send_and_close(answer: bytes) -> Callable[[socket.socket], None]:
    def send(sock: socket.socket) -> None:
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_RDWR)

    return send


def test_both_code_paths_send_the_same_request(serve: Serve) -> None:
    server = serve(reply(201, {}))
    transport = transport_to(server.url)
    for body in (BODY, BODY | {"value": 1e-7, "resourceId": "ä\x00b"}):
        server.requests.clear()
        post(transport, reuses_prepared_request=False, body=body)
        post(transport, reuses_prepared_request=True, body=body)
        ordinary, bulk = server.requests
        assert bulk == ordinary


def test_a_proxy_from_the_environment_is_used_with_its_password(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(reply(201, {}))
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:word@"))
    monkeypatch.setenv("no_proxy", "")
    transport = transport_to("http://core.invalid:3000")
    post(transport, reuses_prepared_request=False)
    post(transport, reuses_prepared_request=True)
    ordinary, bulk = proxy.requests
    assert bulk == ordinary
    assert bulk[0].startswith("POST http://core.invalid:3000/api/v1/metric-entries")
    assert "proxy-authorization" in bulk[1]


@pytest.mark.parametrize(
    ("answer", "error_class"),
    [
        (reply(401, {"error": f"bad {TOKEN}"}), FulcrumAuthError),
        (reply(403, {"error": "no"}), FulcrumAuthError),
        (reply(404, {"error": "no such service"}), FulcrumNotFound),
        (reply(404, b"<html>", kind="text/html"), FulcrumUnavailable),
        (reply(400, {"error": "bad"}), FulcrumRefused),
        (reply(429, {"error": "slow down"}, Retry_After="7"), FulcrumUnavailable),
        (reply(500, {"error": "oops"}), FulcrumUnavailable),
        (reply(503, b""), FulcrumUnavailable),
        (reply(302, b"", Location="http://elsewhere.invalid/secret"), FulcrumUnavailable),
        (reply(200, b"<html>", kind="text/html"), FulcrumUnavailable),
        (b"", FulcrumUnavailable),
        (b"nonsense\r\n\r\n", FulcrumUnavailable),
        (b"HTTP/1.1 201 X\r\nContent-Length: 10\r\n\r\n{", FulcrumUnavailable),
    ],
    ids=lambda value: value[:60].decode().splitlines()[0] if isinstance(value, bytes) and value else str(value),
)
def test_both_code_paths_raise_the_same_error_and_send_no_second_request(
    serve: Serve, answer: bytes, error_class: type[FulcrumError]
) -> None:
    errors: list[FulcrumError] = []
    request_counts = []
    for reuses_prepared_request in (False, True):
        server = serve(answer if answer.endswith((b"}", b">", b"\n")) else _send_and_close(answer))
        with pytest.raises(FulcrumError) as caught:
            post(transport_to(server.url), reuses_prepared_request=reuses_prepared_request)
        errors.append(caught.value)
        request_counts.append(len(server.requests))
        assert TOKEN not in str(caught.value)
    ordinary, bulk = errors
    assert (type(bulk), str(bulk), bulk.status) == (type(ordinary), str(ordinary), ordinary.status)
    assert bulk.retry_after_s == ordinary.retry_after_s
    assert type(bulk) is error_class
    assert request_counts == [1, 1]


def test_a_connection_is_reused_after_a_success_or_an_error_and_replaced_when_it_is_closed(serve: Serve) -> None:
    server = serve(reply(201, {}), reply(404, {"error": "no"}), reply(201, {}), b"", reply(201, {}))
    transport = transport_to(server.url)
    post(transport, reuses_prepared_request=True)
    with pytest.raises(FulcrumNotFound):
        post(transport, reuses_prepared_request=True)
    post(transport, reuses_prepared_request=True)
    assert server.connections == 1
    with pytest.raises(FulcrumUnavailable):
        post(transport, reuses_prepared_request=True)
    post(transport, reuses_prepared_request=True)
    assert (server.connections, len(server.requests)) == (2, 5)


def test_each_thread_has_a_connection_of_its_own(serve: Serve) -> None:
    server = serve(reply(201, {}))
    transport = transport_to(server.url)
    threads = [
        threading.Thread(target=lambda: [post(transport, reuses_prepared_request=True) for _ in range(3)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.requests), server.connections) == (6, 2)


def test_a_new_token_is_used_for_the_next_request_and_for_the_repetition_after_a_401(serve: Serve) -> None:
    server = serve(reply(201, {}), reply(401, {}), reply(201, {}))
    tokens = ["first-token", "second-token", "third-token"]
    transport = transport_to(server.url, get_token=lambda: tokens.pop(0))
    post(transport, reuses_prepared_request=True)
    post(transport, reuses_prepared_request=True)
    sent = [headers["authorization"] for _line, headers, _body in server.requests]
    assert sent == ["Bearer first-token", "Bearer second-token", "Bearer third-token"]


def test_both_code_paths_verify_tls_with_the_ca_bundle_of_the_transport(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificates(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve(reply(201, {}), tls=context)
    texts = []
    for reuses_prepared_request in (False, True):
        with pytest.raises(FulcrumUnavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            post(transport_to(server.url), reuses_prepared_request=reuses_prepared_request)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert server.requests == []
    post(transport_to(server.url, str(tmp_path / "ca.pem")), reuses_prepared_request=True)
    assert len(server.requests) == 1
    with pytest.raises(FulcrumUnavailable, match="CA certificate bundle"):
        post(transport_to("https://127.0.0.1:1", str(tmp_path / "none.pem")), reuses_prepared_request=True)
