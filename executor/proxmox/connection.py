"""Sends GET requests to the Proxmox API and turns every failure into a JobError. No other module uses proxmoxer."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import urllib3
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
from urllib3.util.retry import Retry

from executor.errors import ErrorCode, JobError
from executor.proxmox.error_rules import classify
from executor.redaction import redactor
from executor.settings.settings import Settings

DEFAULT_PORT = 8006
CONNECT_TIMEOUT_S = 5.0
MAX_ERROR_TEXT = 400

#: The exceptions that a failed request raises. Those of the library requests are OSErrors.
_CALL_FAILED = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
#: The exceptions that proxmoxer raises when it cannot read an unexpected answer.
_ANSWER_UNREADABLE = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class ProxmoxConnection:
    """The address of Proxmox and the agent's credentials. A token is preferred: a password needs a login per thread."""

    host: str
    port: int = DEFAULT_PORT
    user: str
    token_id: str = ""  #: the token's name without the user: `agent`, not `smith@pve!agent`
    token_secret: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    verify: bool | Path = True  #: whether the certificate is verified; a path names the file with the cluster's CA

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

    `reload` returns the present credentials. It is called after Proxmox has refused a request with 401 or 403.
    """

    def __init__(
        self, connection: ProxmoxConnection, timeout_s: float, reload: Callable[[], ProxmoxConnection] | None
    ) -> None:
        self.connection = connection
        self._reload = reload
        self._timeout_s = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s)  # of connecting, and of reading
        self._local = threading.local()

    def get(self, path: str, /, **query: Any) -> Any:
        """Send a GET request and return the data of the answer. Every failure raises a JobError."""
        try:
            return self._call(path, **query)
        except _CALL_FAILED + _ANSWER_UNREADABLE as exc:
            _raise_job_error(exc)

    def is_bad_request(self, path: str, /, **query: Any) -> bool:
        """Send a GET request. Return True for HTTP 400, False for a success. Every other failure raises a JobError."""
        try:
            self._call(path, **query)
        except ResourceException as exc:
            if exc.status_code == 400:
                return True
            _raise_job_error(exc)
        except _CALL_FAILED + _ANSWER_UNREADABLE as exc:
            _raise_job_error(exc)
        return False

    def _call(self, path: str, /, **query: Any) -> Any:
        """Send a GET request. Repeat it once if Proxmox refuses the secret or the ticket, and a new one can be used.

        The new secret comes from `reload`. A ticket is the result of a login with a password. It expires after some
        time, and then this method logs in again.
        """
        was_logged_in = self._has_api()
        used_connection = self.connection
        try:
            return _get(self._api(), path, query)
        except (AuthenticationError, ResourceException) as exc:
            status = getattr(exc, "status_code", 401)
            has_new_secret = status in (401, 403) and self._reload_connection(used_connection)
            is_expired_ticket = was_logged_in and not used_connection.token_secret and status == 401
            if not has_new_secret and not is_expired_ticket:
                raise
        self._local.api = None
        return _get(self._api(), path, query)

    def _reload_connection(self, used_connection: ProxmoxConnection) -> bool:
        """Reload the credentials. Return whether they differ from `used_connection`, which Proxmox has refused."""
        if self._reload is not None:
            self.connection = self._reload()
        return self.connection is not used_connection

    def _has_api(self) -> bool:
        """Return whether this thread has an API object, made by this process and with the present credentials."""
        made_for = getattr(self._local, "pid", None), getattr(self._local, "connection", None)
        return made_for == (os.getpid(), self.connection) and self._local.api is not None

    def _api(self) -> ProxmoxAPI:
        """Return this thread's API object, which holds its TCP connection. Make it if there is none.

        A forked child process makes its own object, because two processes must never share a socket.
        """
        if not self._has_api():
            connection = self.connection
            self._local.api = _connect(connection, self._timeout_s)
            self._local.pid, self._local.connection = os.getpid(), connection
        return self._local.api


def _connect(connection: ProxmoxConnection, timeout_s: tuple[float, float]) -> ProxmoxAPI:
    """Return a new API object. With a password, this sends a login request. With a token, it sends nothing."""
    if connection.token_secret:
        login = {"token_name": connection.token_id, "token_value": connection.token_secret}
    else:
        login = {"password": connection.password}
    verify = connection.verify if isinstance(connection.verify, bool) else str(connection.verify)
    if verify is False:  # the agent warns once, at its start; urllib3 would warn at each request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    api = ProxmoxAPI(
        connection.host,
        port=connection.port,
        user=connection.user,
        verify_ssl=verify,
        timeout=timeout_s,
        **login,
    )
    session = api._store["session"]
    session.max_redirects = 0  # Proxmox never redirects, and a redirect must not send the token to another server
    session.get_adapter("https://").max_retries = Retry(total=1, connect=1, read=0, redirect=0, status=0, other=0)
    return api


def _get(api: ProxmoxAPI, path: str, query: dict[str, Any]) -> Any:
    """Send a GET request and return the data of the answer. Raises ValueError if the answer is not JSON.

    For such an answer, proxmoxer itself returns a dict with `errors`.
    """
    answer = api(path.strip("/")).get(**query)
    if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):
        raise ValueError("the answer is not JSON")
    return answer


def _raise_job_error(exc: Exception) -> NoReturn:
    """Raise the JobError for a failed request."""
    if isinstance(exc, _CALL_FAILED):
        failure = classify(_failure_text(exc))
        remedy = _remedy(failure.text) if failure.code == ErrorCode.PVE_TLS else ""
        raise JobError(failure.code, redactor.redact(failure.text)[:MAX_ERROR_TEXT] + remedy) from exc
    raise JobError(ErrorCode.PVE_API_ERROR, f"Proxmox's answer cannot be read ({type(exc).__name__})") from exc


def _remedy(text: str) -> str:
    """Return a sentence that says what an operator must do about a certificate that could not be verified."""
    if "expired" in text or "not yet valid" in text:
        return ". Renew Proxmox's certificate; if it is still valid, one of the clocks is wrong"
    if "mismatch" in text or "doesn't match" in text:
        return ". PROXMOX_HOST must be a name or an address that Proxmox's certificate is valid for"
    return ". PROXMOX_CA_BUNDLE must name a file with the CA of Proxmox's certificate (/etc/pve/pve-root-ca.pem)"


def _failure_text(exc: BaseException) -> str:
    """Return the text of an exception, without the memory addresses of Python objects, which differ each time."""
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", " ".join(str(exc).split())) or type(exc).__name__
