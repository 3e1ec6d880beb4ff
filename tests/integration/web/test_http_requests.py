"""Requests to the HTTP server: methods, headers, tokens, proxies, limits, and the OpenAPI document."""

from __future__ import annotations

import itertools
import json
import socket
import time
from contextlib import ExitStack, closing
from typing import Any

import jsonschema
import pytest
import schemathesis
from smith_lab.system import wait_for
from support.health_site import TOKEN, WITHIN_S, MakeSite, Site
from support.web_world import address_of_this_machine

from executor.web import serve
from executor.web.paths import PROGRAM_PAGE_PATHS
from executor.web.wrong_tokens import MAX_WRONG_TOKENS

# Access control


def test_only_get_and_head_are_allowed(site: Site) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        status, headers, _body = site.ask("/livez", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD"), method
    status, headers, body = site.ask("/livez", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/nothing", "/metrics/"])
def test_every_response_has_the_security_headers(path: str, site: Site) -> None:
    _status, headers, _body = site.ask(path)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


def test_an_unknown_page_is_a_404(site: Site) -> None:
    assert site.ask("/nothing")[0] == 404
    assert site.ask("/metrics/")[0] == 404


def test_with_a_token_only_the_health_paths_are_open_and_show_no_details(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    site.turn()
    site.state.heartbeat_at = time.time()
    site.attach()
    site.until("/readyz", 200)
    site.state.fulcrum_link.record_failed_call("GET https://core.internal/api: refused")
    for path in ("/metrics", "/", "/nothing"):
        status, headers, _body = site.ask(path)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="agent-smith"'), path
    assert site.checks("/livez")[0] == 200
    assert "core.internal" not in site.ask("/readyz")[2]
    assert "core.internal" in site.ask("/readyz", authorization=f"Bearer {TOKEN}")[2]
    assert site.metrics(authorization=f"Bearer {TOKEN}")["smith_jobs_running",] == 0
    assert site.ask("/metrics", authorization=f"bearer {TOKEN}")[0] == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "\xe4"):
        assert site.ask("/metrics", authorization=f"Bearer {wrong}")[0] == 401
    assert site.ask("/metrics", authorization=f"Basic {TOKEN}")[0] == 401


def test_an_address_with_many_wrong_tokens_is_refused(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    for _ in range(MAX_WRONG_TOKENS):
        assert site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")[0] == 401
    status, headers, _body = site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 61
    assert site.ask("/livez")[0] == 200, "requests without a token are still answered"


def test_wrong_tokens_do_not_shut_out_a_caller_with_the_right_token(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    site.attach()
    for _ in range(MAX_WRONG_TOKENS + 1):
        site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")
    assert site.ask("/metrics", authorization=f"Bearer {TOKEN}")[0] == 200


# Connections


REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def open_connections(site: Site, count: int, host: str = "127.0.0.1") -> list[socket.socket]:
    return [socket.create_connection((host, site.handle.port), WITHIN_S) for _ in range(count)]


def read_until_closed(connection: socket.socket) -> bytes:
    """Return what arrives until the server closes the connection. Raises TimeoutError if it does not."""
    connection.settimeout(WITHIN_S)
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    "sent", [b"", b"G", REQUEST + b"G", REQUEST + b"GET / HTTP/1.1\r\n", REQUEST * 2 + b"G"], ids=repr
)
def test_a_connection_with_an_unfinished_request_is_closed(
    sent: bytes, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker with enough such connections would keep all other callers from the health pages."""
    monkeypatch.setattr(serve, "REQUEST_TIMEOUT_S", 0.3)
    site = make_site()
    with closing(open_connections(site, 1)[0]) as connection:
        connection.sendall(sent[: len(REQUEST)] if sent.startswith(REQUEST) else sent)
        if sent.startswith(REQUEST):
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(sent[len(REQUEST) :])
        read_until_closed(connection)


def test_connections_above_the_limit_are_closed_at_once(make_site: MakeSite) -> None:
    site = make_site()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(connection) for connection in open_connections(site, serve.MAX_CONNECTIONS + 8)
        ]
        for connection in connections[serve.MAX_CONNECTIONS :]:
            assert read_until_closed(connection) == b""
        connections[0].sendall(REQUEST)
        assert connections[0].recv(65536).startswith(b"HTTP/1.1 200"), "connections within the limit are served"
    wait_for(lambda: site.ask("/livez")[0] == 200, WITHIN_S, "connections to be accepted again")


def test_another_machine_cannot_occupy_all_connections(make_site: MakeSite) -> None:
    """A connection to this machine's network address comes from that address, so it counts as another machine's."""
    own_address = address_of_this_machine()
    site = make_site(SMITH_HTTP_ADDR="0.0.0.0:0", SMITH_HTTP_TOKEN=TOKEN)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(one)
            for one in open_connections(site, serve.MAX_CONNECTIONS_PER_ADDRESS + 4, own_address)
        ]
        for connection in connections[serve.MAX_CONNECTIONS_PER_ADDRESS :]:
            assert read_until_closed(connection) == b""
        assert site.ask("/livez")[0] == 200


def test_a_trusted_proxy_may_have_more_connections_but_not_all(make_site: MakeSite) -> None:
    own_address = address_of_this_machine()
    site = make_site(SMITH_HTTP_ADDR="0.0.0.0:0", SMITH_HTTP_PROXIES=own_address)
    limit = serve.MAX_CONNECTIONS_FROM_OTHER_MACHINES
    with ExitStack() as stack:
        connections = [stack.enter_context(connection) for connection in open_connections(site, limit + 4, own_address)]
        connections[limit - 1].sendall(REQUEST)
        assert connections[limit - 1].recv(65536).startswith(b"HTTP/1.1 200")
        for connection in connections[limit:]:
            assert read_until_closed(connection) == b""
        assert site.ask("/livez")[0] == 200, "callers on this machine are always served"


def test_only_configured_reverse_proxies_may_name_the_user(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_PROXIES="127.0.0.5,127.0.7.0/24", SMITH_HTTP_USER_HEADER="X-Login")
    site.attach()
    for proxy in ("127.0.0.5", "127.0.7.9"):
        assert site.ask("/metrics", source=proxy, x_login="ops")[0] == 200
        for login in ({}, {"x_login": " "}, {"x_forwarded_user": "ops"}, {"authorization": f"Bearer {TOKEN}"}):
            status, headers, _body = site.ask("/metrics", source=proxy, **login)
            assert status == 403
            assert "www-authenticate" not in headers, "no token would help"
    for other_address in ("127.0.0.1", "127.0.0.6", "127.0.8.9"):
        assert site.ask("/metrics", source=other_address, x_login="ops", x_forwarded_for="127.0.0.5")[0] == 403
        assert site.ask("/livez", source=other_address)[0] == 200


def test_proxy_users_and_token_holders_see_details(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_PROXIES="127.0.0.5", SMITH_HTTP_TOKEN=TOKEN)
    site.turn()
    site.attach()
    site.state.fulcrum_link.record_failed_call("GET https://core.internal/api: refused")
    assert "core.internal" in site.ask("/readyz", source="127.0.0.5", x_forwarded_user="ops")[2]
    assert "core.internal" not in site.ask("/readyz", x_forwarded_user="ops")[2]
    assert site.ask("/metrics", authorization=f"Bearer {TOKEN}")[0] == 200
    assert site.ask("/metrics", x_forwarded_user="ops")[0] == 401
    for _ in range(MAX_WRONG_TOKENS + 1):
        site.ask("/metrics", source="127.0.0.5", authorization="Bearer wrong-wrong-wrong")
    assert site.ask("/metrics", source="127.0.0.5", x_forwarded_user="ops")[0] == 200, "a proxy serves many users"


# The OpenAPI document


@pytest.mark.parametrize(
    "variables",
    [{}, {"SMITH_HTTP_TOKEN": TOKEN}, {"SMITH_HTTP_PROXIES": "127.0.0.5"}],
    ids=["local", "token", "reverse proxy"],
)
def test_every_response_is_documented(variables: dict[str, str], make_site: MakeSite) -> None:
    """In three states of the agent, from its start to ready; with and without login, and with wrong tokens."""
    site = make_site(**variables)
    callers: list[dict[str, str]] = [{}, {"host": "attacker.example"}, {"authorization": f"Bearer {TOKEN}"}]
    callers += [{"source": "127.0.0.5", "x_forwarded_user": "ops"}]
    callers += [{"source": "127.0.0.6", "authorization": "Bearer wrong-wrong-wrong"}] * (MAX_WRONG_TOKENS + 1)
    openapi_document = json.loads(site.ask("/openapi.json", **callers[2 if "SMITH_HTTP_TOKEN" in variables else 3])[2])
    assert set(openapi_document["paths"]) == {"/", *PROGRAM_PAGE_PATHS}
    received = set()
    for step in ("starting", "not ready", "alive"):
        if step == "not ready":
            site.attach()
        if step == "alive":
            site.turn()
            site.state.heartbeat_at = time.time()
            site.until("/readyz", 200)
        for path, method, caller in itertools.product(openapi_document["paths"], ("GET", "HEAD"), callers):
            answer = site.ask(path, method, **caller)
            _check_against_document(openapi_document, path, method, answer)
            received.add(answer[0])
    documented = {status for page in openapi_document["paths"].values() for status in page["get"]["responses"]}
    assert {str(status) for status in received} == documented - {"500"}


def _check_against_document(
    openapi_document: dict[str, Any], path: str, method: str, answer: tuple[int, dict[str, str], str]
) -> None:
    status, headers, body = answer
    documented = openapi_document["paths"][path][method.lower()]["responses"]
    assert str(status) in documented, (path, method, status)
    for header, rule in documented[str(status)].get("headers", {}).items():
        assert not rule["required"] or header.lower() in headers
    if method == "HEAD":
        assert "content" not in documented[str(status)]
        return
    media_type = headers["content-type"].partition(";")[0]
    schema = documented[str(status)]["content"][media_type]["schema"]
    if media_type == "application/json":
        jsonschema.validate(json.loads(body), {**schema, "components": openapi_document["components"]})


def test_the_openapi_document_is_valid(site: Site) -> None:
    openapi_document = json.loads(site.ask("/openapi.json")[2])
    assert schemathesis.openapi.from_dict(openapi_document).validate() is None


def test_invalid_requests_and_long_headers_do_not_affect_liveness(site: Site) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"GET /livez HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", site.handle.port), timeout=WITHIN_S) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert site.checks("/livez")[0] == 200
