"""Sends HTTP requests to FulcrumCore with the agent's token, retries them, and limits the size of the responses."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from executor.errors import FulcrumAuthError, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.bulk_post import PreparedPost
from executor.fulcrum.clock import ClockOffset
from executor.fulcrum.http_session import RETRY_RULES, BearerAuth, create_http_session
from executor.fulcrum.responses import Response, build_error, describe_connection_failure, mask_secrets
from executor.fulcrum.untrusted_json import parse_json, parse_json_list
from executor.shared.bounded_http import CHUNK_BYTES

Parsed = TypeVar("Parsed")

API_PATH = "/api/v1"
#: Maximum size of the body of a successful response. It is large, so that a list of pending jobs can still be read if
#: one of the jobs has ten megabytes of parameters.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
#: Maximum size of the body of any other response.
MAX_ERROR_BYTES = 64 * 1024
#: Maximum number of characters of a Content-Type that an error text quotes.
MAX_CONTENT_TYPE_LENGTH = 80


class Transport:
    """Sends requests to FulcrumCore. A request that fails raises one of the exceptions of `errors.py`.

    `get_token` returns the current token. `verify` is a bool (whether the certificate is verified) or the path of a CA
    bundle. `timeouts_s` are the connect timeout and the read timeout. `on_auth_failure` reloads the token; it is
    called after a 401 or 403.
    """

    def __init__(
        self,
        api_url: str,
        get_token: Callable[[], str],
        verify: bool | str,
        timeouts_s: tuple[float, float],
        on_auth_failure: Callable[[], object],
    ) -> None:
        self._url = _base_url(api_url)
        self._get_token = get_token
        self._verify = _ca_bundle_from_environment() if verify is True else verify
        self._timeouts_s = timeouts_s
        self._on_auth_failure = on_auth_failure
        self._thread_local = threading.local()
        self.clock_offset = ClockOffset()  #: estimates FulcrumCore's clock minus this machine's clock

    def request_json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """Send a request and return the parsed response. Raises FulcrumUnavailable if the response is not JSON."""
        return self._request_parsed(parse_json, method, path, query, body)

    def request_json_list(self, path: str, *, query: dict[str, Any], max_items: int) -> tuple[list[Any], int]:
        """Send a GET request. Return the first `max_items` items of the list, and the number of further items.

        In place of an item that cannot be parsed, the list has a ValueError. Raises FulcrumUnavailable if the response
        is not a list.
        """

        def parse(content: bytes) -> tuple[list[Any], int]:
            return parse_json_list(content, max_items)

        return self._request_parsed(parse, "GET", path, query, None)

    def _request_parsed(
        self, parse: Callable[[bytes], Parsed], method: str, path: str, query: dict[str, Any] | None, body: Any
    ) -> Parsed:
        response = self._send(method, path, query, body)
        try:
            return parse(response.content)
        except ValueError as exc:
            content_type = response.headers.get("Content-Type", "no type")[:MAX_CONTENT_TYPE_LENGTH]
            body_description = f"{len(response.content)} bytes of {content_type}"
            raise FulcrumUnavailable(
                f"{method} {path}: HTTP {response.status} without readable JSON ({body_description})",
                status=response.status,
            ) from exc

    def request_without_result(
        self, method: str, path: str, *, body: Any = None, reuses_prepared_request: bool = False
    ) -> None:
        """Send a request whose response is only an acknowledgement: the caller does not need its content.

        FulcrumCore acknowledges with status 204 or with JSON. Other content, such as HTML, is from a proxy, and
        FulcrumCore may not have received the request. So this method then raises FulcrumUnavailable.

        `reuses_prepared_request` reduces the CPU time of a POST request: the URL, the headers and the connection are
        prepared once for each path and thread, and every later request reuses them. The responses are then not used to
        estimate FulcrumCore's clock.
        """
        response = self._send(method, path, None, body, reuses_prepared_request=reuses_prepared_request)
        if response.status == 204:
            return
        try:
            parse_json(response.content)
        except ValueError as exc:
            text = f"{method} {path}: HTTP {response.status}, but the response is not from FulcrumCore"
            raise FulcrumUnavailable(text, status=response.status) from exc

    def _send(
        self, method: str, path: str, query: dict[str, Any] | None, body: Any, *, reuses_prepared_request: bool = False
    ) -> Response:
        """Send a request. If FulcrumCore refuses the token, and `on_auth_failure` loads a new one, repeat the request.

        Raises FulcrumUnavailable if no complete response arrives.
        """
        token = _require_valid_token(self._get_token())
        data = None if body is None else _json_body(method, path, body)

        def send(used_token: str) -> Response:
            try:
                if reuses_prepared_request and data is not None:
                    return self._send_prepared_post(path, data, used_token)
                return self._send_and_read(method, path, query, data, used_token)
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:  # OSError: errors of `requests`
                text = f"{method} {path}: {describe_connection_failure(exc)}"
                raise FulcrumUnavailable(mask_secrets(text, used_token)) from exc

        response = send(token)
        if response.status in (401, 403):
            self._on_auth_failure()
            new_token = _require_valid_token(self._get_token())
            if new_token != token:
                # It is safe to send the request again, because FulcrumCore has not executed the refused request.
                token = new_token
                response = send(token)
        if response.status >= 300:
            raise build_error(method, path, response, token)
        return response

    def _send_and_read(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> Response:
        """Send a request, read the response, and use its `Date` header to estimate FulcrumCore's clock.

        The session retries the request according to RETRY_RULES, for example a GET request after status 503.
        """
        sent_at = time.time()
        with self._session().request(
            method,
            self._url + path,
            params=query,
            data=data,
            headers={"Content-Type": "application/json"} if data is not None else None,
            auth=BearerAuth(token),
            timeout=self._timeouts_s,
            allow_redirects=False,  # a redirect must never send the token to another host
            stream=True,
            verify=self._verify,
        ) as response:
            # A gateway's error (5xx) or a cached response (with `Age`) does not show FulcrumCore's current time.
            if response.status_code < 500 and "Age" not in response.headers:
                self.clock_offset.add_sample(response.headers.get("Date"), sent_at=sent_at, received_at=time.time())
            return Response(response.status_code, response.headers, self._read_body(response.raw))

    def _send_prepared_post(self, path: str, data: bytes, token: str) -> Response:
        """Send a POST request with this thread's PreparedPost for the path, and read the response.

        A PreparedPost contains the URL, the headers and the connection. The first request to a path creates the
        PreparedPost.
        """
        session = self._session()  # creates `prepared_posts`, and replaces it in a forked child process
        prepared_posts: dict[str, PreparedPost] = self._thread_local.prepared_posts
        if path not in prepared_posts:
            prepared_posts[path] = PreparedPost(session, self._url + path, self._verify, RETRY_RULES)
        response = prepared_posts[path].send(data, token, self._timeouts_s)
        try:
            return Response(response.status, CaseInsensitiveDict(response.headers), self._read_body(response))
        finally:
            response.close()  # closes the connection if the response was not read to the end
            response.release_conn()

    @staticmethod
    def _read_body(response: urllib3.BaseHTTPResponse) -> bytes:
        """Return the body. If the body of an unsuccessful response cannot be read, return an empty one."""
        if response.status < 300:
            return _read_up_to(response, MAX_RESPONSE_BYTES)
        try:
            return _read_up_to(response, MAX_ERROR_BYTES)
        except (OSError, urllib3.exceptions.HTTPError):
            return b""  # the status suffices to choose the exception

    def _session(self) -> requests.Session:
        """Return the session of this thread, which keeps a TCP connection open. Create the session if there is none.

        A forked child process creates its own session, because two processes must never share a socket.
        """
        if getattr(self._thread_local, "pid", None) != os.getpid():
            # `max_raw_bytes` limits a body before decompression. `_read_body` limits it after decompression.
            session = create_http_session(self._url, max_raw_bytes=MAX_RESPONSE_BYTES)
            self._thread_local.session = session
            self._thread_local.prepared_posts = {}  # the keys are the paths
            self._thread_local.pid = os.getpid()
        thread_session: requests.Session = self._thread_local.session
        return thread_session


def _ca_bundle_from_environment() -> str | bool:
    """Return the path of the CA bundle that the environment names; True, for the default bundle, if it names none."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _base_url(api_url: str) -> str:
    """Return the URL of the API, which ends with API_PATH. The path is appended if `api_url` does not end with it."""
    url = api_url.strip().rstrip("/")
    return url if url.endswith(API_PATH) else url + API_PATH


def _require_valid_token(token: str) -> str:
    """Return the token without white space around it. Raises FulcrumAuthError if it is not valid in a header."""
    token = token.strip()
    if not token:
        raise FulcrumAuthError("the FulcrumCore token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FulcrumAuthError("the FulcrumCore token contains a character that is not allowed in an HTTP header")
    return token


def _read_up_to(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    """Return the body. Raises OSError if the body exceeds `max_bytes`."""
    # The body is collected in one buffer that grows. A list of small pieces would fragment the memory.
    body = io.BytesIO()
    while chunk := response.read1(CHUNK_BYTES, decode_content=True):
        body.write(chunk)
        if body.tell() > max_bytes:
            raise OSError(f"the response is longer than {max_bytes} bytes")
    return body.getvalue()


def _json_body(method: str, path: str, body: Any) -> bytes:
    """Return the body as JSON without NUL characters.

    FulcrumCore answers 500 to a NUL character, so the agent would retry such a request for ever.
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
