"""Responses of FulcrumCore, proxies and broken servers, and the error that each raises."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any

import pytest
from support.wire_server import Serve, WireServer, reply

from executor.errors import FulcrumAuthError, FulcrumError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum import transport
from executor.fulcrum.client import FulcrumClient
from executor.redaction import redactor

TOKEN = "tok-8c1f0c77e5"
JOB_ID = "1d6c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
SERVICE_ID = "e5b72a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
AGENT_ID = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
SECRET_REFERENCE = "vault://97d12a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a WireServer with these replies. The server ends with the test."""
    with ExitStack() as stack:
        yield lambda *replies, **more: stack.enter_context(WireServer(*replies, **more))


def client_of(server: WireServer, **more: Any) -> FulcrumClient:
    more = {"connect_timeout_s": 5, "read_timeout_s": 5} | more
    return FulcrumClient(server.url, lambda: TOKEN, **more)


# Errors


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (400, FulcrumRefused),
        (401, FulcrumAuthError),
        (403, FulcrumAuthError),
        (404, FulcrumNotFound),
        (405, FulcrumRefused),
        (408, FulcrumUnavailable),
        (409, FulcrumRefused),
        (418, FulcrumRefused),
        (422, FulcrumRefused),
        (429, FulcrumUnavailable),
        (500, FulcrumUnavailable),
        (503, FulcrumUnavailable),
        (599, FulcrumUnavailable),
    ],
)
@pytest.mark.parametrize(
    "answer",
    [
        {"body": {"status": "Some status", "error": "some words"}, "kind": "text/plain; charset=utf-8"},
        {"body": b""},
    ],
    ids=["json", "empty"],
)
def test_each_http_status_raises_the_error_class_by_which_callers_decide_whether_to_retry(
    serve: Serve, status: int, error_class: type[FulcrumError], answer: dict[str, Any]
) -> None:
    server = serve(reply(status, **answer))
    with pytest.raises(FulcrumError) as caught:
        client_of(server).claim_job(JOB_ID)
    assert type(caught.value) is error_class
    assert caught.value.status == status
    assert str(caught.value).startswith(f"POST /jobs/{JOB_ID}/claim: HTTP {status}")
    assert ("some words" in str(caught.value)) == bool(answer["body"])
    assert len(server.requests) == 1  # a POST is not retried


@pytest.mark.parametrize("body", [b"404 page not found\n", b"<html><h1>Not here</h1></html>"])
def test_a_404_of_a_proxy_raises_fulcrum_unavailable(serve: Serve, body: bytes) -> None:
    """A proxy sends it while FulcrumCore is replaced. If it raised FulcrumRefused, the report would not be repeated."""
    with pytest.raises(FulcrumUnavailable):
        client_of(serve(reply(404, body, kind="text/html"))).fail_job(JOB_ID, "INTERNAL: x")


def test_the_error_has_fulcrumcores_message_about_properties(serve: Serve) -> None:
    body = {
        "status": "Validation failed",
        "valid": False,
        "errors": [{"path": "cores", "message": "too\nmany \x1b[31m"}, {"path": "", "message": "odd"}, 7],
    }
    with pytest.raises(FulcrumRefused, match=r"HTTP 400: Validation failed; cores too many \[31m; odd$"):
        client_of(serve(reply(400, body))).complete_job(JOB_ID)


@pytest.mark.parametrize("body", [b"[1]", b"7", b'{"error": ["a"]}', b"[" * 9000, b"\xff", b"x" * 200_000])
def test_any_body_of_a_400_raises_the_error_of_that_http_status(serve: Serve, body: bytes) -> None:
    with pytest.raises(FulcrumRefused) as caught:
        client_of(serve(reply(400, body))).claim_job(JOB_ID)
    assert len(str(caught.value)) < 500


def test_an_error_never_shows_the_token_or_a_known_secret(serve: Serve) -> None:
    redactor.add("known-secret-77")
    try:
        body = {"error": f"bad header: Bearer {TOKEN}, property known-secret-77"}
        with pytest.raises(FulcrumRefused) as caught:
            client_of(serve(reply(400, body))).claim_job(JOB_ID)
    finally:
        redactor.discard("known-secret-77")
    assert "bad header" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "known-secret-77" not in str(caught.value)


def test_an_error_of_the_vault_does_not_show_its_body(serve: Serve) -> None:
    server = serve(reply(400, {"error": "value hunter2! is odd"}), reply(200, b'{"value": "hunter2!"'))
    for _ in range(2):
        with pytest.raises(FulcrumError) as caught:
            client_of(server).get_secret(SECRET_REFERENCE)
        assert "hunter2!" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("99999999", 3600.0), ("soon", None), ("-5", None), (None, None)]
)
def test_the_error_has_the_seconds_of_retry_after(serve: Serve, header: str | None, seconds: float | None) -> None:
    headers = {"Retry_After": header} if header else {}
    with pytest.raises(FulcrumUnavailable) as caught:
        client_of(serve(reply(429, b"", **headers))).claim_job(JOB_ID)
    assert caught.value.retry_after_s == seconds


