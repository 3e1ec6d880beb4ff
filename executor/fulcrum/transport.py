"""Sends HTTP requests to FulcrumCore with the agent's token, retries them, and limits the size of the responses."""

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
#: Maximum size of the body of a successful response, and of any other response.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: The time limit for a whole body, as a multiple of the read timeout. The read timeout alone does not limit this time,
#: because it starts again with every byte received.
BODY_TIME_FACTOR = 4


class _Bearer(AuthBase):
    """Adds the token to a request.

    If the token were only set as a header, the library requests would replace it by an entry in the file .netrc.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """A session that ignores redirects.

    With `allow_redirects=False` alone, the library requests would not follow a redirect, but still parse its target.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, which means that the response is not a redirect."""


class _Retry(Retry):
    """Retries as configured, but never after a read timeout.

    A caller can wait for one read timeout, but not for several of them.
    """

    def increment(  # type: ignore[override]  # the other arguments are passed on unchanged
        self, method: str | None = None, url: str | None = None, **kwargs: Any
    ) -> Retry:
        """Count one failed attempt. Raise the error of the attempt if the request must not be retried."""
        if isinstance(error := kwargs.get("error"), urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, **kwargs)


#: How many times a request is sent again after each kind of failure.
RETRY = _Retry(
    total=2,
    connect=1,
    read=1,
    redirect=0,
    status=2,
    other=0,
    # A request with another method is retried only if no connection was made: FulcrumCore has not received it then.
    allowed_methods=("GET",),
    status_forcelist=(500, 502, 503, 504),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=2,
    raise_on_status=False,
    respect_retry_after_header=False,  # the agent's loops wait instead, because they can be stopped while they wait
)


class Transport:
    """Sends requests to FulcrumCore. A request that fails raises one of the exceptions of `errors.py`.

    `token` returns the present token. `verify` is whether the certificate is verified, or the path of a CA bundle.
    `timeout_s` has the timeouts of connecting and of reading. `on_auth_failure` is called after a 401 or 403, and
    reloads the token.
    """

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
        """Send a request and return the parsed JSON of its response. Raises FulcrumUnavailable if this is not JSON."""
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
        """Send a request and ignore the content of its response.

        FulcrumCore answers with status 204 or with JSON. Raises FulcrumUnavailable for a success with other content,
        such as HTML: a proxy has sent this response, and FulcrumCore may not have received the request.
        """
        response = self._send(method, path, None, body)
        if response.status == 204:
            return
        try:
            parse_json(response.content)
        except ValueError as exc:
            text = f"{method} {path}: HTTP {response.status}, but the response is not FulcrumCore's"
            raise FulcrumUnavailable(text, status=response.status) from exc

    def _send(self, method: str, path: str, query: dict[str, Any] | None, body: Any) -> Response:
        """Send a request. If FulcrumCore refuses the token, and there is a new token, send the request once more."""
        token = _header_value(self._token())
        data = None if body is None else _json_body(method, path, body)
        response = self._exchange_or_unavailable(method, path, query, data, token)
        if response.status in (401, 403):
            self._on_auth_failure()
            if (new_token := _header_value(self._token())) != token:
                # FulcrumCore has refused the request with the old token, so it is safe to repeat the request.
                token = new_token
                response = self._exchange_or_unavailable(method, path, query, data, token)
        if response.status >= 300:
            raise error_for(method, path, response, token)
        return response

    def _exchange_or_unavailable(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> Response:
        """Send a request once. Raises FulcrumUnavailable if no complete response arrives."""
        try:
            return self._exchange(method, path, query, data, token)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:  # the exceptions of requests are OSErrors
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
            # The Date header of a gateway's error or of a cached response does not show FulcrumCore's clock now.
            if response.status_code < 500 and "Age" not in response.headers:
                self.clock.add_sample(response.headers.get("Date"), sent_at=sent_at, received_at=time.time())
            return Response(response.status_code, response.headers, self._read_body(response))

    def _read_body(self, response: requests.Response) -> bytes:
        """Return the body. If the body of an error cannot be read, return an empty one."""
        deadline = time.monotonic() + self._timeout_s[1] * BODY_TIME_FACTOR
        if response.status_code < 300:
            return b"".join(_chunks(response, MAX_RESPONSE_BYTES, deadline))
        try:  # the status alone determines the exception, so an error needs no body
            return b"".join(_chunks(response, MAX_ERROR_BYTES, deadline))
        except (OSError, urllib3.exceptions.HTTPError):
            return b""

    def _session(self) -> requests.Session:
        """Return this thread's session, which holds its TCP connection. Make it if there is none.

        A forked child process makes its own session, because two processes must never share a socket.
        """
        if getattr(self._local, "pid", None) != os.getpid():
            session = _Session()
            # The proxies are read from the environment once. The library requests would read them at every
            # request, which takes a fifth of its time.
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
    """Return the path of the CA bundle in the environment; True (the default bundle) if it names none."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _base_url(api_url: str) -> str:
    """Return the URL with the path `/api/v1`. The path is appended if `api_url` does not end with it."""
    url = api_url.strip().rstrip("/")
    return url if url.endswith(API_PATH) else url + API_PATH


def _header_value(token: str) -> str:
    """Return the token without white space around it. Raises FulcrumAuthFailing if a header cannot contain it."""
    token = token.strip()
    if not token:
        raise FulcrumAuthFailing("the FulcrumCore token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FulcrumAuthFailing("the FulcrumCore token contains a character that is not allowed in an HTTP header")
    return token


def _chunks(response: requests.Response, max_bytes: int, deadline: float) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises OSError if the body exceeds `max_bytes` or arrives after the deadline.

    This function uses `read1`. `read` would wait until its buffer is full, possibly until after the deadline.
    """
    size = 0
    while chunk := response.raw.read1(65536, decode_content=True):
        size += len(chunk)
        if size > max_bytes:
            raise OSError(f"the response is longer than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise OSError("the response took too long")
        yield chunk


def _json_body(method: str, path: str, body: Any) -> bytes:
    """Return the body as JSON without NUL characters.

    FulcrumCore answers 500 to a NUL character, and the agent would retry such a request for ever.
    """
    try:
        return json.dumps(_without_nul(body), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise FulcrumRefused(f"{method} {path}: the body cannot be written as JSON ({type(exc).__name__})") from exc


def _without_nul(value: Any) -> Any:
    """Return the value with NUL characters removed from every string in it."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value
