"""Sends the requests of `smith init` to Proxmox as an administrator.

The CA of the cluster may not be known yet. So the password is sent only to a server whose certificate has the
fingerprint that the administrator has confirmed. The password and the ticket are kept in memory only.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from proxmoxer import ResourceException

from executor.errors import JobError
from executor.proxies import proxy_headers, proxy_url_for
from executor.proxmox.connection import (
    ANSWER_ERRORS,
    CONNECT_TIMEOUT_S,
    REQUEST_ERRORS,
    ProxmoxConnection,
    ProxmoxSession,
    raise_job_error,
)
from executor.redaction import redactor
from executor.shared.bounded_http import MAX_ANSWER_BYTES
from executor.shared.error_codes import ErrorCode

READ_TIMEOUT_S = 30.0


class AdminSession(ProxmoxSession):
    """A session of an administrator. Call `log_in` before any request."""

    def __init__(self, host: str, port: int, user: str, fingerprint: str) -> None:
        """Store the parameters. The server must present the certificate with this SHA-256 fingerprint."""
        connection = ProxmoxConnection(host=host, port=port, user=user)
        # None: if Proxmox refuses a request, there are no newer credentials to load.
        super().__init__(connection, READ_TIMEOUT_S, reload_connection=None)
        self.fingerprint = fingerprint
        self._headers: dict[str, str] = {}
        options: dict[str, Any] = {
            "assert_fingerprint": fingerprint,
            "cert_reqs": "CERT_NONE",  # the fingerprint replaces the verification by a CA
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            "retries": False,
        }
        proxy, manager = proxy_url_for(host, port), urllib3.PoolManager(**options)
        if proxy:
            manager = urllib3.ProxyManager(proxy, proxy_headers=proxy_headers(proxy), **options)
        self._pool = manager.connection_from_host(host, port, scheme="https")

    def log_in(self, password: str, ask_code: Callable[[], str]) -> None:
        """Log in with the user's password. If the user is a token such as `root@pam!setup`, `password` is its secret.

        If Proxmox requires a second factor (TOTP), `ask_code` is called and returns the code. Raises JobError if the
        login fails.
        """
        redactor.add(password)
        user = self.connection.user
        if "!" in user:
            self._headers = {"Authorization": f"PVEAPIToken={user}={password}"}
            self.get("/version")
            return
        answer = self.send_change("POST", "/access/ticket", {"username": user, "password": password})
        if answer.get("NeedTFA"):
            second_login = {"username": user, "tfa-challenge": answer["ticket"], "password": f"totp:{ask_code()}"}
            answer = self.send_change("POST", "/access/ticket", second_login)
        redactor.add(answer["ticket"])
        self._headers = {
            "Cookie": f"PVEAuthCookie={answer['ticket']}",
            "CSRFPreventionToken": answer["CSRFPreventionToken"],
        }

    def send_change(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a POST, PUT or DELETE request and return the data of the answer. Every failure raises a JobError."""
        try:
            return self._send(method, path, body=urlencode(body) if body else None)
        except REQUEST_ERRORS + ANSWER_ERRORS as exc:  # the request failed, or the answer cannot be read
            raise_job_error(exc)

    def _send_get(self, path: str, /, **query: Any) -> Any:
        """Send a GET request once. The base class calls this method, and converts its exceptions to JobErrors."""
        return self._send("GET", f"{path}?{urlencode(query)}" if query else path)

    def _send(self, method: str, path: str, *, body: str | None = None) -> Any:
        """Send a request and return the data of the answer.

        Raises ResourceException for an error answer, and JobError PVE_TLS if the certificate has another fingerprint.
        """
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        url = f"/api2/json{quote(path, safe='/!@?=&%')}"
        try:
            response = self._pool.urlopen(
                method, url, body=body, headers=headers, preload_content=False, redirect=False
            )
        except urllib3.exceptions.SSLError as exc:
            text = f"the server does not present the certificate with the fingerprint {self.fingerprint}: {exc}"
            raise JobError(ErrorCode.PVE_TLS, text) from exc
        try:
            content = response.read(MAX_ANSWER_BYTES + 1)
        finally:
            response.release_conn()
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if response.status >= 400:
            phrase = http.client.responses.get(response.status, "")
            raise ResourceException(response.status, phrase, response.reason or "", _parameter_errors(content))
        return json.loads(content)["data"]


def _parameter_errors(content: bytes) -> Any:
    """Return the member `errors` of an error answer: the messages about single parameters; None if there are none."""
    try:
        return json.loads(content).get("errors")
    except (ValueError, AttributeError):
        return None
