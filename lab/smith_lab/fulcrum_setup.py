"""Creates the objects that an agent needs in a new FulcrumCore, such as its agent type and its token.

The module calls FulcrumCore's API, so it works with the simulator and with a real FulcrumCore. In production,
`executor.fulcrum.bootstrap` creates these objects. From `executor.fulcrum.bootstrap`, this module uses only
`read_type_file`, which reads the definition of an agent type or service type from a file, and the names of these files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from executor.fulcrum.bootstrap import (
    AGENT_TYPE_FILE,
    CONTAINER_SERVICE_TYPE_FILE,
    VM_SERVICE_TYPE_FILE,
    read_type_file,
)
from executor.fulcrum.offered_type import restrict_service_type
from executor.fulcrum.types import METRIC_TYPES
from executor.settings.settings import Settings

#: The admin token that a new FulcrumCore accepts.
SEED_TOKEN = "change-me"
REQUEST_TIMEOUT_S = 30.0
#: The number of items that `list_all` requests at once, which is FulcrumCore's maximum.
PAGE_SIZE = 100
#: Seconds between two reads of the service in `wait_for_status`.
WAIT_INTERVAL_S = 0.1
#: The expiry of the tokens that this module creates.
TOKEN_EXPIRY = "2035-01-01T00:00:00Z"
Json = dict[str, Any]


class AdminCallFailed(Exception):
    """FulcrumCore answered a call with an error. `status` is the HTTP status of the answer."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class AdminClient:
    """Calls FulcrumCore's API as the owner of the token, such as an admin or a participant.

    Participants are providers and consumers (customers). Agents use `executor.fulcrum.client` instead.
    """

    def __init__(self, url: str, token: str = SEED_TOKEN) -> None:
        self.base_url = url.rstrip("/")
        self.api_url = f"{self.base_url}/api/v1"
        self._session = requests.Session()
        self.use_token(token)

    def use_token(self, token: str) -> None:
        """Send this token with all later calls."""
        self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Make a call; return the JSON of the answer, or None for an empty answer. Raises AdminCallFailed."""
        response = self._session.request(
            method, self.api_url + path, json=body, params=query, timeout=REQUEST_TIMEOUT_S
        )
        if response.status_code >= 400:
            raise AdminCallFailed(
                f"{method} {path}: {response.status_code} {response.text.strip()}", response.status_code
            )
        return response.json() if response.content else None

    def create(self, collection: str, **members: Any) -> Json:
        """Create an object with these members in a collection, such as `tokens`; return the object."""
        return dict(self.call("POST", f"/{collection}", members))

    def create_token(self, name: str, role: str, scope_id: str | None = None, expire_at: str = TOKEN_EXPIRY) -> Json:
        """Create a token and return it with its `value`, which no later answer contains.

        `scope_id` is the id of the participant or agent that will use the token. An admin's token has no `scope_id`.
        """
        scope = {"scopeId": scope_id} if scope_id else {}
        return self.create("tokens", name=name, role=role, expireAt=expire_at, **scope)

    def create_group(self, consumer_id: str, name: str) -> str:
        """Create a service group; return its id."""
        return str(self.create("service-groups", name=name, consumerId=consumer_id)["id"])

    def create_service(
        self,
        *,
        group_id: str,
        service_type_id: str,
        name: str,
        properties: Mapping[str, Any],
        agent_id: str | None = None,
        agent_tags: Sequence[str] = (),
    ) -> Json:
        """Create a service; return it. FulcrumCore also adds a `create` job for the service.

        Without `agent_id`, FulcrumCore chooses an agent that has all `agent_tags`.
        """
        agent_selection: Json = {"agentId": agent_id} if agent_id else {"agentTags": list(agent_tags)}
        return self.create(
            "services",
            groupId=group_id,
            serviceTypeId=service_type_id,
            name=name,
            properties=dict(properties),
            **agent_selection,
        )

    def get_service(self, service_id: str) -> Json:
        """Return the service with this id."""
        return dict(self.call("GET", f"/services/{service_id}"))

    def request_action(self, service_id: str, action: str) -> Json:
        """Start a lifecycle action, such as `stop`; return the service.

        The service's status changes when the action's job ends.
        """
        return dict(self.call("POST", f"/services/{service_id}/{action}"))

    def patch_service(self, service_id: str, properties: Mapping[str, Any] | None = None, **members: Any) -> Json:
        """Change a service and return it.

        FulcrumCore stores a new name at once. It stores new properties when the `update` job ends.
        """
        body = {**members, "properties": dict(properties)} if properties is not None else members
        return dict(self.call("PATCH", f"/services/{service_id}", body))

    def delete_service(self, service_id: str) -> None:
        """Request the deletion of a service. FulcrumCore adds a `delete` job."""
        self.call("DELETE", f"/services/{service_id}")

    def list_services(self) -> list[Json]:
        """Return every service, sorted by name."""
        return self.list_all("services", sort="name")

    def list_jobs(self, service_id: str) -> list[Json]:
        """Return the service's jobs, oldest first."""
        return self.list_all("jobs", serviceId=service_id, sort="createdAt")

    def list_all(self, collection: str, **query: Any) -> list[Json]:
        """Return every item of a collection, reading page by page."""
        items: list[Json] = []
        page, has_next = 1, True
        while has_next:
            answer = self.call("GET", f"/{collection}", page=page, pageSize=PAGE_SIZE, **query)
            items += answer["items"]
            page, has_next = page + 1, answer["hasNext"]
        return items

    def wait_for_status(self, service_id: str, *statuses: str, timeout_s: float = 60.0) -> Json:
        """Wait until all jobs of the service have ended and it has one of these statuses. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            service, jobs = self.get_service(service_id), self.list_jobs(service_id)
            has_open_job = any(job["status"] in ("Pending", "Processing") for job in jobs)
            if service["status"] in statuses and not has_open_job:
                return service
            if time.monotonic() > deadline:
                last_job = _describe_last_job(jobs)
                raise TimeoutError(
                    f"service {service_id} is {service['status']}, expected one of {statuses}; {last_job}"
                )
            time.sleep(WAIT_INTERVAL_S)


def _describe_last_job(jobs: list[Json]) -> str:
    if not jobs:
        return "the service has no job"
    job = jobs[-1]
    return f"last job: {job['action']}, {job['status']}, error message {job.get('errorMessage')}"


@dataclass(frozen=True, kw_only=True)
class CreatedObjects:
    """The ids of the objects that `bootstrap` (below) created, and the values of the admin's and the agent's tokens."""

    admin_token: str = field(repr=False)
    provider_id: str
    consumer_id: str
    service_type_id: str  #: the service type of VMs
    container_type_id: str  #: the service type of containers
    agent_type_id: str
    agent_id: str
    agent_token: str = field(repr=False)


def bootstrap(
    admin: AdminClient,
    *,
    agent_name: str = "smith-dc1",
    provider_name: str = "Northwind Cloud",
    consumer_name: str = "Acme Corp",
    fulcrum_api_url: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    tags: Sequence[str] = ("proxmox",),
    service_type_name: str = "proxmox-vm",
    agent_type_name: str = "proxmox",
    limiting_settings: Settings | None = None,
) -> CreatedObjects:
    """Create an agent, its token, and the objects that the agent needs.

    If `limiting_settings` (an agent's settings) are given, `restrict_service_type` removes from the service types the
    templates, bridges, VLANs and tags that these settings do not allow. FulcrumCore then refuses orders
    that request a removed value.

    The created objects are a provider, a consumer (FulcrumCore's word for a customer), two service types, an agent type
    and the metric types. `admin` must use the seed token, which expires after a day. So this function also creates an
    admin token that expires later, and makes `admin` use it.
    """
    admin_token = admin.create_token("admin", "admin")["value"]
    admin.use_token(admin_token)
    provider_id = admin.create("participants", name=provider_name, status="Enabled")["id"]
    consumer_id = admin.create("participants", name=consumer_name, status="Enabled")["id"]
    vm_type, container_type = read_type_file(VM_SERVICE_TYPE_FILE), read_type_file(CONTAINER_SERVICE_TYPE_FILE)
    if limiting_settings is not None:
        vm_type, container_type = (restrict_service_type(each, limiting_settings) for each in (vm_type, container_type))
    service_type_id = _find_or_create(admin, "service-types", {**vm_type, "name": service_type_name})
    container_type_id = _find_or_create(admin, "service-types", container_type)
    supported_type_ids = [service_type_id, container_type_id]
    agent_type = {**read_type_file(AGENT_TYPE_FILE), "name": agent_type_name, "serviceTypeIds": supported_type_ids}
    agent_type_id = _find_or_create(admin, "agent-types", agent_type)
    for name in METRIC_TYPES:
        _find_or_create(admin, "metric-types", {"name": name, "entityType": "Resource"})
    agent_id, agent_token = add_agent(
        admin,
        name=agent_name,
        provider_id=provider_id,
        agent_type_id=agent_type_id,
        configuration={**default_configuration(fulcrum_api_url or admin.base_url), **(configuration or {})},
        tags=tags,
    )
    return CreatedObjects(
        admin_token=admin_token,
        provider_id=provider_id,
        consumer_id=consumer_id,
        service_type_id=service_type_id,
        container_type_id=container_type_id,
        agent_type_id=agent_type_id,
        agent_id=agent_id,
        agent_token=agent_token,
    )


def add_agent(
    admin: AdminClient,
    *,
    name: str,
    provider_id: str,
    agent_type_id: str,
    configuration: Mapping[str, Any] | None = None,
    tags: Sequence[str] = ("proxmox",),
) -> tuple[str, str]:
    """Create an agent and a long-lived token for it; return the agent's id and the token's value."""
    optional_members: Json = {"configuration": dict(configuration)} if configuration is not None else {}
    agent = admin.create(
        "agents", name=name, providerId=provider_id, agentTypeId=agent_type_id, tags=list(tags), **optional_members
    )
    token = admin.create_token(name, "agent", agent["id"])
    # A token can be created only for an agent that exists. So the token is added to the agent's configuration now.
    if configuration is not None:
        admin.call("PATCH", f"/agents/{agent['id']}", {"configuration": {"fulcrumToken": token["value"]}})
    return str(agent["id"]), str(token["value"])


def default_configuration(fulcrum_api_url: str) -> Json:
    """Return an agent configuration that fits the configuration schema of Agent Smith's agent type.

    The Proxmox values are placeholders. The agents of the lab read the real values from their environment.
    """
    return {
        "fulcrumApiUrl": fulcrum_api_url,
        "apiHost": "pve.test",
        "apiUser": "smith@pve",
        "apiTokenId": "agent",
        "apiTokenSecret": "not-a-real-secret",
        "nodes": ["pve1"],
        "storage": "local-lvm",
        "images": {"debian-12": 9000},
    }


def _find_or_create(admin: AdminClient, collection: str, body: Json) -> str:
    """Return the id of the object that has the name in `body`. If there is no such object, create it.

    FulcrumCore answers 500 to a request that would create a second object with the same name.
    """
    for item in admin.list_all(collection):
        if item["name"] == body["name"]:
            return str(item["id"])
    return str(admin.create(collection, **body)["id"])
