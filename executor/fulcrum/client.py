"""Steps 1, 3 and 7 of the walk, their outside half: FulcrumCore's API and its types. The only user of requests.

What comes in is read leniently (a job with one odd member must still be claimed, to be failed), what goes wrong
becomes one of the errors of `errors.py`, named after the reaction. The facts about FulcrumCore's answers:
errors are JSON labelled `text/plain`, an unknown job is a 403, a list is a page, `/jobs/pending` is an array.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from executor.errors import FulcrumAuthFailing, FulcrumError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.types import (
    UUID_TEXT,
    CoreAgent,
    CoreJob,
    CoreModel,
    CoreService,
    MetricType,
    PendingJobs,
    ServiceType,
    kind_of,
    parse_json,
)
from executor.redaction import redactor

__all__ = ["CoreAgent", "CoreJob", "CoreService", "FulcrumClient", "MetricType", "PendingJobs", "ServiceType"]

API_PATH = "/api/v1"
VAULT_PREFIX = "vault://"
PAGE_SIZE = 100  #: FulcrumCore's maximum
MAX_WALKS = 3  #: of one list whose pages do not add up
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_ERROR_TEXT = 300
#: A body may take this many read time-outs as a whole: the read time-out alone restarts with every byte.
BODY_TIME_FACTOR = 4
MAX_RETRY_AFTER_S = 3600.0

Model = TypeVar("Model", bound=CoreModel)


# ---------------------------------------------------------------------------------------------------------------
# Clock


class ClockOffset:
    """FulcrumCore's clock minus ours, from the `Date` header, which is cut to whole seconds.

    Every answer bounds the offset: the header was written between our sending and our receiving, at its second
    or up to one second later. The bounds of all answers are intersected, and the middle is the estimate. When
    they no longer overlap, one of the clocks was set: start again with the newest answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low = -math.inf
        self._high = math.inf

    @property
    def seconds(self) -> float:
        """The estimate, 0.0 before the first answer."""
        with self._lock:
            return 0.0 if math.isinf(self._low) else (self._low + self._high) / 2

    def note(self, date: str | None, *, sent_at: float, received_at: float) -> None:
        """Take one answer into account. A missing or unreadable date changes nothing."""
        second = _http_date(date)
        if second is None or received_at < sent_at:  # our own clock was set back meanwhile
            return
        low, high = second - received_at, second + 1 - sent_at
        with self._lock:
            both = max(low, self._low), min(high, self._high)
            self._low, self._high = both if both[0] <= both[1] else (low, high)


def _http_date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# ---------------------------------------------------------------------------------------------------------------
# Transport


class _Bearer(AuthBase):
    """Sets the token. As an auth object, because requests lets a .netrc entry replace a plain header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Knows no redirects. Told only not to follow them, requests still reads their bodies and parses their targets."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Answer: nowhere."""


class _Retry(Retry):
    """Does not repeat after a read time-out: that one has used its whole time already."""

    def increment(  # type: ignore[override]  # the five others are only passed on, by keyword
        self, method: str | None = None, url: str | None = None, **kwargs: Any
    ) -> Retry:
        """Count one failure, or raise it for good."""
        if isinstance(error := kwargs.get("error"), urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, **kwargs)


RETRY = _Retry(
    total=2,
    connect=1,
    read=1,
    redirect=0,
    status=2,
    other=0,
    allowed_methods=("GET",),  # others only while nothing was sent: no connection
    status_forcelist=(500, 502, 503, 504),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=2,
    raise_on_status=False,
    respect_retry_after_header=False,  # the caller's loop waits, and can be stopped while it does
)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: requests.structures.CaseInsensitiveDict[str]
    content: bytes


