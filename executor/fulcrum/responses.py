"""Turns an HTTP response that is not a success into one of the errors of `errors.py`, named after the reaction.

FulcrumCore's error bodies are JSON labelled `text/plain`, and it answers 403 for an unknown job or service.
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
class Answer:
    status: int
    headers: CaseInsensitiveDict[str]
    content: bytes


def error_of(method: str, path: str, answer: Answer, token: str) -> FulcrumError:
    """The error whose name is the right reaction to an answer that is not a success."""
    status = answer.status
    said = "" if path.startswith("/vault/") else _error_text(answer.content)
    said = f"redirects are not followed{_target(answer)}" if status < 400 else said
    text = f"{method} {path}: HTTP {status}" + (f": {said}" if said else "")
    pause_s = _retry_after_s(answer.headers.get("Retry-After"))
    return _kind_of_error(answer)(without_secrets(text, token), status=status, retry_after_s=pause_s)


def without_secrets(text: str, token: str) -> str:
    """The text without any secret: a proxy may quote our header back to us."""
    return redactor.redact(text.replace(token, "***"))


def _kind_of_error(answer: Answer) -> type[FulcrumError]:
    status = answer.status
    if status in (401, 403):  # FulcrumCore's database outage looks the same
        return FulcrumAuthFailing
    if status < 400 or status in (408, 425, 429) or status >= 500:
        return FulcrumUnavailable
    if status == 404:
        return FulcrumNotFound if _is_from_core(answer.content) else FulcrumUnavailable
    return FulcrumRefused


def _is_from_core(content: bytes) -> bool:
    """FulcrumCore's own 404 is JSON or empty. Text or HTML comes from a router or a proxy, and may change."""
    try:
        return not content or isinstance(parse_json(content), dict)
    except ValueError:
        return False


def _error_text(content: bytes) -> str:
    """FulcrumCore's own short words, from any of its three shapes; nothing when a proxy is talking."""
    try:
        body = parse_json(content)
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    problems = body.get("errors") if isinstance(body.get("errors"), list) else []
    parts = [body.get("error") or body.get("status")]
    parts += [f"{item.get('path')} {item.get('message')}" for item in problems or [] if isinstance(item, dict)]
    words = " ".join("; ".join(str(part) for part in parts if part).split())
    return "".join(char for char in words if char.isprintable())[:MAX_ERROR_TEXT]


def _target(answer: Answer) -> str:
    """Where a redirect points, without what may be secret in it."""
    try:
        parts = urlsplit(answer.headers.get("Location", ""))
        host = f" (it points to {parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''})"
    except ValueError:
        return ""
    return host if parts.hostname else ""


def _retry_after_s(text: str | None) -> float | None:
    """Seconds to wait, from a number or a date; None when absent or unreadable."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), MAX_RETRY_AFTER_S)
    until = http_date(text)
    return None if until is None else min(max(until - time.time(), 0.0), MAX_RETRY_AFTER_S)


def reason_of(exc: BaseException) -> str:
    """The innermost reason of a connection failure: the outer ones only repeat the address."""
    while isinstance(inner := getattr(exc, "reason", None) or (exc.args[0] if exc.args else None), BaseException):
        exc = inner
    text = re.sub(r"<[^>]*>:? ?", "", str(exc)) or type(exc).__name__
    return " ".join(text.split())[:MAX_ERROR_TEXT] + _remedy(text)


def _remedy(text: str) -> str:
    """What to do about a certificate that does not fit."""
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return ""
    if "expired" in text or "not yet valid" in text:
        return ". Renew FulcrumCore's certificate; if it is valid, one of the clocks is wrong"
    if "mismatch" in text:
        return ". FULCRUM_API_URL must name a host that FulcrumCore's certificate is made for"
    return ". FULCRUM_CA_BUNDLE must name a file with the CA that FulcrumCore's certificate comes from"
