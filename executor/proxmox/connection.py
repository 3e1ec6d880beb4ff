"""Sends GET requests to the Proxmox API, and raises a JobError for each failure.

Only modules in `executor/proxmox/` use proxmoxer.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import urllib3
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
from urllib3.util.retry import Retry

from executor.errors import JobError
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.shared.bounded_http import bounded_sessions
from executor.shared.connection_failures import text_for_operators
from executor.shared.error_codes import ErrorCode
from executor.shared.error_rules import classify_failure
from executor.shared.login_repeats import REPEAT_PAUSES_S, repeat_while_refused

DEFAULT_PORT = 8006
CONNECT_TIMEOUT_S = 5.0
#: Maximum length of the text of a JobError, without the remedy that `_certificate_remedy` adds.
MAX_ERROR_TEXT_CHARS = 400

#: The exceptions that a failed request raises. OSError includes all exceptions of the library `requests`.
REQUEST_ERRORS = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
#: The exceptions that proxmoxer raises if it cannot read an unexpected answer.
ANSWER_ERRORS = (KeyError, TypeError, AttributeError, ValueError, RecursionError)
#: Matches a Python object with its memory address, such as `<urllib3.connection.HTTPSConnection object at 0x7f3a>: `.
_OBJECT_WITH_ADDRESS = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>:? ?")


@dataclass(frozen=True, kw_only=True)
class ProxmoxConnection:
    """The address of Proxmox and the credentials for it, which are a token or a password."""

    host: str
    port: int = DEFAULT_PORT
    user: str
    token_id: str = ""  #: the token's name without the user, such as `agent` for `smith@pve!agent`
    token_secret: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    verify: bool | Path = True  #: False: do not verify the certificate; a path: the file with the CA

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the connection that the `PROXMOX_*` settings describe."""
        verify: bool | Path = settings.proxmox_validate_certs
        if verify and settings.proxmox_ca_bundle:
            verify = settings.proxmox_ca_bundle
        return cls(
            host=settings.proxmox_host,
            port=settings.proxmox_port,
            user=settings.proxmox_user,
            token_id=settings.proxmox_token_id,
            token_secret=settings.proxmox_token_secret.get_secret_value(),
            password=settings.proxmox_password.get_secret_value(),
            verify=verify,
        )


class ProxmoxSession:
    """Sends GET requests to Proxmox. It is thread-safe, because each thread has its own TCP connection.

    `reload_connection` returns the current credentials. It is called after Proxmox has answered 401 or 403. If the
    credentials have not changed, it returns the object that is already in the attribute `connection`. If
    `reload_connection` is None, the session always uses the credentials of `connection`.
    """

    def __init__(
        self, connection: ProxmoxConnection, timeout_s: float, reload_connection: Callable[[], ProxmoxConnection] | None
    ) -> None:
        self.connection = connection
        self._reload_connection = reload_connection
        self._timeout_s = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s)  # the connect timeout and the read timeout
        self._thread_local = threading.local()

    def get(self, path: str, /, **query: Any) -> Any:
        """Send a GET request and return the data of the answer. Every failure raises a JobError."""
        try:
            return self._send_get(path, **query)
        except REQUEST_ERRORS + ANSWER_ERRORS as exc:
            raise_job_error(exc)

    def is_refused_as_bad_request(self, path: str, /, **query: Any) -> bool:
        """Send a GET request. Return True for HTTP 400, False for a success. Every other failure raises a JobError."""
        try:
            self._send_get(path, **query)
        except ResourceException as exc:
            if exc.status_code == 400:
                return True
            raise_job_error(exc)
        except REQUEST_ERRORS + ANSWER_ERRORS as exc:
            raise_job_error(exc)
        return False

    def _send_get(self, path: str, /, **query: Any) -> Any:
        """Send a GET request. Send it again if Proxmox refuses it and `reload_connection` returns new credentials.

        After a login with a password, proxmoxer sends a ticket with each request. If the ticket may have expired, this
        method logs in again and repeats the request. If Proxmox refuses a token with 401, and there are no new
        credentials, `_repeat_while_refused` repeats the request.
        """
        had_current_api_object = self._has_current_api_object()
        used_connection = self.connection
        try:
            return _get_once(self._api(), path, query)
        except (AuthenticationError, ResourceException) as exc:
            status = getattr(exc, "status_code", 401)  # an AuthenticationError has no status
            are_credentials_refused = status in (401, 403)
            if are_credentials_refused and self._reload_connection is not None:
                self.connection = self._reload_connection()
            has_new_credentials = are_credentials_refused and self.connection is not used_connection
            # If this call has created the ProxmoxAPI object, it has just logged in, so its ticket cannot have expired.
            may_have_expired_ticket = had_current_api_object and not used_connection.token_secret and status == 401
            if status == 401 and used_connection.token_secret and not has_new_credentials:
                return self._repeat_while_refused(path, query)
            if not has_new_credentials and not may_have_expired_ticket:
                raise
        self._thread_local.api = None  # `_api` then creates a new object, with the new credentials or a new ticket
        return _get_once(self._api(), path, query)

    def _repeat_while_refused(self, path: str, query: dict[str, Any]) -> Any:
        """Repeat a request that got a 401, until it gets an answer other than 401.

        While its cluster file system restarts, Proxmox answers 401 to a valid token for some seconds. There is one
        repetition after each pause in REPEAT_PAUSES_S. If the last repetition gets a 401, this method raises the error.
        """
        time.sleep(REPEAT_PAUSES_S[0])
        return repeat_while_refused(lambda: _get_once(self._api(), path, query), _is_http_401, REPEAT_PAUSES_S[1:])

    def _has_current_api_object(self) -> bool:
        """Return whether this thread has a ProxmoxAPI object that this process created with the current credentials."""
        is_from_this_process = getattr(self._thread_local, "pid", None) == os.getpid()
        has_current_credentials = getattr(self._thread_local, "connection", None) == self.connection
        return is_from_this_process and has_current_credentials and self._thread_local.api is not None

    def _api(self) -> ProxmoxAPI:
        """Return this thread's ProxmoxAPI object, which keeps a TCP connection open. Create it if there is none.

        A forked child process creates its own object, because two processes must never share a socket.
        """
        if not self._has_current_api_object():
            connection = self.connection
            self._thread_local.api = _create_api(connection, self._timeout_s)
            self._thread_local.pid = os.getpid()
            self._thread_local.connection = connection
        return self._thread_local.api


