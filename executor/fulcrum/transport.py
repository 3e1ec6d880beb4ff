"""Sends one HTTP request to FulcrumCore and reads its response: token, TLS, retries, size and time limits."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from executor.errors import FulcrumAuthFailing, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.clock import ClockOffset
from executor.fulcrum.responses import Answer, error_of, reason_of, without_secrets
from executor.fulcrum.untrusted_json import parse_json

API_PATH = "/api/v1"
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: A body may take this many read time-outs as a whole: the read time-out alone restarts with every byte.
BODY_TIME_FACTOR = 4


class _Bearer(AuthBase):
    """Sets the token. As an auth object, because requests lets a .netrc entry replace a plain header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Knows no redirects. Told only not to follow them, requests still reads their bodies and parses their targets."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Answer: nowhere."""


class _Retry(Retry):
    """Does not repeat after a read time-out: that one has used its whole time already."""

    def increment(  # type: ignore[override]  # the five others are only passed on, by keyword
        self, method: str | None = None, url: str | None = None, **kwargs: Any
    ) -> Retry:
        """Count one failure, or raise it for good."""
        if isinstance(error := kwargs.get("error"), urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, **kwargs)


RETRY = _Retry(
    total=2,
    connect=1,
    read=1,
    redirect=0,
    status=2,
    other=0,
    allowed_methods=("GET",),  # others only while nothing was sent: no connection
    status_forcelist=(500, 502, 503, 504),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=2,
    raise_on_status=False,
    respect_retry_after_header=False,  # the caller's loop waits, and can be stopped while it does
)


class Transport:
    """Sends one request and returns a success, or raises one of the errors of `errors.py`."""

    def __init__(
        self,
        api_url: str,
        token: Callable[[], str],
        verify: bool | str,
        timeout_s: tuple[float, float],
        on_refused: Callable[[], object],
    ) -> None:
        self._url = _base_url(api_url)
        self._token = token
        self._verify = _bundle_of_the_environment() if verify is True else verify
        self._timeout_s = timeout_s
        self._on_refused = on_refused
        self._local = threading.local()
        self.clock = ClockOffset()

    def json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """Send, and return the answer's JSON. No answer may be empty here."""
        answer = self._send(method, path, query, body)
        try:
            return parse_json(answer.content)
        except ValueError as exc:
            kind = answer.headers.get("Content-Type", "no type")[:80]
            what = f"{len(answer.content)} bytes of {kind}"
            raise FulcrumUnavailable(
                f"{method} {path}: HTTP {answer.status} without readable JSON ({what})", status=answer.status
            ) from exc

    def act(self, method: str, path: str, *, body: Any = None) -> None:
        """Send something that is answered with 204. A success with a page of HTML is some proxy's, and is none."""
        answer = self._send(method, path, None, body)
        if answer.status == 204:
            return
        try:
            parse_json(answer.content)
        except ValueError as exc:
            text = f"{method} {path}: HTTP {answer.status} that is not FulcrumCore's answer"
            raise FulcrumUnavailable(text, status=answer.status) from exc

    def _send(self, method: str, path: str, query: dict[str, Any] | None, body: Any) -> Answer:
        token = _header_value(self._token())
        data = None if body is None else _write_json(method, path, body)
        answer = self._answer_to(method, path, query, data, token)
        if answer.status in (401, 403):
            self._on_refused()
            if (newer := _header_value(self._token())) != token:  # what was refused has changed nothing
                token = newer
                answer = self._answer_to(method, path, query, data, token)
        if answer.status >= 300:
            raise error_of(method, path, answer, token)
        return answer

    def _answer_to(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> Answer:
        try:
            return self._exchange(method, path, query, data, token)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:  # requests' own errors are OSErrors
            raise FulcrumUnavailable(without_secrets(f"{method} {path}: {reason_of(exc)}", token)) from exc

    def _exchange(self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str) -> Answer:
        sent_at = time.time()
        with self._session().request(
            method,
            self._url + path,
            params=query,
            data=data,
            headers={"Content-Type": "application/json"} if data is not None else None,
            auth=_Bearer(token),
            timeout=self._timeout_s,
            allow_redirects=False,  # a redirect must never carry the token to another host
            stream=True,
            verify=self._verify,
        ) as response:
            if response.status_code < 500 and "Age" not in response.headers:  # neither a gateway's nor a cache's date
                self.clock.note(response.headers.get("Date"), sent_at=sent_at, received_at=time.time())
            return Answer(response.status_code, response.headers, self._body_of(response))

    def _body_of(self, response: requests.Response) -> bytes:
        give_up_at = time.monotonic() + self._timeout_s[1] * BODY_TIME_FACTOR
        if response.status_code < 300:
            return b"".join(_pieces(response, MAX_ANSWER_BYTES, give_up_at))
        try:  # what an error says is a courtesy; that it is one, is known already
            return b"".join(_pieces(response, MAX_ERROR_BYTES, give_up_at))
        except (OSError, urllib3.exceptions.HTTPError):
            return b""

    def _session(self) -> requests.Session:
        """One session a thread, and a new one in a forked child: a socket must never have two readers."""
        if getattr(self._local, "pid", None) != os.getpid():
            session = _Session()
            # Read here, once: requests would look through the environment with every call, a fifth of what one costs.
            session.trust_env = False
            session.proxies = dict(requests.utils.get_environ_proxies(self._url))
            session.headers["Accept"] = "application/json"
            session.headers["User-Agent"] = "agent-smith"
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=RETRY)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session, self._local.pid = session, os.getpid()
        found: requests.Session = self._local.session
        return found


def _bundle_of_the_environment() -> str | bool:
    """What requests itself would verify with when nobody names a bundle."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _base_url(api_url: str) -> str:
    """The address with `/api/v1`, whether or not it was given with it."""
    url = api_url.strip().rstrip("/")
    return url if url.endswith(API_PATH) else url + API_PATH


def _header_value(token: str) -> str:
    """The token, fit for a header. A file's last newline is nobody's fault."""
    token = token.strip()
    if not token:
        raise FulcrumAuthFailing("the FulcrumCore token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FulcrumAuthFailing("the FulcrumCore token holds a character that an HTTP header cannot carry")
    return token


def _pieces(response: requests.Response, limit: int, give_up_at: float) -> Iterator[bytes]:
    """The body as it arrives. `read1`, because `read` waits for a full buffer and could not watch the time."""
    size = 0
    while piece := response.raw.read1(65536, decode_content=True):
        size += len(piece)
        if size > limit:
            raise OSError(f"the answer is longer than {limit} bytes")
        if time.monotonic() > give_up_at:
            raise OSError("the answer took too long")
        yield piece


def _write_json(method: str, path: str, body: Any) -> bytes:
    """The body as JSON, without NUL: FulcrumCore's database refuses it with a 500, which would be sent for ever."""
    try:
        return json.dumps(_without_nul(body), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise FulcrumRefused(f"{method} {path}: the body cannot be written as JSON ({type(exc).__name__})") from exc


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value