class _Transport:
    """Sends one request and returns a success, or raises one of the errors of `errors.py`."""

    def __init__(
        self,
        api_url: str,
        token: Callable[[], str],
        verify: bool | str,
        timeout_s: tuple[float, float],
        on_refused: Callable[[], object],
    ) -> None:
        self._url = _base_url(api_url)
        self._token = token
        self._verify = _bundle_of_the_environment() if verify is True else verify
        self._timeout_s = timeout_s
        self._on_refused = on_refused
        self._local = threading.local()
        self.clock = ClockOffset()

    def json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """Send, and return the answer's JSON. No answer may be empty here."""
        answer = self._send(method, path, query, body)
        try:
            return parse_json(answer.content)
        except ValueError as exc:
            kind = answer.headers.get("Content-Type", "no type")[:80]
            what = f"{len(answer.content)} bytes of {kind}"
            raise FulcrumUnavailable(
                f"{method} {path}: HTTP {answer.status} without readable JSON ({what})", status=answer.status
            ) from exc

    def act(self, method: str, path: str, *, body: Any = None) -> None:
        """Send something that is answered with 204. A success with a page of HTML is some proxy's, and is none."""
        answer = self._send(method, path, None, body)
        if answer.status == 204:
            return
        try:
            parse_json(answer.content)
        except ValueError as exc:
            text = f"{method} {path}: HTTP {answer.status} that is not FulcrumCore's answer"
            raise FulcrumUnavailable(text, status=answer.status) from exc

    def _send(self, method: str, path: str, query: dict[str, Any] | None, body: Any) -> _Answer:
        token = _header_value(self._token())
        data = None if body is None else _write_json(method, path, body)
        answer = self._answer_to(method, path, query, data, token)
        if answer.status in (401, 403):
            self._on_refused()
            if (newer := _header_value(self._token())) != token:  # what was refused has changed nothing
                token = newer
                answer = self._answer_to(method, path, query, data, token)
        if answer.status >= 300:
            raise _error_of(method, path, answer, token)
        return answer

    def _answer_to(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> _Answer:
        try:
            return self._exchange(method, path, query, data, token)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:  # requests' own errors are OSErrors
            raise FulcrumUnavailable(_safe(f"{method} {path}: {_reason(exc)}", token)) from exc

    def _exchange(
        self, method: str, path: str, query: dict[str, Any] | None, data: bytes | None, token: str
    ) -> _Answer:
        sent_at = time.time()
        with self._session().request(
            method,
            self._url + path,
            params=query,
            data=data,
            headers={"Content-Type": "application/json"} if data is not None else None,
            auth=_Bearer(token),
            timeout=self._timeout_s,
            allow_redirects=False,  # a redirect must never carry the token to another host
            stream=True,
            verify=self._verify,
        ) as response:
            if response.status_code < 500 and "Age" not in response.headers:  # neither a gateway's nor a cache's date
                self.clock.note(response.headers.get("Date"), sent_at=sent_at, received_at=time.time())
            return _Answer(response.status_code, response.headers, self._body_of(response))

    def _body_of(self, response: requests.Response) -> bytes:
        give_up_at = time.monotonic() + self._timeout_s[1] * BODY_TIME_FACTOR
        if response.status_code < 300:
            return b"".join(_pieces(response, MAX_ANSWER_BYTES, give_up_at))
        try:  # what an error says is a courtesy; that it is one, is known already
            return b"".join(_pieces(response, MAX_ERROR_BYTES, give_up_at))
        except (OSError, urllib3.exceptions.HTTPError):
            return b""

    def _session(self) -> requests.Session:
        """One session a thread, and a new one in a forked child: a socket must never have two readers."""
        if getattr(self._local, "pid", None) != os.getpid():
            session = _Session()
            # Read here, once: requests would look through the environment with every call, a fifth of what one costs.
            session.trust_env = False
            session.proxies = dict(requests.utils.get_environ_proxies(self._url))
            session.headers["Accept"] = "application/json"
            session.headers["User-Agent"] = "agent-smith"
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=RETRY)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session, self._local.pid = session, os.getpid()
        found: requests.Session = self._local.session
        return found