def _is_http_401(exc: Exception) -> bool:
    return getattr(exc, "status_code", 0) == 401


def _create_api(connection: ProxmoxConnection, timeout_s: tuple[float, float]) -> ProxmoxAPI:
    """Return a new ProxmoxAPI object. With a password, this function logs in. With a token, it sends no request."""
    if connection.token_secret:
        credentials = {"token_name": connection.token_id, "token_value": connection.token_secret}
    else:
        credentials = {"password": connection.password}
    verify = connection.verify if isinstance(connection.verify, bool) else str(connection.verify)
    if verify is False:  # the agent warns once, at its start; urllib3 would warn at each request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    with bounded_sessions():  # every session created here limits the time and the size of its answers
        api = ProxmoxAPI(
            connection.host,
            port=connection.port,
            user=connection.user,
            verify_ssl=verify,
            timeout=timeout_s,
            **credentials,
        )
    session = api._store["session"]
    session.max_redirects = 0  # Proxmox never redirects, and a redirect must not send the token to another server
    # A request is sent once more only if no connection was made.
    session.get_adapter("https://").max_retries = Retry(total=1, connect=1, read=0, redirect=0, status=0, other=0)
    return api


def _get_once(api: ProxmoxAPI, path: str, query: dict[str, Any]) -> Any:
    """Send a GET request and return the data of the answer. Raises ValueError if the answer is not JSON.

    If the answer is not JSON, proxmoxer returns a dict whose member `errors` is the answer as bytes.
    """
    with bounded_sessions():  # proxmoxer may log in again, and creates a session for the login
        answer = api(path.strip("/")).get(**query)
    if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):
        raise ValueError("the answer is not JSON")
    return answer


def raise_job_error(exc: Exception) -> NoReturn:
    """Raise the JobError for the exception of a failed request.

    `text_for_operators` replaces a library's text about a failed connection by plain words, such as `the host name
    cannot be resolved`.
    """
    if isinstance(exc, REQUEST_ERRORS):
        failure = classify_failure(_failure_text(exc))
        remedy = _certificate_remedy(failure.text) if failure.code == ErrorCode.PVE_TLS else ""
        has_proxmox_answered = isinstance(exc, ResourceException)
        text = failure.text if has_proxmox_answered else text_for_operators(failure.text)
        reason = redactor.redact(text)[:MAX_ERROR_TEXT_CHARS]
        raise JobError(failure.code, reason + remedy) from exc
    raise JobError(ErrorCode.PVE_API_ERROR, f"Proxmox's answer cannot be read ({type(exc).__name__})") from exc


def _certificate_remedy(text: str) -> str:
    """Return what an operator must do about a certificate that could not be verified."""
    if "expired" in text or "not yet valid" in text:
        return ". Renew Proxmox's certificate; if it is still valid, correct the clock of this machine or of Proxmox"
    if "mismatch" in text or "doesn't match" in text:
        return ". PROXMOX_HOST must be a host name or an address for which Proxmox's certificate is valid"
    return (
        ". PROXMOX_CA_BUNDLE must be the path of a file with the CA of Proxmox's certificate "
        "(on a Proxmox node, this file is /etc/pve/pve-root-ca.pem)"
    )


def _failure_text(exc: BaseException) -> str:
    """Return the text of an exception without Python objects, because their memory addresses differ each time."""
    single_line = " ".join(str(exc).split())
    return _OBJECT_WITH_ADDRESS.sub("", single_line) or type(exc).__name__