def test_retry_after_may_be_a_date(serve: Serve) -> None:
    with pytest.raises(FulcrumUnavailable) as caught:
        client_of(serve(reply(503, b"", Retry_After=formatdate(time.time() + 100, usegmt=True)))).claim_job(JOB_ID)
    assert 0 < caught.value.retry_after_s <= 100


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_gets_no_token(serve: Serve, status: int) -> None:
    redirect_target = serve(reply(200, []))
    server = serve(reply(status, b"", Location=f"{redirect_target.url}/x?code=sesame"))
    for call in (client_of(server).pending_jobs, lambda: client_of(server).claim_job(JOB_ID)):
        with pytest.raises(FulcrumUnavailable, match="redirects are not followed") as caught:
            call()
        assert redirect_target.url in str(caught.value)
        assert "sesame" not in str(caught.value)
    assert redirect_target.requests == []


@pytest.mark.parametrize("location", ["http://[bad", "http://h:99999999/", "", "//", "\x7f"])
def test_a_redirect_with_an_invalid_target_raises_fulcrum_unavailable(serve: Serve, location: str) -> None:
    with pytest.raises(FulcrumUnavailable, match="redirects are not followed"):
        client_of(serve(reply(302, b"", Location=location))).pending_jobs()


def test_the_body_of_a_redirect_is_not_read_completely(serve: Serve) -> None:
    def endless(wire: socket.socket) -> None:
        wire.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n")
        while True:
            wire.sendall(b"<p>moved</p>" * 1000)

    with pytest.raises(FulcrumUnavailable, match="redirects are not followed"):
        client_of(serve(endless)).pending_jobs()


# Invalid responses


@pytest.mark.parametrize(
    "body", [b"", b"<html>Please log in</html>", b'{"items": [', b"\xff\xfe\x00", b"[" * 50_000, b"null", b"7", b"{}"]
)
def test_a_success_without_the_expected_json_raises_fulcrum_unavailable(serve: Serve, body: bytes) -> None:
    server = serve(reply(200, body, kind="text/html"))
    client = client_of(server)
    calls: list[Callable[[], Any]] = [
        client.get_own_agent,
        client.pending_jobs,
        lambda: client.get_job(JOB_ID),
        lambda: client.processing_jobs_of_agent(AGENT_ID),
        lambda: list(client.services()),
        lambda: client.get_secret(SECRET_REFERENCE),
        lambda: client.put_status("Connected"),
        client.metric_types,
    ]
    for call in calls:
        with pytest.raises(FulcrumUnavailable):
            call()


@pytest.mark.parametrize("body", [b"", b"<html>Please log in</html>"])
def test_a_login_page_with_http_200_is_not_a_successful_claim(serve: Serve, body: bytes) -> None:
    with pytest.raises(FulcrumUnavailable, match="the response is not from FulcrumCore"):
        client_of(serve(reply(200, body, kind="text/html"))).claim_job(JOB_ID)


def test_a_pending_job_without_an_id_does_not_hide_the_others(serve: Serve) -> None:
    good = {"id": JOB_ID, "action": "create", "service": {"id": SERVICE_ID}}
    server = serve(reply(200, [good, {"action": "hunter2!"}, None, {"id": "hunter2!"}, good]))
    pending = client_of(server).pending_jobs()
    assert [job.id for job in pending.jobs] == [JOB_ID]
    assert [text.partition(":")[0] for text in pending.unusable_item_descriptions] == ["item 1", "item 2", "item 3"]
    assert "hunter2!" not in " ".join(pending.unusable_item_descriptions)


def test_jobs_beyond_the_requested_number_are_not_read(serve: Serve) -> None:
    pending = client_of(serve(reply(200, [0] * 200_000))).pending_jobs(limit=10)
    assert len(pending.unusable_item_descriptions) == 10
    assert pending.unread_count == 199_990


def test_a_truncated_body_raises_fulcrum_unavailable(serve: Serve) -> None:
    lengthy = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[]"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n[]"
    gzipped = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]"
    for answer in (lengthy, chunked, gzipped):
        server = serve(lambda wire, answer=answer: wire.sendall(answer))
        with pytest.raises(FulcrumUnavailable, match="GET /jobs/pending: "):
            client_of(server).pending_jobs()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_response_that_is_not_http_raises_fulcrum_unavailable(serve: Serve, answer: bytes) -> None:
    with pytest.raises(FulcrumUnavailable):
        client_of(serve(lambda wire: wire.sendall(answer))).claim_job(JOB_ID)


