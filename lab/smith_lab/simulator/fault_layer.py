"""Records every API call in the history and applies the fault rules.

This is the outermost layer of the server: it gets each call before the API and each answer after the API.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smith_lab.simulator.fault_rules import KINDS_WITH_API_ANSWER, PROCESSED_KINDS, Rule
from smith_lab.simulator.history import Entry, LabState
from smith_lab.simulator.problems import Problem
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import problem_response, to_json

HTML_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
#: Interval in which a delayed call checks whether its rule was deleted.
DELAY_STEP_S = 0.02


@dataclass
class _Answer:
    """An ASGI response that is kept in memory. The fault layer sends it, changes it or drops it later."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def collect(self, message: Message) -> None:
        """Add one message of the response. The fault layer passes this method to the API in place of ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


@dataclass(frozen=True)
class _Exchange:
    """One call: its ASGI interface, the rule that affects it, and its entry in the history."""

    scope: Scope
    receive: Receive
    send: Send
    rule: Rule | None
    entry: Entry

    def has_fault(self, *kinds: str) -> bool:
        """Return whether the rule that affects the call has one of these kinds."""
        return self.rule is not None and self.rule.kind in kinds

    @property
    def is_processed(self) -> bool:
        """Whether the API processes the call, or the rule answers it without the API."""
        return self.rule is None or self.rule.effect or self.rule.kind in PROCESSED_KINDS


class FaultLayer:
    """ASGI middleware: records API calls and applies fault rules. Calls to /lab are neither recorded nor affected."""

    def __init__(self, app: ASGIApp, *, store: Store, lab: LabState) -> None:
        self._app, self._store, self._lab = app, store, lab

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/lab"):
            await self._app(scope, receive, send)
            return
        raw = await _read_body(receive)
        entry = self._lab.record_arrival(scope)
        entry.body = _parse_body(raw)
        self._record_caller(scope, entry)
        rule = self._lab.take_rule(scope["method"], scope["path"])
        entry.fault = rule.kind if rule else None
        started = time.monotonic()
        try:
            await self._process(_Exchange(scope, receive, send, rule, entry), raw)
        finally:
            entry.duration_s = time.monotonic() - started

    def _record_caller(self, scope: Scope, entry: Entry) -> None:
        """Record the name, role and agent of the token that the caller sent, even if the token expired.

        A revoked token is not in the store, so nothing is recorded for it.
        """
        header = Headers(scope=scope).get("authorization", "")
        tokens = self._store.tokens_by_value.get(header.removeprefix("Bearer "))
        if tokens:
            entry.token_name, entry.role, entry.agent_id = tokens[0].name, tokens[0].role, tokens[0].agent_id

    async def _process(self, exchange: _Exchange, raw: bytes) -> None:
        """Process the call as its rule says, then send the answer or close the connection."""
        rule = exchange.rule
        if rule and rule.delay_s:
            await self._delay(rule)
        answer = _Answer()
        runs = 2 if exchange.has_fault("twice") else int(exchange.is_processed)
        for _ in range(runs):
            answer = _Answer()
            await self._app(exchange.scope, _replay(raw), answer.collect)
        if exchange.has_fault("drop_before", "drop_after"):
            await _close_connection(exchange)
            return
        if rule and rule.kind not in KINDS_WITH_API_ANSWER:
            answer = await _faulty_answer(rule)
        await self._send(exchange, answer)

    async def _delay(self, rule: Rule) -> None:
        """Wait for the rule's delay, or until the rule is deleted. So a test can end a long delay early."""
        deadline = time.monotonic() + rule.delay_s
        while rule in self._lab.rules and time.monotonic() < deadline:
            await asyncio.sleep(min(DELAY_STEP_S, rule.delay_s))

    async def _send(self, exchange: _Exchange, answer: _Answer) -> None:
        """Send the answer, with the rule's headers, and record it. With the fault `truncate`, send half of the body."""
        exchange.entry.status = answer.status
        exchange.entry.error = answer.body.decode(errors="replace") if answer.status >= 400 else None
        # The date is the time of the simulator's clock, because agents compute their clock offset from this header.
        answer.headers.append((b"date", formatdate(self._store.clock.now(), usegmt=True).encode()))
        if exchange.rule:
            added = exchange.rule.headers.items()
            answer.headers += [(name.lower().encode(), value.encode()) for name, value in added]
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if exchange.has_fault("truncate"):
            half = answer.body[: len(answer.body) // 2]
            await exchange.send({"type": "http.response.body", "body": half, "more_body": True})
            await _close_connection(exchange)
            return
        await exchange.send({"type": "http.response.body", "body": answer.body})


async def _read_body(receive: Receive) -> bytes:
    raw, more = b"", True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    return raw


def _replay(raw: bytes) -> Receive:
    """Return an ASGI `receive` that delivers this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    return receive


def _parse_body(raw: bytes) -> Any:
    """Return the body as JSON if it is JSON, else as text."""
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode(errors="replace")


async def _close_connection(exchange: _Exchange) -> None:
    """Close the connection and wait until it is closed. The client still receives what was already sent."""
    exchange.scope["state"]["transport"].close()
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


async def _faulty_answer(rule: Rule) -> _Answer:
    """Return the answer that the rule sends instead of the API's answer."""
    answer = _Answer()
    await _FAULTY_ANSWERS[rule.kind](rule)({"type": "http"}, _replay(b""), answer.collect)
    return answer


def _status_answer(rule: Rule) -> Response:
    status = rule.status or 503
    if rule.body is None:
        return problem_response(Problem(status, {"status": "Fault", "error": "injected by the lab"}))
    return _answer_with_body(rule, status)


def _answer_with_body(rule: Rule, status: int) -> Response:
    text = rule.body if isinstance(rule.body, str) else to_json(rule.body)
    return Response(text, status, media_type="application/json" if status < 400 else "text/plain")


def _wrong_json_answer(rule: Rule) -> Response:
    if rule.body is None:
        return Response('"not what you asked for"\n', rule.status or 200, media_type="application/json")
    return _answer_with_body(rule, rule.status or 200)


_FAULTY_ANSWERS = {
    "status": _status_answer,
    "html": lambda rule: Response(HTML_PAGE, rule.status or 502, media_type="text/html"),
    "empty": lambda rule: Response(status_code=rule.status or 200),
    "wrong_json": _wrong_json_answer,
}
