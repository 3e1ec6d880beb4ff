"""Calls FulcrumCore's API as an agent: jobs, services, types, secrets, metrics and the agent's own status.

`transport.py` sends the requests, `responses.py` turns unsuccessful responses into exceptions, and `types.py` parses
the objects. `Fulcrum` in the name of a class means FulcrumCore: a FulcrumJob is a job in FulcrumCore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import urllib3

from executor.errors import FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.transport import Transport
from executor.fulcrum.types import (
    UUID_PATTERN,
    VAULT_PREFIX,
    FulcrumAgent,
    FulcrumJob,
    FulcrumModel,
    FulcrumService,
    ListedService,
    MetricType,
    PendingJobs,
    ServiceType,
    validation_error_type,
)

PAGE_SIZE = 100  #: the number of objects in one page of a list; FulcrumCore allows no more
MAX_LIST_ATTEMPTS = 3  #: how many times an incomplete list is read before the call fails

Model = TypeVar("Model", bound=FulcrumModel)


class FulcrumClient:
    """Calls FulcrumCore's API with an agent's token. It is thread-safe.

    `get_token` is called for every request and returns the current token. Every method may raise FulcrumUnavailable and
    FulcrumRefused, or a subclass of them: FulcrumAuthError is a FulcrumUnavailable, FulcrumNotFound a FulcrumRefused.
    After FulcrumUnavailable the caller retries. If the exception's `retry_after_s` is set, the caller first waits for
    this time. After FulcrumRefused the caller does not retry.
    """

    def __init__(  # noqa: PLR0913  # all arguments but the two callbacks are settings
        self,
        api_url: str,
        get_token: Callable[[], str],
        *,
        ca_bundle: Path | None = None,
        verify_tls: bool = True,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 15,
        on_auth_failure: Callable[[], object] = lambda: None,  # reloads the token; called after a 401 or 403
    ) -> None:
        verify: bool | str = str(ca_bundle) if ca_bundle and verify_tls else verify_tls
        if not verify_tls:  # the agent warns once, at its start; urllib3 would warn at each request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._http = Transport(api_url, get_token, verify, (connect_timeout_s, read_timeout_s), on_auth_failure)

    @property
    def clock_offset_s(self) -> float:
        """FulcrumCore's clock minus this machine's clock; 0.0 until the first response."""
        return self._http.clock_offset.seconds

    # The agent

    def get_own_agent(self) -> FulcrumAgent:
        """Read FulcrumCore's description of this agent, which is the agent that the token belongs to."""
        return parse_response(FulcrumAgent, "GET /agents/me", self._http.request_json("GET", "/agents/me"))

    def put_status(self, status: str) -> FulcrumAgent:
        """Set this agent's status in FulcrumCore. This request is the heartbeat.

        The caller must not call this method while the agent's status is `Disabled`: FulcrumCore would enable the agent.
        """
        data = self._http.request_json("PUT", "/agents/me/status", body={"status": status})
        return parse_response(FulcrumAgent, "PUT /agents/me/status", data)

    # Jobs

    def pending_jobs(self, limit: int = 100) -> PendingJobs:
        """Return at most `limit` pending jobs, in no defined order.

        Each service belongs to a service group of FulcrumCore, and FulcrumCore sends at most one job of each group.
        If FulcrumCore sends more than `limit` items, the items after the first `limit` are only counted.
        """
        items, unread_count = self._http.request_json_list("/jobs/pending", query={"limit": limit}, max_items=limit)
        jobs_by_id: dict[str, FulcrumJob] = {}
        unusable_item_descriptions = []
        for position, item in enumerate(items):
            if isinstance(item, ValueError):  # the list has a ValueError in place of unreadable JSON
                unusable_item_descriptions.append(f"item {position}: {validation_error_type(item)}")
                continue
            try:
                job = FulcrumJob.parse(item)
                jobs_by_id.setdefault(job.id, job)
            except ValueError as exc:
                unusable_item_descriptions.append(f"item {position}: {validation_error_type(exc)}")
        return PendingJobs(list(jobs_by_id.values()), unusable_item_descriptions, unread_count)

    def get_job(self, fulcrum_id: str) -> FulcrumJob:
        """Read one job. Raises FulcrumAuthError if the job does not exist: FulcrumCore then answers 403."""
        path = f"/jobs/{_require_uuid(fulcrum_id)}"
        return parse_response(FulcrumJob, f"GET {path}", self._http.request_json("GET", path))

    def processing_jobs_of_agent(self, agent_id: str) -> list[FulcrumJob]:
        """List the jobs that this agent has claimed and that have not ended.

        `agent_id` is the id of this agent.
        """
        query = {"agentId": _require_uuid(agent_id), "status": "Processing", "sort": "createdAt"}
        jobs = self._list_all_objects(FulcrumJob, "/jobs", query)
        return [job for job in jobs if job.agent_id == agent_id.lower() and job.status == "Processing"]

    def oldest_processing_jobs_of_agent(self, agent_id: str, *, max_pages: int) -> tuple[list[FulcrumJob], int]:
        """Return the oldest jobs that this agent has claimed and that have not ended, and their total number.

        The total number includes the jobs that are not returned. At most `max_pages` pages are read. `agent_id` is the
        id of this agent.
        """
        query = {"agentId": _require_uuid(agent_id), "status": "Processing", "sort": "createdAt", "pageSize": PAGE_SIZE}
        jobs_by_id: dict[str, FulcrumJob] = {}
        total_count = 0
        for page_number in range(1, max_pages + 1):
            page = self._http.request_json("GET", "/jobs", query={**query, "page": page_number})
            page_jobs, total_count = _parse_page(FulcrumJob, "/jobs", page)
            jobs_by_id |= {job.id: job for job in page_jobs}
            if not page_jobs or page_number * PAGE_SIZE >= total_count:
                break
        return list(jobs_by_id.values()), total_count

    def claim_job(self, fulcrum_id: str) -> None:
        """Claim a job: FulcrumCore changes its status from Pending to Processing.

        Raises FulcrumRefused if the job is not Pending. One possible reason is that this agent has claimed the job
        with an earlier request whose response was lost.
        """
        self._http.request_without_result("POST", f"/jobs/{_require_uuid(fulcrum_id)}/claim")

    def complete_job(
        self,
        fulcrum_id: str,
        *,
        agent_instance_id: str | None = None,
        agent_instance_data: Any = None,
        properties: dict[str, Any] | None = None,
    ) -> None:
        """Report that the job succeeded.

        Arguments that are None, and empty `properties`, are not sent: FulcrumCore keeps the stored values.
        `agent_instance_data` contains facts about the VM. `agent_instance_id` is the id that the agent gives to the VM:
        `<agent id>/<VMID>`. It must be unique in all of FulcrumCore. For a duplicate, FulcrumCore answers 500, and this
        method raises FulcrumUnavailable. Raises FulcrumRefused if the job is not Processing, or if the properties
        violate the service type's schema. In the second case the job stays Processing.
        """
        members = {
            "agentInstanceId": agent_instance_id,
            "agentInstanceData": agent_instance_data,
            "properties": properties or None,
        }
        body = {name: value for name, value in members.items() if value is not None}
        self._http.request_without_result("POST", f"/jobs/{_require_uuid(fulcrum_id)}/complete", body=body)

    def fail_job(self, fulcrum_id: str, error_message: str) -> None:
        """Report that the job failed. `error_message` starts with an error code.

        The service type has regular expressions for error codes. FulcrumCore applies them to the message to choose the
        next status of the service. FulcrumCore accepts this request only while the job is Processing. So the caller
        must claim the job before this request, even if it does not run the job.
        """
        self._http.request_without_result(
            "POST", f"/jobs/{_require_uuid(fulcrum_id)}/fail", body={"errorMessage": error_message}
        )

    # Services and types

    def get_service(self, service_id: str) -> FulcrumService:
        """Read one service. Raises FulcrumAuthError if the service does not exist: FulcrumCore then answers 403."""
        path = f"/services/{_require_uuid(service_id)}"
        return parse_response(FulcrumService, f"GET {path}", self._http.request_json("GET", path))

    def services(self) -> Iterator[ListedService]:
        """Yield all services of this agent's provider, including deleted services and the services of other agents.

        A ListedService contains its whole service type, a FulcrumService only the id of its type. FulcrumCore has no
        filter for the services of one agent.
        """
        return self._list_all_objects(ListedService, "/services", {"sort": "name"})

    def get_service_type(self, service_type_id: str) -> ServiceType:
        """Read one service type."""
        path = f"/service-types/{_require_uuid(service_type_id)}"
        return parse_response(ServiceType, f"GET {path}", self._http.request_json("GET", path))

    def get_secret(self, reference: str) -> Any:
        """Return the secret that a `vault://` reference names.

        Raises FulcrumNotFound if the reference is invalid, or if the vault does not know it. A customer may have
        written the reference. So this method checks that the id in the reference is a UUID before it puts the id into
        the path of the request.
        """
        secret_id = reference.removeprefix(VAULT_PREFIX)
        if not reference.startswith(VAULT_PREFIX) or not UUID_PATTERN.fullmatch(secret_id):
            raise FulcrumNotFound("GET /vault/secrets: the text is not a reference of the form vault://<UUID>")
        data = self._http.request_json("GET", f"/vault/secrets/{secret_id}")
        if not isinstance(data, dict) or "value" not in data:
            raise FulcrumUnavailable("GET /vault/secrets: the response has no value")
        return data["value"]

    # Metrics

    def metric_types(self) -> list[MetricType]:
        """List the metric types that FulcrumCore accepts."""
        return list(self._list_all_objects(MetricType, "/metric-types", {"sort": "name"}))

    def post_metric(self, *, agent_instance_id: str, resource_id: str, type_name: str, value: float) -> None:
        """Send one value of a metric. FulcrumCore records the time at which it receives the value.

        `agent_instance_id` names the VM, `resource_id` a part of the VM such as `cpu`. All calls of a thread reuse one
        prepared request (bulk_post.py), which saves CPU time. Raises FulcrumNotFound if FulcrumCore has no metric
        type `type_name`, or no service of this agent with this `agent_instance_id`.
        """
        body = {
            "agentInstanceId": agent_instance_id,
            "resourceId": resource_id,
            "typeName": type_name,
            "value": value,
        }
        self._http.request_without_result("POST", "/metric-entries", body=body, reuses_prepared_request=True)

    def _list_all_objects(self, model: type[Model], path: str, query: dict[str, Any]) -> Iterator[Model]:
        """Yield each object of a list once. FulcrumCore sends the list in pages.

        An object may be missing on all pages: the order of objects with equal sort keys is undefined, and the list
        may change between two requests. So this method reads the list again until it has found as many objects as
        FulcrumCore counts. Raises FulcrumUnavailable if objects are still missing after MAX_LIST_ATTEMPTS, because
        callers must not mistake an incomplete list for a complete one.
        """
        yielded_ids: set[str] = set()
        total_count = 0
        for _attempt in range(MAX_LIST_ATTEMPTS):
            for page_number in count(start=1):
                page_query = {**query, "page": page_number, "pageSize": PAGE_SIZE}
                page = self._http.request_json("GET", path, query=page_query)
                objects, total_count = _parse_page(model, path, page)
                for item in objects:
                    if item.id not in yielded_ids:
                        yielded_ids.add(item.id)
                        yield item
                is_last_page = page_number * PAGE_SIZE >= total_count
                if is_last_page or not objects:
                    break
            if len(yielded_ids) >= total_count:
                return
        raise FulcrumUnavailable(f"GET {path}: the pages contain only {len(yielded_ids)} of {total_count} objects")


