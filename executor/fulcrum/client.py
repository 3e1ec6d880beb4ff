"""FulcrumCore's API as an agent uses it: jobs, services, types, secrets, metrics and the agent's own status.

`transport.py` sends the requests, `responses.py` names the errors, and `types.py` reads the objects leniently: a job
with one invalid member must still be claimed, so that it can be failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import urllib3

from executor.errors import FulcrumAuthFailing, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.transport import Transport
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
)

VAULT_PREFIX = "vault://"
PAGE_SIZE = 100  #: FulcrumCore's maximum
MAX_WALKS = 3  #: of one list whose pages do not add up

Model = TypeVar("Model", bound=CoreModel)


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
        self._http = Transport(api_url, token, verify, (connect_timeout_s, read_timeout_s), on_refused)

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
