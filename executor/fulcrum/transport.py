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
from executor.fulcrum.responses import Response, error_for, innermost_reason, without_secrets
from executor.fulcrum.untrusted_json import parse_json

API_PATH = "/api/v1"
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: Time for a whole body, as a multiple of the read timeout, which restarts with every byte received.
BODY_TIME_FACTOR = 4


class _Bearer(AuthBase):
    """Sets the token. It is an auth object because requests lets a .netrc entry replace a plain header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Ignores redirects. With allow_redirects=False, requests still reads their bodies and parses their targets."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no target."""


class _Retry(Retry):
    """Does not retry after a read timeout: the attempt has used the whole time already."""

    def increment(  # type: ignore[override]  # the other five arguments are only passed on, by keyword
        self, method: str | None = None, url: str | None = None, **kwargs: Any
    ) -> Retry:
        """Count one failure; raise it if it must not be retried."""
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
    allowed_methods=("GET",),  # other methods are retried only if the connection failed, so that nothing was sent
    status_forcelist=(500, 502, 503, 504),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=2,
    raise_on_status=False,
    respect_retry_after_header=False,  # the caller's loop waits instead, because it can be stopped
)


class Transport:
    """Sends one request. Returns the data of a success, raises one of the errors of `errors.py` otherwise."""

    def __init__(
        self,
        api_url: str,
        token: Callable[[], str],
        verify: bool | str,
        timeout_s: tuple[float, float],
        on_auth_failure: Callable[[], object],
    ) -> None:
        self._url = _base_url(api_url)
        self._token = token
        self._verify = _bundle_from_environment() if verify is True else verify
        self._timeout_s = timeout_s
        self._on_auth_failure = on_auth_failure
        self._local = threading.local()
        self.clock = ClockOffset()

    def request_json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """Send a request and return the JSON of its response, which must not be empty."""
        response = self._send(method, path, query, body)
        try:
            return parse_json(response.content)
        except ValueError as exc:
            kind = response.headers.get("Content-Type", "no type")[:80]
            size = f"{len(response.content)} bytes of {kind}"
            raise FulcrumUnavailable(
                f"{method} {path}: HTTP {response.status} without readable JSON ({size})", status=response.status
            ) from exc

    def request_without_content(self, method: str, path: str, *, body: Any = None) -> None:
        """Send a request that FulcrumCore answers with 204. FulcrumUnavailable for HTML, a proxy's page."""
        response = self._send(method, path, None, body)
        if response.status == 204:
            return
        try:
            parse_json(response.content)
        except ValueError as exc:
            text = f"{method} {path}: HTTP {response.status} that is not FulcrumCore's response"
            raise FulcrumUnavailable(text, status=response.status) from exc

    def _send(self, method: str, path: str, query: dict[str, Any] | None, body: Any) -> Response:
        token = _header_value(self._token())
        data = None if body is None else _json_body(method, path, body)
        response = self._exchange_or_unavailable(method, path, query, data, token)
        if response.status in (401, 403):
            self._on_auth_failure()
            if (newer := _header_value(self._token())) != token:  # nothing was changed with the old token: repeat
                token = newer
                response = self._exchange_or_unavailable(method, path, query, data, token)
        if response.status >= 300:
            raise error_for(method, path, response, token)
        return response

    def _exchange_or_unavailable(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> Response:
        try:
            return self._exchange(method, path, query, data, token)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:  # requests' own errors are OSErrors
            raise FulcrumUnavailable(without_secrets(f"{method} {path}: {innermost_reason(exc)}", token)) from exc

    def _exchange(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> Response:
        sent_at = time.time()
        with self._session().request(
            method,
            self._url + path,
            params=query,
            data=data,
            headers={"Content-Type": "application/json"} if data is not None else None,
            auth=_Bearer(token),
            timeout=self._timeout_s,
            allow_redirects=False,  # a redirect must never send the token to another host
            stream=True,
            verify=self._verify,
        ) as response:
            # A gateway's error and a cached response have the date of another clock.
            if response.status_code < 500 and "Age" not in response.headers:
                self.clock.add_sample(response.headers.get("Date"), sent_at=sent_at, received_at=time.time())
            return Response(response.status_code, response.headers, self._read_body(response))

    def _read_body(self, response: requests.Response) -> bytes:
        deadline = time.monotonic() + self._timeout_s[1] * BODY_TIME_FACTOR
        if response.status_code < 300:
            return b"".join(_chunks(response, MAX_RESPONSE_BYTES, deadline))
        try:  # the status alone decides the error, its text is optional
            return b"".join(_chunks(response, MAX_ERROR_BYTES, deadline))
        except (OSError, urllib3.exceptions.HTTPError):
            return b""

    def _session(self) -> requests.Session:
        """Return this thread's session, a new one in a forked child: two readers must never share a socket."""
        if getattr(self._local, "pid", None) != os.getpid():
            session = _Session()
            # Read the proxies once: requests would read the environment on every call, which takes a fifth of its time.
            session.trust_env = False
            session.proxies = dict(requests.utils.get_environ_proxies(self._url))
            session.headers["Accept"] = "application/json"
            session.headers["User-Agent"] = "agent-smith"
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=RETRY)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session, self._local.pid = session, os.getpid()
        current: requests.Session = self._local.session
        return current


def _bundle_from_environment() -> str | bool:
    """Return the CA bundle that requests would use without a setting of ours."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _base_url(api_url: str) -> str:
    """Return the URL with the path `/api/v1`, which the given URL may have or not."""
    url = api_url.strip().rstrip("/")
    return url if url.endswith(API_PATH) else url + API_PATH


def _header_value(token: str) -> str:
    """Return the token without the newline at the end of its file. Raises FulcrumAuthFailing if it is unusable."""
    token = token.strip()
    if not token:
        raise FulcrumAuthFailing("the FulcrumCore token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FulcrumAuthFailing("the FulcrumCore token contains a character that is not allowed in an HTTP header")
    return token


def _chunks(response: requests.Response, limit: int, deadline: float) -> Iterator[bytes]:
    """Yield the body as it arrives. `read1`, because `read` waits for a full buffer and would miss the deadline."""
    size = 0
    while chunk := response.raw.read1(65536, decode_content=True):
        size += len(chunk)
        if size > limit:
            raise OSError(f"the response is longer than {limit} bytes")
        if time.monotonic() > deadline:
            raise OSError("the response took too long")
        yield chunk


def _json_body(method: str, path: str, body: Any) -> bytes:
    """Return the body as JSON, without NUL: FulcrumCore answers 500 to it, so the request would be retried for ever."""
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