def _bundle_of_the_environment() -> str | bool:
    """What requests itself would verify with when nobody names a bundle."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _base_url(api_url: str) -> str:
    """The address with `/api/v1`, whether or not it was given with it."""
    url = api_url.strip().rstrip("/")
    return url if url.endswith(API_PATH) else url + API_PATH


def _header_value(token: str) -> str:
    """The token, fit for a header. A file's last newline is nobody's fault."""
    token = token.strip()
    if not token:
        raise FulcrumAuthFailing("the FulcrumCore token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FulcrumAuthFailing("the FulcrumCore token holds a character that an HTTP header cannot carry")
    return token


def _pieces(response: requests.Response, limit: int, give_up_at: float) -> Iterator[bytes]:
    """The body as it arrives. `read1`, because `read` waits for a full buffer and could not watch the time."""
    size = 0
    while piece := response.raw.read1(65536, decode_content=True):
        size += len(piece)
        if size > limit:
            raise OSError(f"the answer is longer than {limit} bytes")
        if time.monotonic() > give_up_at:
            raise OSError("the answer took too long")
        yield piece


def _write_json(method: str, path: str, body: Any) -> bytes:
    """The body as JSON, without NUL: FulcrumCore's database refuses it with a 500, which would be sent for ever."""
    try:
        return json.dumps(_without_nul(body), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise FulcrumRefused(f"{method} {path}: the body cannot be written as JSON ({type(exc).__name__})") from exc


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------------------------------------------------------
# Errors


def _error_of(method: str, path: str, answer: _Answer, token: str) -> FulcrumError:
    """The error whose name is the right reaction to an answer that is not a success."""
    status = answer.status
    said = "" if path.startswith("/vault/") else _said(answer.content)
    said = f"redirects are not followed{_target(answer)}" if status < 400 else said
    text = f"{method} {path}: HTTP {status}" + (f": {said}" if said else "")
    pause_s = _retry_after_s(answer.headers.get("Retry-After"))
    return _kind_of_error(answer)(_safe(text, token), status=status, retry_after_s=pause_s)


def _safe(text: str, token: str) -> str:
    """The text without any secret: a proxy may quote our header back to us."""
    return redactor.redact(text.replace(token, "***"))


def _kind_of_error(answer: _Answer) -> type[FulcrumError]:
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


def _said(content: bytes) -> str:
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


def _target(answer: _Answer) -> str:
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
    until = _http_date(text)
    return None if until is None else min(max(until - time.time(), 0.0), MAX_RETRY_AFTER_S)


def _reason(exc: BaseException) -> str:
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


# ---------------------------------------------------------------------------------------------------------------
# The calls


class FulcrumClient:
    """FulcrumCore's API as an agent may use it. Thread-safe; the token is asked for with every request.

    Every call raises FulcrumUnavailable (later; `retry_after_s` on it says when, if FulcrumCore did), its special
    case FulcrumAuthFailing, or FulcrumRefused (never the same again) with its special case FulcrumNotFound.
    """

    def __init__(  # noqa: PLR0913  # each is one setting, and all but two have a default
        self,
        api_url: str,
        token: Callable[[], str],
        *,
        ca_bundle: Path | None = None,
        verify_tls: bool = True,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 15,
        on_refused: Callable[[], object] = lambda: None,  # called after a 401 or 403: `token` may give another one then
    ) -> None:
        verify: bool | str = str(ca_bundle) if ca_bundle and verify_tls else verify_tls
        if not verify_tls:  # said once, where the settings are read, and not with every request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._http = _Transport(api_url, token, verify, (connect_timeout_s, read_timeout_s), on_refused)

    @property
    def clock_offset_s(self) -> float:
        """FulcrumCore's clock minus ours; 0.0 until the first answer."""
        return self._http.clock.seconds

    # Ourselves

    def get_self(self) -> CoreAgent:
        """Ask who we are, and whether we are disabled."""
        return read_answer(CoreAgent, "GET /agents/me", self._http.json("GET", "/agents/me"))

    def put_status(self, status: str) -> CoreAgent:
        """Set our status, which is the heartbeat. FulcrumCore checks no transition, so never overwrite `Disabled`."""
        answer = self._http.json("PUT", "/agents/me/status", body={"status": status})
        return read_answer(CoreAgent, "PUT /agents/me/status", answer)

    # Jobs

    def pending_jobs(self, limit: int = 100) -> PendingJobs:
        """Ask for work: at most one job of each service group, in no order that means anything."""
        answer = self._http.json("GET", "/jobs/pending", query={"limit": limit})
        if not isinstance(answer, list):
            raise FulcrumUnavailable("GET /jobs/pending: the answer is not a list")
        found: dict[str, CoreJob] = {}
        unusable = []
        for position, item in enumerate(answer):
            try:
                job = CoreJob.read(item)
                found.setdefault(job.id, job)
            except ValueError as exc:
                unusable.append(f"item {position}: {kind_of(exc)}")
        return PendingJobs(list(found.values()), unusable)

    def knows_job(self, job_id: str) -> bool:
        """After a 403 about a job: False when FulcrumCore answers us and still refuses the job, gone or another's.

        A 403 may as well be an outage of its database (table 10.2 of the contract), over by now. Raises as `get_self`.
        """
        self.get_self()
        try:
            self.get_job(job_id)
        except FulcrumAuthFailing:
            return False
        return True

    def get_job(self, fulcrum_id: str) -> CoreJob:
        """Read one job. An unknown one, removed by retention, is FulcrumAuthFailing: FulcrumCore says 403."""
        path = f"/jobs/{_id(fulcrum_id)}"
        return read_answer(CoreJob, f"GET {path}", self._http.json("GET", path))

    def own_processing_jobs(self, agent_id: str) -> list[CoreJob]:
        """List the jobs that somebody claimed for this agent and nobody ended: the question after a restart."""
        query = {"agentId": _id(agent_id), "status": "Processing", "sort": "createdAt"}
        jobs = self._pages(CoreJob, "/jobs", query)
        return [job for job in jobs if job.agent_id == agent_id.lower() and job.status == "Processing"]

    def claim_job(self, fulcrum_id: str) -> None:
        """Move a job from Pending to Processing. Refused: it is not Pending, perhaps by our own lost claim."""
        self._http.act("POST", f"/jobs/{_id(fulcrum_id)}/claim")

    def complete_job(
        self,
        fulcrum_id: str,
        *,
        agent_instance_id: str | None = None,
        agent_instance_data: Any = None,
        properties: dict[str, Any] | None = None,
    ) -> None:
        """Report success. What is None is not sent, and FulcrumCore keeps what it has.

        `agent_instance_id` is unique in all of FulcrumCore: a duplicate is a 500, so FulcrumUnavailable.
        Refused: not Processing, or the properties break the schema (then the job stays Processing).
        """
        body = {
            "agentInstanceId": agent_instance_id,
            "agentInstanceData": agent_instance_data,
            "properties": properties or None,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        self._http.act("POST", f"/jobs/{_id(fulcrum_id)}/complete", body=sent)

    def fail_job(self, fulcrum_id: str, error_message: str) -> None:
        """Report failure. The message starts with an error code: lifecycles match it by regular expression.

        FulcrumCore accepts this only while the job is Processing, so claim first, even to refuse.
        """
        self._http.act("POST", f"/jobs/{_id(fulcrum_id)}/fail", body={"errorMessage": error_message})

    # Services and types

    def get_service(self, service_id: str) -> CoreService:
        """Read one service. An unknown one is FulcrumAuthFailing: FulcrumCore says 403."""
        path = f"/services/{_id(service_id)}"
        return read_answer(CoreService, f"GET {path}", self._http.json("GET", path))

    def services(self, agent_id: str) -> Iterator[CoreService]:
        """Walk the agent's services, ended ones included. FulcrumCore lists the whole provider's: we choose."""
        wanted = _id(agent_id)
        pages = self._pages(CoreService, "/services", {"sort": "name"})
        return (service for service in pages if service.agent_id == wanted)

    def get_service_type(self, service_type_id: str) -> ServiceType:
        """Read one service type."""
        path = f"/service-types/{_id(service_type_id)}"
        return read_answer(ServiceType, f"GET {path}", self._http.json("GET", path))

    def get_secret(self, reference: str) -> Any:
        """Resolve a `vault://` reference. FulcrumNotFound: deleted, never there, or not a reference at all.

        Consumers can write the reference: it must be a plain UUID before it becomes part of a path.
        """
        ident = reference.removeprefix(VAULT_PREFIX)
        if ident == reference or not UUID_TEXT.fullmatch(ident):
            raise FulcrumNotFound("GET /vault/secrets: not a vault reference")
        answer = self._http.json("GET", f"/vault/secrets/{ident}")
        if not isinstance(answer, dict) or "value" not in answer:
            raise FulcrumUnavailable("GET /vault/secrets: an answer without a value")
        return answer["value"]

    # Metrics

    def metric_types(self) -> list[MetricType]:
        """List the metrics that FulcrumCore accepts."""
        return list(self._pages(MetricType, "/metric-types", {"sort": "name"}))

    def post_metric(self, *, agent_instance_id: str, resource_id: str, type_name: str, value: float) -> None:
        """Store one value, under FulcrumCore's own time. FulcrumNotFound: unknown metric, or no such service (yet)."""
        body = {
            "agentInstanceId": agent_instance_id,
            "resourceId": resource_id,
            "typeName": type_name,
            "value": value,
        }
        self._http.act("POST", "/metric-entries", body=body)

    def _pages(self, kind: type[Model], path: str, query: dict[str, Any]) -> Iterator[Model]:
        """Walk a list of pages, each object once.

        Equal names have no order of their own at FulcrumCore, and lists change while we turn pages. So a walk that
        met fewer objects than there are is repeated: half a list must never look like a whole one.
        """
        seen: set[str] = set()
        total = 0
        for _ in range(MAX_WALKS):
            for number in count(1):
                page = self._http.json("GET", path, query={**query, "page": number, "pageSize": PAGE_SIZE})
                objects, total = _page_of(kind, path, page)
                for found in objects:
                    if found.id not in seen:
                        seen.add(found.id)
                        yield found
                if not objects or number * PAGE_SIZE >= total:
                    break
            if len(seen) >= total:
                return
        raise FulcrumUnavailable(f"GET {path}: {total} objects are announced, {len(seen)} could be read")


def read_answer(kind: type[Model], call: str, raw: Any) -> Model:
    """Return what one call answered. Raises FulcrumUnavailable for anything else."""
    try:
        return kind.read(raw)
    except ValueError as exc:
        raise FulcrumUnavailable(f"{call}: the answer is not what was asked for ({kind_of(exc)})") from exc


def _page_of(kind: type[Model], path: str, page: Any) -> tuple[list[Model], int]:
    """The objects of one page, and how many there are in all."""
    items, total = (page.get("items"), page.get("totalItems")) if isinstance(page, dict) else (None, None)
    if not isinstance(items, list) or not isinstance(total, int):
        raise FulcrumUnavailable(f"GET {path}: the answer is not a page")
    return [read_answer(kind, f"GET {path}", item) for item in items], total


def _id(value: str) -> str:
    """An id that is safe in a path. FulcrumCore would answer 400 to any other."""
    if not UUID_TEXT.fullmatch(value):
        raise FulcrumRefused("an id that is not a UUID")
    return value.lower()
