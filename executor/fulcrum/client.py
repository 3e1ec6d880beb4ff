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
    VAULT_PREFIX,
    CoreAgent,
    CoreJob,
    CoreModel,
    CoreService,
    MetricType,
    PendingJobs,
    ServiceType,
    error_type,
)

PAGE_SIZE = 100  #: FulcrumCore's maximum
MAX_LIST_ATTEMPTS = 3  #: attempts to read a list completely

Model = TypeVar("Model", bound=CoreModel)


class FulcrumClient:
    """FulcrumCore's API as an agent may use it. Thread-safe; `token` is called for every request.

    Every call raises FulcrumUnavailable (retry later, after its `retry_after_s` if FulcrumCore sent one) or its special
    case FulcrumAuthFailing, or FulcrumRefused (do not retry) or its special case FulcrumNotFound.
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
        on_auth_failure: Callable[[], object] = lambda: None,  # called after a 401 or 403, to reload the token
    ) -> None:
        verify: bool | str = str(ca_bundle) if ca_bundle and verify_tls else verify_tls
        if not verify_tls:  # one warning is logged where the settings are read, so none per request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._http = Transport(api_url, token, verify, (connect_timeout_s, read_timeout_s), on_auth_failure)

    @property
    def clock_offset_s(self) -> float:
        """FulcrumCore's clock minus ours; 0.0 until the first response."""
        return self._http.clock.seconds

    # The agent

    def get_self(self) -> CoreAgent:
        """Read this agent."""
        return parse_response(CoreAgent, "GET /agents/me", self._http.request_json("GET", "/agents/me"))

    def put_status(self, status: str) -> CoreAgent:
        """Set this agent's status: the heartbeat. FulcrumCore accepts any change, so never overwrite `Disabled`."""
        data = self._http.request_json("PUT", "/agents/me/status", body={"status": status})
        return parse_response(CoreAgent, "PUT /agents/me/status", data)

    # Jobs

    def pending_jobs(self, limit: int = 100) -> PendingJobs:
        """Return pending jobs, at most one per service group, in no defined order."""
        data = self._http.request_json("GET", "/jobs/pending", query={"limit": limit})
        if not isinstance(data, list):
            raise FulcrumUnavailable("GET /jobs/pending: the response is not a list")
        found: dict[str, CoreJob] = {}
        unusable = []
        for position, item in enumerate(data):
            try:
                job = CoreJob.read(item)
                found.setdefault(job.id, job)
            except ValueError as exc:
                unusable.append(f"item {position}: {error_type(exc)}")
        return PendingJobs(list(found.values()), unusable)

    def knows_job(self, fulcrum_id: str) -> bool:
        """Return whether FulcrumCore still lets this agent read the job; used after a 403 about the job.

        FulcrumCore answers 403 for a job that is deleted or another agent's, and also while its database is down. False
        means the first: FulcrumCore accepts the token and refuses the job. Raises as `get_self`.
        """
        self.get_self()
        try:
            self.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            return False
        return True

    def get_job(self, fulcrum_id: str) -> CoreJob:
        """Read one job. FulcrumCore answers 403 for an unknown one, such as a pruned job: FulcrumAuthFailing."""
        path = f"/jobs/{_id(fulcrum_id)}"
        return parse_response(CoreJob, f"GET {path}", self._http.request_json("GET", path))

    def own_processing_jobs(self, agent_id: str) -> list[CoreJob]:
        """List the jobs of this agent that are claimed and not ended; used after a restart."""
        query = {"agentId": _id(agent_id), "status": "Processing", "sort": "createdAt"}
        jobs = self._list_all(CoreJob, "/jobs", query)
        return [job for job in jobs if job.agent_id == agent_id.lower() and job.status == "Processing"]

    def claim_job(self, fulcrum_id: str) -> None:
        """Move a job from Pending to Processing.

        FulcrumRefused: it is not Pending, perhaps because of an earlier claim of ours whose response was lost.
        """
        self._http.request_without_content("POST", f"/jobs/{_id(fulcrum_id)}/claim")

    def complete_job(
        self,
        fulcrum_id: str,
        *,
        agent_instance_id: str | None = None,
        agent_instance_data: Any = None,
        properties: dict[str, Any] | None = None,
    ) -> None:
        """Report success. Arguments that are None are not sent, and FulcrumCore keeps their stored values.

        `agent_instance_id` is unique in all of FulcrumCore: it answers 500 to a duplicate, so FulcrumUnavailable.
        FulcrumRefused: the job is not Processing, or the properties violate the schema (the job stays Processing).
        """
        body = {
            "agentInstanceId": agent_instance_id,
            "agentInstanceData": agent_instance_data,
            "properties": properties or None,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        self._http.request_without_content("POST", f"/jobs/{_id(fulcrum_id)}/complete", body=sent)

    def fail_job(self, fulcrum_id: str, error_message: str) -> None:
        """Report failure. The message starts with an error code, which lifecycles match by regular expression.

        FulcrumCore accepts this only while the job is Processing, so claim a job first, even one to be failed at once.
        """
        self._http.request_without_content(
            "POST", f"/jobs/{_id(fulcrum_id)}/fail", body={"errorMessage": error_message}
        )

    # Services and types

    def get_service(self, service_id: str) -> CoreService:
        """Read one service. FulcrumCore answers 403 for an unknown one: FulcrumAuthFailing."""
        path = f"/services/{_id(service_id)}"
        return parse_response(CoreService, f"GET {path}", self._http.request_json("GET", path))

    def services(self, agent_id: str) -> Iterator[CoreService]:
        """Yield the agent's services, deleted ones included. FulcrumCore lists those of the whole provider."""
        wanted = _id(agent_id)
        pages = self._list_all(CoreService, "/services", {"sort": "name"})
        return (service for service in pages if service.agent_id == wanted)

    def get_service_type(self, service_type_id: str) -> ServiceType:
        """Read one service type."""
        path = f"/service-types/{_id(service_type_id)}"
        return parse_response(ServiceType, f"GET {path}", self._http.request_json("GET", path))

    def get_secret(self, reference: str) -> Any:
        """Return the value of a `vault://` reference. FulcrumNotFound: no such secret, or not a valid reference.

        A consumer may have written the reference, so it must be a plain UUID before it becomes part of a path.
        """
        ident = reference.removeprefix(VAULT_PREFIX)
        if ident == reference or not UUID_TEXT.fullmatch(ident):
            raise FulcrumNotFound("GET /vault/secrets: not a vault reference")
        data = self._http.request_json("GET", f"/vault/secrets/{ident}")
        if not isinstance(data, dict) or "value" not in data:
            raise FulcrumUnavailable("GET /vault/secrets: the response has no value")
        return data["value"]

    # Metrics

    def metric_types(self) -> list[MetricType]:
        """List the metric types that FulcrumCore accepts."""
        return list(self._list_all(MetricType, "/metric-types", {"sort": "name"}))

    def post_metric(self, *, agent_instance_id: str, resource_id: str, type_name: str, value: float) -> None:
        """Store one value; FulcrumCore sets its time. FulcrumNotFound: no such metric type, or no service (yet)."""
        body = {
            "agentInstanceId": agent_instance_id,
            "resourceId": resource_id,
            "typeName": type_name,
            "value": value,
        }
        self._http.request_without_content("POST", "/metric-entries", body=body)

    def _list_all(self, kind: type[Model], path: str, query: dict[str, Any]) -> Iterator[Model]:
        """Yield each object of a list that FulcrumCore sends in pages, once.

        An object may be missing from all pages: the order of equal names is undefined, and the list may change between
        two requests. So the list is read again until as many objects were found as FulcrumCore announces: an incomplete
        list must never be taken for a complete one.
        """
        seen: set[str] = set()
        total = 0
        for _ in range(MAX_LIST_ATTEMPTS):
            for number in count(1):
                page = self._http.request_json("GET", path, query={**query, "page": number, "pageSize": PAGE_SIZE})
                objects, total = _parse_page(kind, path, page)
                for item in objects:
                    if item.id not in seen:
                        seen.add(item.id)
                        yield item
                if not objects or number * PAGE_SIZE >= total:
                    break
            if len(seen) >= total:
                return
        raise FulcrumUnavailable(f"GET {path}: {total} objects are announced, {len(seen)} were found")


def parse_response(kind: type[Model], call: str, raw: Any) -> Model:
    """Return the object in a response. Raises FulcrumUnavailable if there is no valid one."""
    try:
        return kind.read(raw)
    except ValueError as exc:
        raise FulcrumUnavailable(f"{call}: the response is not a valid object ({error_type(exc)})") from exc


def _parse_page(kind: type[Model], path: str, page: Any) -> tuple[list[Model], int]:
    """Return the objects of one page, and the number of objects on all pages."""
    items, total = (page.get("items"), page.get("totalItems")) if isinstance(page, dict) else (None, None)
    if not isinstance(items, list) or not isinstance(total, int):
        raise FulcrumUnavailable(f"GET {path}: the response is not a page")
    return [parse_response(kind, f"GET {path}", item) for item in items], total


def _id(value: str) -> str:
    """Return the id in lower case. Raises FulcrumRefused if it is not a UUID, and so not safe in a path."""
    if not UUID_TEXT.fullmatch(value):
        raise FulcrumRefused("the id is not a UUID")
    return value.lower()
