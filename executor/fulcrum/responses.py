"""Translates unsuccessful responses of FulcrumCore into the exceptions of `errors.py`.

The body of such a response is JSON, although its Content-Type is `text/plain`. For an unknown job or service
FulcrumCore answers 403, not 404.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from requests.structures import CaseInsensitiveDict

from executor.errors import FulcrumAuthFailing, FulcrumError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.clock import http_date
from executor.fulcrum.untrusted_json import parse_json
from executor.redaction import redactor

MAX_ERROR_TEXT = 300
MAX_RETRY_AFTER_S = 3600.0


@dataclass(frozen=True)
class Response:
    """The status, headers and body of an HTTP response."""

    status: int
    headers: CaseInsensitiveDict[str]
    content: bytes


def error_for(method: str, path: str, response: Response, token: str) -> FulcrumError:
    """Return the exception for a response that is not a success. `token` is the token of the request; it is masked."""
    status = response.status
    if status < 400:
        detail = f"redirects are not followed{_redirect_target(response)}"
    else:
        detail = "" if path.startswith("/vault/") else _error_text(response.content)
    text = f"{method} {path}: HTTP {status}" + (f": {detail}" if detail else "")
    retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
    return _error_class(response)(without_secrets(text, token), status=status, retry_after_s=retry_after_s)


def without_secrets(text: str, token: str) -> str:
    """Return the text with the token and every other secret masked.

    A proxy may quote the headers of the request, with the token, in its response.
    """
    return redactor.redact(text.replace(token, "***"))


def _error_class(response: Response) -> type[FulcrumError]:
    status = response.status
    if status in (401, 403):  # FulcrumCore also answers 401 or 403 while its database is down
        return FulcrumAuthFailing
    if status < 400 or status in (408, 425, 429) or status >= 500:
        return FulcrumUnavailable
    if status == 404:
        return FulcrumNotFound if _is_from_core(response.content) else FulcrumUnavailable
    return FulcrumRefused


def _is_from_core(content: bytes) -> bool:
    """Return whether FulcrumCore sent this 404: then its body is empty or a JSON object.

    Otherwise a proxy has sent it, and it may be temporary.
    """
    try:
        return not content or isinstance(parse_json(content), dict)
    except ValueError:
        return False


def _error_text(content: bytes) -> str:
    """Return the message in the body of an error response; '' if the body is not FulcrumCore's.

    FulcrumCore puts the message into the member `error`, `status` or `errors`.
    """
    try:
        body = parse_json(content)
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    problems = body.get("errors") if isinstance(body.get("errors"), list) else []
    parts = [body.get("error") or body.get("status")]
    parts += [f"{item.get('path')} {item.get('message')}" for item in problems or [] if isinstance(item, dict)]
    text = " ".join("; ".join(str(part) for part in parts if part).split())
    return "".join(char for char in text if char.isprintable())[:MAX_ERROR_TEXT]


def _redirect_target(response: Response) -> str:
    """Return the scheme, host and port to which a redirect points. Its path and query may contain secrets."""
    try:
        parts = urlsplit(response.headers.get("Location", ""))
        target = f" (it points to {parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''})"
    except ValueError:
        return ""
    return target if parts.hostname else ""


def _retry_after_s(text: str | None) -> float | None:
    """Return how many seconds a `Retry-After` header demands to wait; None if the header is missing or unreadable.

    The header has a number of seconds or a date.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), MAX_RETRY_AFTER_S)
    retry_at = http_date(text)
    return None if retry_at is None else min(max(retry_at - time.time(), 0.0), MAX_RETRY_AFTER_S)


def innermost_reason(exc: BaseException) -> str:
    """Return the text of the innermost exception of a connection failure.

    The exceptions around it only repeat the address.
    """
    while isinstance(inner := getattr(exc, "reason", None) or (exc.args[0] if exc.args else None), BaseException):
        exc = inner
    text = re.sub(r"<[^>]*>:? ?", "", str(exc)) or type(exc).__name__
    return " ".join(text.split())[:MAX_ERROR_TEXT] + _remedy(text)


def _remedy(text: str) -> str:
    """Return a sentence that says what an operator must do about an unverified certificate; '' for other failures."""
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return ""
    if "expired" in text or "not yet valid" in text:
        return ". Renew FulcrumCore's certificate; if it is still valid, one of the clocks is wrong"
    if "mismatch" in text:
        return ". FULCRUM_API_URL must name a host that FulcrumCore's certificate is valid for"
    return ". FULCRUM_CA_BUNDLE must name a file with the CA that issued FulcrumCore's certificate"