def test_an_endless_response_is_aborted_at_the_size_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 100_000)

    def endless(wire: socket.socket) -> None:
        wire.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            wire.sendall(b" " * 10_000)

    with pytest.raises(FulcrumUnavailable, match="longer than 100000 bytes"):
        client_of(serve(endless)).pending_jobs()


def test_a_very_slow_response_is_aborted_at_the_time_limit(serve: Serve) -> None:
    """Each byte restarts the read timeout, so the whole body has a time limit too."""
    stop = threading.Event()

    def send_slowly(wire: socket.socket) -> None:
        wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not stop.wait(0.01):
            wire.sendall(b" ")

    try:
        with pytest.raises(FulcrumUnavailable, match="has not answered in time"):
            client_of(serve(send_slowly), read_timeout_s=0.2).pending_jobs()
    finally:
        stop.set()


@pytest.mark.parametrize("piece", [b"X", b"X: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_header_that_never_ends_is_aborted_at_the_time_limit(serve: Serve, piece: bytes) -> None:
    """Each byte restarts the read timeout, so the header and the answers with 1xx before it have a time limit too."""
    stop = threading.Event()

    def send_slowly(wire: socket.socket) -> None:
        wire.sendall(b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.05):
            wire.sendall(piece)

    server = serve(send_slowly)
    try:
        with pytest.raises(FulcrumUnavailable, match="has not answered in time"):
            client_of(server, read_timeout_s=0.2).pending_jobs()
    finally:
        stop.set()
    assert len(server.requests) == 1


def test_a_read_timeout_raises_fulcrum_unavailable_and_is_not_retried(serve: Serve) -> None:
    stop = threading.Event()
    server = serve(lambda _: stop.wait() and None)
    try:
        with pytest.raises(FulcrumUnavailable, match="has not answered in time"):
            client_of(server, read_timeout_s=0.2).pending_jobs()
    finally:
        stop.set()
    assert len(server.requests) == 1


def test_a_closed_port_and_an_unknown_host_raise_fulcrum_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://core.invalid"):
        with pytest.raises(FulcrumUnavailable, match="GET /agents/me: ") as caught:
            FulcrumClient(url, lambda: TOKEN).get_own_agent()
        assert "object at 0x" not in str(caught.value)


# Pages


def page(items: list[dict[str, Any]], total: int, **more: Any) -> bytes:
    return reply(200, {"items": items, "totalItems": total, "hasNext": True} | more)


def raw_service(number: int, agent_id: str = AGENT_ID) -> dict[str, Any]:
    return {"id": f"00000000-0000-4000-8000-{number:012d}", "name": f"web-{number}", "agentId": agent_id}


def test_all_pages_are_read_in_order_and_the_services_of_all_agents_are_returned(serve: Serve) -> None:
    first = [raw_service(number) for number in range(100)]
    second = [raw_service(100), raw_service(101, agent_id=SERVICE_ID)]
    server = serve(page(first, 102), page(second, 102))
    found = list(client_of(server).services())
    assert [service.name for service in found] == [f"web-{number}" for number in range(102)]
    assert [service.agent_id for service in found] == [AGENT_ID] * 101 + [SERVICE_ID]
    assert server.calls == [
        "GET /api/v1/services?sort=name&page=1&pageSize=100",
        "GET /api/v1/services?sort=name&page=2&pageSize=100",
    ]


def test_a_service_missing_from_all_pages_is_found_by_reading_the_list_again(serve: Serve) -> None:
    """The order of equal names is undefined: the second page may repeat an object of the first."""
    all_services = [raw_service(number) for number in range(101)]
    server = serve(
        page(all_services[:100], 101), page(all_services[:1], 101), page(all_services[1:], 101), page([], 101)
    )
    assert len({service.id for service in client_of(server).services()}) == 101


@pytest.mark.parametrize("items", [[], [raw_service(1)]])
def test_a_list_that_stays_incomplete_raises_fulcrum_unavailable(serve: Serve, items: list[dict[str, Any]]) -> None:
    server = serve(page(items, 500))
    with pytest.raises(FulcrumUnavailable, match="of 500 objects"):
        list(client_of(server).services())
    assert len(server.requests) <= 15


def test_only_the_processing_jobs_of_the_agent_are_listed(serve: Serve) -> None:
    mine = {"id": JOB_ID, "agentId": AGENT_ID, "status": "Processing"}
    others = [
        mine | {"id": SERVICE_ID, "agentId": SERVICE_ID},
        mine | {"id": AGENT_ID, "status": "Completed"},
    ]
    server = serve(page([mine, *others], 3))
    assert [job.id for job in client_of(server).processing_jobs_of_agent(AGENT_ID)] == [JOB_ID]
    assert server.calls == [f"GET /api/v1/jobs?agentId={AGENT_ID}&status=Processing&sort=createdAt&page=1&pageSize=100"]
