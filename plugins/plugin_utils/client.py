# SPDX-License-Identifier: Apache-2.0
"""Creates the Proxmox API client for a login, and defines which exceptions a failed request raises."""

from __future__ import annotations

import sys
from typing import Any

from .bounded_session import REQUEST_TIMEOUT_S
from .login import LoginError

__all__ = [
    "IMPORT_PROBLEM",
    "REQUEST_ERRORS",
    "LibraryMissing",
    "ResourceException",
    "connect",
    "error_text",
    "is_request_refused",
    "login_name",
    "read_list_or_empty_if_forbidden",
]

#: The reason why a Python library of the client cannot be imported; empty if all can be imported. `connect` raises
#: LibraryMissing with this reason.
IMPORT_PROBLEM = ""
#: The exceptions that a failed request to Proxmox raises.
REQUEST_ERRORS: tuple[type[Exception], ...] = (OSError,)
try:
    import urllib3
    from proxmoxer import ProxmoxAPI
    from proxmoxer.core import AuthenticationError, ResourceException

    from .shared import bounded_http  # `shared` contains the modules that the executor uses, too

    REQUEST_ERRORS = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
except ImportError as import_error:
    IMPORT_PROBLEM = str(import_error)
    AuthenticationError = ResourceException = OSError


class LibraryMissing(Exception):
    """A Python library that a connection to Proxmox needs is not installed."""


def connect(connection: dict[str, Any], ca_bundle: str) -> Any:
    """Return an API client for a login.

    `connection` contains the login parameters, named like the parameters of community.proxmox's modules. If it has both
    a password and a token, the password is used, as in the modules. Raises LibraryMissing or LoginError.
    """
    if IMPORT_PROBLEM:
        raise LibraryMissing(f"PLAYBOOK_FAILED: install proxmoxer and requests for {sys.executable}: {IMPORT_PROBLEM}")
    verify: bool | str = bool(connection.get("validate_certs", True))
    if verify and ca_bundle:
        verify = ca_bundle
    login = {"user": connection.get("api_user", "")}
    if connection.get("api_port"):
        login["port"] = connection["api_port"]
    if connection.get("api_password"):
        login["password"] = connection["api_password"]
    else:
        login |= {
            "token_name": connection.get("api_token_id", ""),
            "token_value": connection.get("api_token_secret", ""),
        }
    if not connection.get("api_host"):
        raise LoginError(
            "PVE_AUTH: the host of Proxmox is unknown: set PROXMOX_HOST, or api_host in SMITH_CREDENTIALS_FILE"
        )
    host = connection["api_host"]
    # proxmoxer makes HTTP sessions here. `bounded_sessions` limits the size and the duration of their answers.
    with bounded_http.bounded_sessions():
        api = ProxmoxAPI(host, verify_ssl=verify, timeout=REQUEST_TIMEOUT_S, **login)
    # A whole answer must arrive within the request's timeout multiplied by this factor. With the default factor of 4,
    # ansible-runner could kill the playbook while an action plugin waits for an answer.
    api._store["session"].mount("https://", bounded_http.BoundedAdapter(answer_timeout_factor=1.0))
    return api


def login_name(connection: dict[str, Any]) -> str:
    """Return the user if the login has a password, else the token in the form `smith@pve!job`."""
    user = str(connection.get("api_user", ""))
    return user if connection.get("api_password") else f"{user}!{connection.get('api_token_id', '')}"


def error_text(exc: BaseException) -> str:
    """Return the exception's text, or its class name if it has none."""
    return str(exc).strip() or type(exc).__name__


def is_request_refused(exc: BaseException) -> bool:
    """Return True if Proxmox refused the request, so that a repetition of the request would fail, too.

    Return False if the answer was lost or Proxmox had an internal error.
    """
    return isinstance(exc, AuthenticationError) or getattr(exc, "status_code", 599) < 500


def read_list_or_empty_if_forbidden(resource: Any, **parameters: Any) -> list[dict[str, Any]]:
    """Return the rows of one of Proxmox's lists; no rows if the login may not read the list."""
    try:
        return list(resource.get(**parameters))
    except ResourceException as exc:
        if getattr(exc, "status_code", 0) != 403:
            raise
        return []
