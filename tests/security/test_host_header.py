"""The Host header check: a web page cannot read a loopback port by DNS rebinding."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from executor.web.access import Access
from executor.web.agent_view import AgentHandle
from executor.web.guard import Guard
from executor.web.server_parts import ServerParts
from executor.web.sessions import Sessions
from executor.web.wrong_tokens import WrongTokenCounter

TOKEN = "sixteen-characters-at-least"


async def _answer_ok(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"jobs": 3})(scope, receive, send)


def status_for_host_header(host: str | None, *, token: str = "", sent_token: str = "", is_local: bool = True) -> int:
    """Return the status for a Host header, if the agent has the token `token` and the client sends `sent_token`."""
    headers = [(b"host", host.encode())] if host is not None else []
    headers += [(b"authorization", f"Bearer {sent_token}".encode())] if sent_token else []
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": headers, "client": ("127.0.0.1", 5)}
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        messages.append(message)

    access = Access(token=token, can_only_local_callers_connect=is_local)
    handle = AgentHandle()
    parts = ServerParts(
        agent_handle=handle, access=access, sessions=Sessions(handle, access), wrong_tokens=WrongTokenCounter()
    )
    guard = Guard(_answer_ok, parts)
    asyncio.run(guard(scope, receive, send))
    return int(messages[0]["status"])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9642", "127.8.8.8:1", "localhost", "localhost:9642", "[::1]", "[::1]:9642", "", None],
)
def test_requests_with_a_loopback_host_header_are_accepted(host: str | None) -> None:
    assert status_for_host_header(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:9642",
        "localhost.attacker.example",
        "127.0.0.1.nip.example",
        "10.0.0.1",
        "metadata",
        "127.0.0.1@attacker.example",
        "localhost:9642:1",
        "[::2]:1",
        "2130706433",
        "255.255.255.255",
    ],
)
def test_requests_with_any_other_host_header_are_refused(host: str) -> None:
    assert status_for_host_header(host) == 421


def test_with_a_token_any_host_header_is_accepted() -> None:
    """A rebinding page does not know the token, and a reverse proxy may pass on the client's Host header."""
    assert status_for_host_header("metrics.example", token=TOKEN, sent_token=TOKEN) == 200
    assert status_for_host_header("metrics.example", token=TOKEN) == 401
    assert status_for_host_header("metrics.example", token=TOKEN, sent_token=TOKEN, is_local=False) == 200
