"""Faults on purpose, and the history of every call: the outermost layer around the API.

A rule is a JSON object:
  method, path   which calls: method exactly (absent: every), path as a regular expression that is searched
  skip, times    let so many matching calls pass first; then strike so often (absent: always)
  kind           status       answer `status` (503), a JSON error as FulcrumCore writes it, or `body`
                 html         answer `status` (502) with an HTML page, as a proxy does
                 empty        answer `status` (200) without a body
                 wrong_json   answer `status` (200) with valid JSON of the wrong shape, or `body`
                 truncate     do the work, then break off in the middle of the answer's body
                 delay        wait `delay_s` before the work, or until the rules are deleted; every other kind waits too
                              when `delay_s` is given
                 twice        do the work two times over, as a proxy that repeats a request, and send the second answer
                 drop_before  close the connection without an answer, nothing done
                 drop_after   do the work, then close the connection without an answer
  effect         true: do the work before a wrong answer (status, html, empty, wrong_json)
  headers        added to the answer
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smith_lab.simulator.problems import Problem
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import problem_response, to_json

KINDS = frozenset({"status", "html", "empty", "wrong_json", "truncate", "delay", "twice", "drop_before", "drop_after"})
HTML_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
HISTORY_LENGTH = 100_000
#: How often a held call looks whether it may go on.
DELAY_STEP_S = 0.02


@dataclass(kw_only=True, eq=False)
class Rule:
    """One fault; see the module's text."""

    kind: str
    method: str | None = None
    path: str = ""
    skip: int = 0
    times: int | None = None
    status: int | None = None
    body: Any = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    effect: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}, one of {sorted(KINDS)}")
        self._pattern = re.compile(self.path)

    def strikes(self, method: str, path: str) -> bool:
        """Say whether this call is hit, counting it."""
        if self.method not in (None, method) or not self._pattern.search(path) or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(kw_only=True)
class Entry:
    """One call, as tests read it. `status` None: no answer was sent (yet)."""

    seq: int
    time: float  #: seconds since the epoch, real time, at arrival
    method: str
    path: str
    query: str
    body: Any = None
    token_name: str | None = None
    role: str | None = None
    agent_id: str | None = None
    status: int | None = None
    error: str | None = None  #: the answer's text from 400 on
    fault: str | None = None
    duration_s: float | None = None


@dataclass
class Lab:
    """What the lab keeps beside the store: rules and history."""

    rules: list[Rule] = field(default_factory=list)
    history: deque[Entry] = field(default_factory=lambda: deque(maxlen=HISTORY_LENGTH))
    calls: int = 0

    def rule_for(self, method: str, path: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.strikes(method, path)), None)

    def begin(self, scope: Scope) -> Entry:
        self.calls += 1
        entry = Entry(
            seq=self.calls,
            time=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
        )
        self.history.append(entry)
        return entry

    def entries(self, since: int) -> list[dict[str, Any]]:
        """The calls after that sequence number, in order."""
        return [asdict(entry) for entry in list(self.history) if entry.seq > since]  # which goes on


