"""Translates unsuccessful responses of FulcrumCore into the exceptions of `errors.py`.

The body of such a response is JSON, although its Content-Type is `text/plain`. If a job or a service does not exist,
FulcrumCore answers 403. If another object does not exist, such as a secret, it answers 404.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from requests.structures import CaseInsensitiveDict

from executor.errors import FulcrumAuthError, FulcrumError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.clock import parse_http_date
from executor.fulcrum.untrusted_json import parse_json
from executor.redaction import redactor
from executor.shared.connection_failures import text_for_operators

#: Maximum length of the text that an exception quotes from a response or from another exception, in characters.
MAX_ERROR_TEXT_LENGTH = 300
#: A longer wait in a `Retry-After` header is shortened to this.
MAX_RETRY_AFTER_S = 3600.0
#: Matches a Python object in an error text of urllib3, such as `<urllib3.connection.HTTPConnection object>: `.
_OBJECT_IN_ANGLE_BRACKETS = re.compile(r"<[^>]*>:? ?")


@dataclass(frozen=True)
class Response:
    """The status, headers and body of an HTTP response."""

    status: int
    headers: CaseInsensitiveDict[str]
    content: bytes


def build_error(method: str, path: str, response: Response, token: str) -> FulcrumError:
    """Return the exception for an unsuccessful response.

    `token` is the token of the request. It is masked in the text of the exception.
    """
    status = response.status
    if status < 400:
        detail = f"redirects are not followed{_redirect_target(response)}: correct FULCRUM_API_URL"
    elif path.startswith("/vault/"):
        detail = ""  # the body of a response from the vault may contain a secret
    else:
        detail = _message_in_body(response.content)
    text = f"{method} {path}: HTTP {status}"
    if detail:
        text += f": {detail}"
    retry_after_s = _parse_retry_after(response.headers.get("Retry-After"))
    error_class = _error_class(response)
    return error_class(mask_secrets(text, token), status=status, retry_after_s=retry_after_s)


def mask_secrets(text: str, token: str) -> str:
    """Return the text with the token and every other secret masked.

    The text may contain the token, because a proxy may quote the headers of the request in its response.
    """
    return redactor.redact(text.replace(token, "***"))


def _error_class(response: Response) -> type[FulcrumError]:
    """Return the class of the exception, which tells the caller whether a retry makes sense.

    After FulcrumUnavailable and FulcrumAuthError, the caller retries later. After FulcrumRefused and FulcrumNotFound,
    it never sends the same request again.
    """
    status = response.status
    if status in (401, 403):
        # These answers do not prove that the token is invalid or that the job does not exist: FulcrumCore can give them
        # while its database is down.
        return FulcrumAuthError
    if status < 400 or status in (408, 425, 429) or status >= 500:
        return FulcrumUnavailable
    if status == 404:
        return FulcrumNotFound if _is_404_from_fulcrumcore(response.content) else FulcrumUnavailable
    return FulcrumRefused


def _is_404_from_fulcrumcore(content: bytes) -> bool:
    """Return whether FulcrumCore, and not a proxy, sent a 404 with this body.

    FulcrumCore sends an empty body or a JSON object. A proxy's 404 may be temporary, so the request is repeated later.
    """
    try:
        return not content or isinstance(parse_json(content), dict)
    except ValueError:
        return False


def _message_in_body(content: bytes) -> str:
    """Return the message in the body of an error response; '' if the body is not a JSON object.

    FulcrumCore puts the message into the member `error`, `status` or `errors`.
    """
    try:
        body = parse_json(content)
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    messages = [body.get("error") or body.get("status")]
    errors = body.get("errors")
    for item in errors if isinstance(errors, list) else ():
        if isinstance(item, dict):
            messages.append(f"{item.get('path')} {item.get('message')}")
    text = "; ".join(str(message) for message in messages if message)
    one_line_text = " ".join(text.split())
    return "".join(char for char in one_line_text if char.isprintable())[:MAX_ERROR_TEXT_LENGTH]


def _redirect_target(response: Response) -> str:
    """Return a text with the target of a redirect; '' if the target is unreadable.

    The path and query of the target are left out, because they may contain secrets.
    """
    try:
        url = urlsplit(response.headers.get("Location", ""))
        port = f":{url.port}" if url.port else ""
    except ValueError:
        return ""
    return f" (the target is {url.scheme}://{url.hostname}{port})" if url.hostname else ""


def _parse_retry_after(text: str | None) -> float | None:
    """Return the wait that a `Retry-After` header demands; None if the header is missing or unreadable.

    The header contains a number of seconds or a date.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), MAX_RETRY_AFTER_S)
    retry_at = parse_http_date(text)
    if retry_at is None:
        return None
    wait_s = max(retry_at - time.time(), 0.0)
    return min(wait_s, MAX_RETRY_AFTER_S)


def describe_connection_failure(exc: BaseException) -> str:
    """Return the cause of a failed connection. If a certificate is the cause, the text ends with the remedy.

    The cause is the text of the innermost exception. The exceptions around it only repeat the address.
    `text_for_operators` replaces the library's words by plain ones, such as `the host name cannot be resolved`.
    """
    while (inner_exc := _inner_exception(exc)) is not None:
        exc = inner_exc
    text = _OBJECT_IN_ANGLE_BRACKETS.sub("", str(exc)) or type(exc).__name__
    return text_for_operators(" ".join(text.split()))[:MAX_ERROR_TEXT_LENGTH] + _certificate_remedy(text)


def _inner_exception(exc: BaseException) -> BaseException | None:
    """Return the exception that is the cause of `exc`; None if there is none.

    The libraries `requests` and `urllib3` keep the cause in the attribute `reason` or as the first argument.
    """
    cause = getattr(exc, "reason", None) or (exc.args[0] if exc.args else None)
    return cause if isinstance(cause, BaseException) else None


def _certificate_remedy(text: str) -> str:
    """Return what an operator must do about a certificate that could not be verified; '' for other failures."""
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return ""
    if "expired" in text or "not yet valid" in text:
        return ". Renew FulcrumCore's certificate; if it is still valid, correct this machine's or FulcrumCore's clock"
    if "mismatch" in text:
        return ". FULCRUM_API_URL must name a host that FulcrumCore's certificate is valid for"
    return ". FULCRUM_CA_BUNDLE must name a file with the CA that issued FulcrumCore's certificate"
