"""Creates sessions of the library `requests` that retry but follow no redirect. Adds a token to HTTP requests."""

from __future__ import annotations

from typing import Any

import requests
import urllib3
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from executor.shared.bounded_http import BoundedAdapter


class BearerAuth(AuthBase):
    """Adds a token for FulcrumCore (the agent's or an administrator's) to a request.

    If the token were only set as a header, the library `requests` could replace the header with a password from the
    file .netrc.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """A session that ignores redirects.

    The option `allow_redirects=False` does not suffice: the library `requests` would still parse the URL of the
    redirect, and could raise an error.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, which means that the response is not a redirect."""


class _Retry(Retry):
    """Retries as configured, but never after a read timeout, so that the caller waits for one read timeout only."""

    def increment(  # type: ignore[override]  # `kwargs` has the base method's other arguments
        self, method: str | None = None, url: str | None = None, **kwargs: Any
    ) -> Retry:
        """Count one failed attempt. Raise the error of the attempt if the request must not be retried."""
        if isinstance(error := kwargs.get("error"), urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, **kwargs)


#: The rules for retries. The numbers are the maximum numbers of retries of a request, in total and for each kind of
#: failure. The failure `read` is a connection that ends before the response. A read timeout is never retried, see
#: _Retry.
RETRY_RULES = _Retry(
    total=2,
    connect=1,
    read=1,
    redirect=0,
    status=2,
    other=0,
    # A request with another method may change something, so it is retried only if no connection was made.
    allowed_methods=("GET",),
    status_forcelist=(500, 502, 503, 504),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=2,
    raise_on_status=False,
    # The caller waits for the time in the header Retry-After. urllib3 does not, because its wait could not be stopped.
    respect_retry_after_header=False,
)


def create_http_session(url: str, *, max_raw_bytes: int) -> requests.Session:
    """Create a session for requests to `url`. `max_raw_bytes` limits the bytes of a response before decompression."""
    session = _Session()
    # The proxies are read from the environment only once, here. By default, `requests` reads them at each request,
    # which takes a fifth of the time of a request.
    session.trust_env = False
    session.proxies = dict(requests.utils.get_environ_proxies(url))
    session.headers["Accept"] = "application/json"
    session.headers["User-Agent"] = "agent-smith"
    # A BoundedAdapter limits the time until a response is complete, and the size of the response. `max_bytes=None` sets
    # no limit for the decompressed body, because the caller limits it when it reads the body.
    adapter = BoundedAdapter(
        max_bytes=None, max_raw_bytes=max_raw_bytes, pool_connections=1, pool_maxsize=1, max_retries=RETRY_RULES
    )
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session