@dataclass
class _Answer:
    """An ASGI reply caught on its way out."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def catch(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


@dataclass(frozen=True)
class _Exchange:
    """One call on its way through the layer."""

    scope: Scope
    receive: Receive
    send: Send
    rule: Rule | None
    entry: Entry

    def struck_by(self, *kinds: str) -> bool:
        return self.rule is not None and self.rule.kind in kinds

    @property
    def works(self) -> bool:
        """Whether the API gets to see the call."""
        return self.rule is None or self.rule.effect or self.struck_by("truncate", "delay", "twice", "drop_after")


class FaultLayer:
    """Catches every API call's answer, writes it down, and lets the faults at it. The lab's own calls pass."""

    def __init__(self, app: ASGIApp, *, store: Store, lab: Lab) -> None:
        self._app, self._store, self._lab = app, store, lab

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/lab"):
            await self._app(scope, receive, send)
            return
        raw = await _read(receive)
        entry = self._lab.begin(scope)
        entry.body = _readable(raw)
        self._note_caller(scope, entry)
        rule = self._lab.rule_for(scope["method"], scope["path"])
        entry.fault = rule.kind if rule else None
        started = time.monotonic()
        try:
            await self._answer(_Exchange(scope, receive, send, rule, entry), raw)
        finally:
            entry.duration_s = time.monotonic() - started

    def _note_caller(self, scope: Scope, entry: Entry) -> None:
        """Write down whose token it is, expired or not; a revoked one is nobody's."""
        header = Headers(scope=scope).get("authorization", "")
        tokens = self._store.tokens_by_value.get(header.removeprefix("Bearer "))
        if tokens:
            entry.token_name, entry.role, entry.agent_id = tokens[0].name, tokens[0].role, tokens[0].agent_id

    async def _answer(self, exchange: _Exchange, raw: bytes) -> None:
        rule = exchange.rule
        if rule and rule.delay_s:
            await self._wait(rule)
        answer = _Answer()
        for _ in range(2 if exchange.struck_by("twice") else int(exchange.works)):
            answer = _Answer()
            await self._app(exchange.scope, _replay(raw), answer.catch)
        if exchange.struck_by("drop_before", "drop_after"):
            await _hang_up(exchange)
            return
        if rule and not exchange.struck_by("truncate", "delay", "twice"):
            answer = await _wrong_answer(rule)
        await self._send(exchange, answer)

    async def _wait(self, rule: Rule) -> None:
        """Hold the call for the rule's delay. Deleting the rules lets it go, so that no test has to wait it out."""
        until = time.monotonic() + rule.delay_s
        while rule in self._lab.rules and time.monotonic() < until:
            await asyncio.sleep(min(DELAY_STEP_S, rule.delay_s))

    async def _send(self, exchange: _Exchange, answer: _Answer) -> None:
        exchange.entry.status = answer.status
        exchange.entry.error = answer.body.decode(errors="replace") if answer.status >= 400 else None
        # The server's clock, not ours: agents measure their offset by this header.
        answer.headers.append((b"date", formatdate(self._store.clock.now(), usegmt=True).encode()))
        if exchange.rule:
            extra = exchange.rule.headers.items()
            answer.headers += [(name.lower().encode(), value.encode()) for name, value in extra]
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if exchange.struck_by("truncate"):
            half = answer.body[: len(answer.body) // 2]
            await exchange.send({"type": "http.response.body", "body": half, "more_body": True})
            await _hang_up(exchange)
            return
        await exchange.send({"type": "http.response.body", "body": answer.body})


async def _read(receive: Receive) -> bytes:
    raw, more = b"", True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    return raw


def _replay(raw: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    return receive


def _readable(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode(errors="replace")


async def _hang_up(exchange: _Exchange) -> None:
    """Close the connection and wait until it is closed: what is sent already still arrives."""
    exchange.scope["state"]["transport"].close()
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


async def _wrong_answer(rule: Rule) -> _Answer:
    answer = _Answer()
    await _WRONG[rule.kind](rule)({"type": "http"}, _replay(b""), answer.catch)
    return answer


def _status(rule: Rule) -> Response:
    status = rule.status or 503
    if rule.body is None:
        return problem_response(Problem(status, {"status": "Fault", "error": "injected by the lab"}))
    return _with_body(rule, status)


def _with_body(rule: Rule, status: int) -> Response:
    text = rule.body if isinstance(rule.body, str) else to_json(rule.body)
    return Response(text, status, media_type="application/json" if status < 400 else "text/plain")


def _wrong_json(rule: Rule) -> Response:
    if rule.body is None:
        return Response('"not what you asked for"\n', rule.status or 200, media_type="application/json")
    return _with_body(rule, rule.status or 200)


_WRONG = {
    "status": _status,
    "html": lambda rule: Response(HTML_PAGE, rule.status or 502, media_type="text/html"),
    "empty": lambda rule: Response(status_code=rule.status or 200),
    "wrong_json": _wrong_json,
}