def parse_response(model: type[Model], request: str, data: Any) -> Model:
    """Return the object in the data of a response.

    Raises FulcrumUnavailable if the object is invalid. The text of the exception starts with `request`.
    """
    try:
        return model.parse(data)
    except ValueError as exc:
        raise FulcrumUnavailable(
            f"{request}: the response is not a valid object ({validation_error_type(exc)})"
        ) from exc


def _parse_page(model: type[Model], path: str, page: Any) -> tuple[list[Model], int]:
    """Return the objects of one page, and the number of objects on all pages together.

    Raises FulcrumUnavailable if the response is not a page.
    """
    items = page.get("items") if isinstance(page, dict) else None
    total_count = page.get("totalItems") if isinstance(page, dict) else None
    if not isinstance(items, list) or not isinstance(total_count, int):
        raise FulcrumUnavailable(f"GET {path}: the response is not a page of a list")
    return [parse_response(model, f"GET {path}", item) for item in items], total_count


def _require_uuid(value: str) -> str:
    """Return the id in lower case. Raises FulcrumRefused if it is not a UUID: other text is unsafe in a URL's path."""
    if not UUID_PATTERN.fullmatch(value):
        raise FulcrumRefused("an id in the path of a request to FulcrumCore is not a UUID")
    return value.lower()
