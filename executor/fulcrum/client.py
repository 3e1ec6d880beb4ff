"""Calls FulcrumCore's API as an agent: jobs, services, types, secrets, metrics and the agent's own status.

`transport.py` sends the requests, `responses.py` returns the exceptions for unsuccessful responses, and `types.py`
parses the objects.
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

PAGE_SIZE = 100  #: objects in one page of a list; FulcrumCore allows no more
MAX_LIST_ATTEMPTS = 3  #: how many times an incomplete list is read before the call fails

Model = TypeVar("Model", bound=CoreModel)


class FulcrumClient:
    """Calls FulcrumCore's API with an agent's token. It is thread-safe.

    `token` returns the present token; it is called for every request. Every method may raise FulcrumUnavailable and
    FulcrumRefused, or a subclass of them. After FulcrumUnavailable the caller retries later, and not before its
    `retry_after_s` if it has one. After FulcrumRefused the caller does not retry.
    """

    def __init__(  # noqa: PLR0913  # each argument is one setting, and all but two have a default
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
        if not verify_tls:  # the agent warns once, at its start; urllib3 would warn at each request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._http = Transport(api_url, token, verify, (connect_timeout_s, read_timeout_s), on_auth_failure)

    @property
    def clock_offset_s(self) -> float:
        """FulcrumCore's clock minus this machine's clock; 0.0 until the first response."""
        return self._http.clock.seconds

    # The agent

    def get_self(self) -> CoreAgent:
        """Read the agent to which the token belongs, as FulcrumCore describes it."""
        return parse_response(CoreAgent, "GET /agents/me", self._http.request_json("GET", "/agents/me"))

    def put_status(self, status: str) -> CoreAgent:
        """Set this agent's status in FulcrumCore, which is the heartbeat.

        The caller must never overwrite the status `Disabled`. FulcrumCore would allow this.
        """
        data = self._http.request_json("PUT", "/agents/me/status", body={"status": status})
        return parse_response(CoreAgent, "PUT /agents/me/status", data)

    # Jobs

    def pending_jobs(self, limit: int = 100) -> PendingJobs:
        """Return pending jobs in no defined order. FulcrumCore sends at most one job of each service group."""
        data = self._http.request_json("GET", "/jobs/pending", query={"limit": limit})
        if not isinstance(data, list):
            raise FulcrumUnavailable("GET /jobs/pending: the response is not a list")
        jobs: dict[str, CoreJob] = {}
        unusable_items = []
        for position, item in enumerate(data):
            try:
                job = CoreJob.read(item)
                jobs.setdefault(job.id, job)
            except ValueError as exc:
                unusable_items.append(f"item {position}: {error_type(exc)}")
        return PendingJobs(list(jobs.values()), unusable_items)

    def knows_job(self, fulcrum_id: str) -> bool:
        """Return whether this agent may still read the job. It is called after a 403 answer for the job.

        FulcrumCore answers 403 for a job that is deleted or belongs to another agent. It also answers 403 to every
        request while its database is down. So this method first calls `get_self`, which raises an error if FulcrumCore
        does not accept the token now.
        """
        self.get_self()
        try:
            self.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            return False
        return True

    def get_job(self, fulcrum_id: str) -> CoreJob:
        """Read one job. Raises FulcrumAuthFailing if the job does not exist, because FulcrumCore then answers 403."""
        path = f"/jobs/{_valid_id(fulcrum_id)}"
        return parse_response(CoreJob, f"GET {path}", self._http.request_json("GET", path))

    def own_processing_jobs(self, agent_id: str) -> list[CoreJob]:
        """List the jobs that this agent has claimed and that have not ended. It needs them after a restart."""
        query = {"agentId": _valid_id(agent_id), "status": "Processing", "sort": "createdAt"}
        jobs = self._list_all(CoreJob, "/jobs", query)
        return [job for job in jobs if job.agent_id == agent_id.lower() and job.status == "Processing"]

    def claim_job(self, fulcrum_id: str) -> None:
        """Claim a job: FulcrumCore changes its status from Pending to Processing.

        Raises FulcrumRefused if the job is not Pending. Then this agent may have claimed it already, by an earlier
        request whose response was lost.
        """
        self._http.request_without_content("POST", f"/jobs/{_valid_id(fulcrum_id)}/claim")

    def complete_job(
        self,
        fulcrum_id: str,
        *,
        agent_instance_id: str | None = None,
        agent_instance_data: Any = None,
        properties: dict[str, Any] | None = None,
    ) -> None:
        """Report that the job succeeded. Arguments that are None are not sent, and FulcrumCore keeps the stored values.

        `agent_instance_id` must be unique in all of FulcrumCore. FulcrumCore answers 500 to a duplicate, so this method
        then raises FulcrumUnavailable. Raises FulcrumRefused if the job is not Processing, or if the properties violate
        the service type's schema. In the second case the job stays Processing.
        """
        body = {
            "agentInstanceId": agent_instance_id,
            "agentInstanceData": agent_instance_data,
            "properties": properties or None,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        self._http.request_without_content("POST", f"/jobs/{_valid_id(fulcrum_id)}/complete", body=sent)

    def fail_job(self, fulcrum_id: str, error_message: str) -> None:
        """Report that the job failed. `error_message` starts with an error code, which lifecycles match.

        FulcrumCore accepts this request only while the job is Processing. So the caller must first claim the job, even
        if it reports the failure without running the job.
        """
        self._http.request_without_content(
            "POST", f"/jobs/{_valid_id(fulcrum_id)}/fail", body={"errorMessage": error_message}
        )

    # Services and types

    def get_service(self, service_id: str) -> CoreService:
        """Read one service. Raises FulcrumAuthFailing if the service does not exist: FulcrumCore then answers 403."""
        path = f"/services/{_valid_id(service_id)}"
        return parse_response(CoreService, f"GET {path}", self._http.request_json("GET", path))

    def services(self, agent_id: str) -> Iterator[CoreService]:
        """Yield the agent's services, including those that are deleted.

        FulcrumCore returns the services of all agents of the provider, so this method leaves out those of other agents.
        """
        own_id = _valid_id(agent_id)
        services = self._list_all(CoreService, "/services", {"sort": "name"})
        return (service for service in services if service.agent_id == own_id)

    def get_service_type(self, service_type_id: str) -> ServiceType:
        """Read one service type."""
        path = f"/service-types/{_valid_id(service_type_id)}"
        return parse_response(ServiceType, f"GET {path}", self._http.request_json("GET", path))

    def get_secret(self, reference: str) -> Any:
        """Return the value of a `vault://` reference. Raises FulcrumNotFound for an unknown or an invalid reference.

        A consumer of FulcrumCore may have written the reference. So this method checks that its id is a UUID before it
        puts the id into the path of the request.
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
        """Send one value of a metric. FulcrumCore records the time at which it receives the value.

        Raises FulcrumNotFound if FulcrumCore does not know the metric type or the service.
        """
        body = {
            "agentInstanceId": agent_instance_id,
            "resourceId": resource_id,
            "typeName": type_name,
            "value": value,
        }
        self._http.request_without_content("POST", "/metric-entries", body=body)

    def _list_all(self, kind: type[Model], path: str, query: dict[str, Any]) -> Iterator[Model]:
        """Yield each object of a list once. FulcrumCore sends the list in pages.

        An object may be missing from all pages, because the order of objects with equal names is undefined, and because
        the list may change between two requests. So this method reads the list again until it has found as many objects
        as FulcrumCore announces. Raises FulcrumUnavailable if some objects are still missing after MAX_LIST_ATTEMPTS:
        callers must not mistake an incomplete list for a complete one.
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
    """Return the object in a response. Raises FulcrumUnavailable if the object is invalid; `call` is in its text."""
    try:
        return kind.read(raw)
    except ValueError as exc:
        raise FulcrumUnavailable(f"{call}: the response is not a valid object ({error_type(exc)})") from exc


def _parse_page(kind: type[Model], path: str, page: Any) -> tuple[list[Model], int]:
    """Return the objects of one page, and the number of objects on all pages together. Raises FulcrumUnavailable."""
    items, total = (page.get("items"), page.get("totalItems")) if isinstance(page, dict) else (None, None)
    if not isinstance(items, list) or not isinstance(total, int):
        raise FulcrumUnavailable(f"GET {path}: the response is not a page")
    return [parse_response(kind, f"GET {path}", item) for item in items], total


def _valid_id(value: str) -> str:
    """Return the id in lower case. Raises FulcrumRefused if it is not a UUID: other text is unsafe in a URL's path."""
    if not UUID_TEXT.fullmatch(value):
        raise FulcrumRefused("the id is not a UUID")
    return value.lower()
