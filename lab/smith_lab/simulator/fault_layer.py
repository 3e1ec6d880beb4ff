"""Records every API call in the history, and applies the fault rules, with which tests make calls fail.

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

from smith_lab.simulator.fault_rules import KINDS_THAT_CALL_API, KINDS_THAT_SEND_API_ANSWER, FaultRule
from smith_lab.simulator.history import FaultsAndHistory, HistoryEntry
from smith_lab.simulator.json_depth import replace_deep_values
from smith_lab.simulator.problems import ErrorAnswer
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import error_response, to_json

#: The body of the answer that a rule of the kind `html` sends.
HTML_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
#: The interval at which a delayed call checks whether the rule that delays it was deleted.
DELAY_CHECK_INTERVAL_S = 0.02


@dataclass
class _Answer:
    """An ASGI response in memory. The fault layer then sends the response, sends a part of it, or drops it."""

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
    rule: FaultRule | None
    entry: HistoryEntry

    def has_fault(self, *kinds: str) -> bool:
        """Return whether the rule that affects the call has one of these kinds."""
        return self.rule is not None and self.rule.kind in kinds

    @property
    def reaches_api(self) -> bool:
        """Whether the API processes the call."""
        # If the member `effect` of a rule is true, the API processes the call before the rule's answer is sent.
        return self.rule is None or self.rule.effect or self.rule.kind in KINDS_THAT_CALL_API


class FaultLayer:
    """ASGI middleware: records API calls and applies fault rules. Calls to /lab are neither recorded nor affected."""

    def __init__(self, app: ASGIApp, *, store: Store, faults_and_history: FaultsAndHistory) -> None:
        self._app, self._store, self._faults_and_history = app, store, faults_and_history

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/lab"):
            await self._app(scope, receive, send)
            return
        raw_body = await _read_body(receive)
        entry = self._faults_and_history.record_arrival(scope)
        entry.body = _parse_body(raw_body)
        self._record_caller(scope, entry)
        rule = self._faults_and_history.choose_rule(scope["method"], scope["path"])
        entry.fault = rule.kind if rule else None
        start_time = time.monotonic()
        try:
            await self._process_call(_Exchange(scope, receive, send, rule, entry), raw_body)
        finally:
            entry.duration_s = time.monotonic() - start_time

    def _record_caller(self, scope: Scope, entry: HistoryEntry) -> None:
        """Record the name, role and agent of the token that the caller sent, even if the token has expired.

        Record nothing for a revoked token, because it is not in the store. Several tokens can have the same value: as
        in FulcrumCore, each start of the server adds an admin token `change-me`. The oldest of these tokens is
        recorded.
        """
        header = Headers(scope=scope).get("authorization", "")
        tokens = self._store.tokens_by_value.get(header.removeprefix("Bearer "))
        if tokens:
            entry.token_name, entry.role, entry.agent_id = tokens[0].name, tokens[0].role, tokens[0].agent_id

    async def _process_call(self, exchange: _Exchange, raw_body: bytes) -> None:
        """Process the call as the rule that affects it requires. Then send the answer or close the connection."""
        rule = exchange.rule
        if rule and rule.delay_s:
            await self._wait_for_delay(rule)
        answer = _Answer()
        api_call_count = 1 if exchange.reaches_api else 0
        if exchange.has_fault("twice"):
            api_call_count = 2
        for _ in range(api_call_count):
            answer = _Answer()
            # The scope is copied, because the router changes it.
            await self._app(dict(exchange.scope), _make_receive(raw_body), answer.collect)
        # drop_before: the API has not processed the call. drop_after: the API has processed the call.
        if exchange.has_fault("drop_before", "drop_after"):
            await _close_connection(exchange)
            return
        if rule and rule.kind not in KINDS_THAT_SEND_API_ANSWER:
            answer = await _make_answer_of_rule(rule)
        await self._send_answer(exchange, answer)

    async def _wait_for_delay(self, rule: FaultRule) -> None:
        """Wait for the rule's delay, or until the rule is deleted, so that a test can end a long delay early."""
        deadline = time.monotonic() + rule.delay_s
        while rule in self._faults_and_history.rules and time.monotonic() < deadline:
            await asyncio.sleep(min(DELAY_CHECK_INTERVAL_S, rule.delay_s))

    async def _send_answer(self, exchange: _Exchange, answer: _Answer) -> None:
        """Record the answer, add the rule's headers and send it. For the fault `truncate`, send half of the body."""
        exchange.entry.status = answer.status
        exchange.entry.error = answer.body.decode(errors="replace") if answer.status >= 400 else None
        # The date is the time of the simulator's clock, because agents compute their clock offset from this header.
        answer.headers.append((b"date", formatdate(self._store.clock.now(), usegmt=True).encode()))
        if exchange.rule:
            for name, value in exchange.rule.headers.items():
                answer.headers.append((name.lower().encode(), value.encode()))
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if exchange.has_fault("truncate"):
            first_half = answer.body[: len(answer.body) // 2]
            await exchange.send({"type": "http.response.body", "body": first_half, "more_body": True})
            await _close_connection(exchange)
            return
        await exchange.send({"type": "http.response.body", "body": answer.body})


async def _read_body(receive: Receive) -> bytes:
    raw_body, has_more = b"", True
    while has_more:
        message = await receive()
        raw_body += message.get("body", b"")
        has_more = message.get("more_body", False)
    return raw_body


def _make_receive(raw_body: bytes) -> Receive:
    """Return an ASGI `receive` function that delivers this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": raw_body, "more_body": False}

    return receive


def _parse_body(raw_body: bytes) -> Any:
    """Return the value of a JSON body, the text of any other body, or None for an empty body.

    In a JSON body, `replace_deep_values` replaces too deeply nested objects and lists by `null`, so that Python can
    decode the body.
    """
    try:
        return json.loads(replace_deep_values(raw_body.decode())) if raw_body else None
    except ValueError:
        return raw_body.decode(errors="replace")


async def _close_connection(exchange: _Exchange) -> None:
    """Close the connection and wait until it is closed. The client still receives the bytes that were already sent."""
    exchange.scope["state"]["transport"].close()  # the connection; server.py adds it to the state
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


async def _make_answer_of_rule(rule: FaultRule) -> _Answer:
    """Return the answer that replaces the API's answer according to the rule."""
    response = _RESPONSE_MAKERS[rule.kind](rule)
    answer = _Answer()
    await response({"type": "http"}, _make_receive(b""), answer.collect)
    return answer


def _make_status_response(rule: FaultRule) -> Response:
    status = rule.status or 503
    if rule.body is None:
        return error_response(ErrorAnswer(status, {"status": "Fault", "error": "injected by the lab"}))
    return _make_response_with_body(rule, status)


def _make_response_with_body(rule: FaultRule, status: int) -> Response:
    text = rule.body if isinstance(rule.body, str) else to_json(rule.body)
    # FulcrumCore sends its errors as text/plain, although their body is JSON.
    return Response(text, status, media_type="application/json" if status < 400 else "text/plain")


def _make_wrong_json_response(rule: FaultRule) -> Response:
    if rule.body is None:
        return Response('"not what you asked for"\n', rule.status or 200, media_type="application/json")
    return _make_response_with_body(rule, rule.status or 200)


#: Maps the kind of a rule to a function that makes the response for the rule.
_RESPONSE_MAKERS = {
    "status": _make_status_response,
    "html": lambda rule: Response(HTML_PAGE, rule.status or 502, media_type="text/html"),
    "empty": lambda rule: Response(status_code=rule.status or 200),
    "wrong_json": _make_wrong_json_response,
}
