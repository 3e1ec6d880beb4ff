"""Shared by the tests of the simulator: a simulator with its first objects, and clients that return raw responses."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import requests
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, add_agent, bootstrap
from smith_lab.simulator.control import SimulatorThread

TIMEOUT_S = 20
VM = {"cores": 2, "memoryMb": 2048, "diskGb": 20, "image": "debian-12"}
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


class Caller:
    """An API client with a token, or without one. It returns every response and raises no error for its status."""

    def __init__(self, api_url: str, token: str | None) -> None:
        self._api_url = api_url
        self._session = requests.Session()
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._session.close()

    def send(self, method: str, path: str, body: Any = None, **kwargs: Any) -> requests.Response:
        return self._session.request(method, self._api_url + path, json=body, timeout=TIMEOUT_S, **kwargs)

    def get(self, path: str, **query: Any) -> requests.Response:
        return self.send("GET", path, params=query)

    def post(self, path: str, body: Any = None) -> requests.Response:
        return self.send("POST", path, body)

    def raw(self, method: str, path: str, data: bytes, **headers: str) -> requests.Response:
        return self.send(method, path, data=data, headers=headers)

    def pending(self, **query: Any) -> list[Any]:
        return self.get("/jobs/pending", **query).json()

    def claim(self, job: dict[str, Any]) -> int:
        return self.post(f"/jobs/{job['id']}/claim").status_code

    def complete(self, job: dict[str, Any], **body: Any) -> requests.Response:
        return self.post(f"/jobs/{job['id']}/complete", body)

    def fail(self, job: dict[str, Any], message: str = "PLAYBOOK_FAILED: no") -> requests.Response:
        return self.post(f"/jobs/{job['id']}/fail", {"errorMessage": message})


class World:
    """A simulator with a provider, a consumer, the types and an agent, and API clients for them."""

    def __init__(self, sim: SimulatorThread) -> None:
        sim.reset()
        self.sim = sim
        self.admin = AdminClient(sim.url)
        self.ids: CreatedObjects = bootstrap(self.admin)
        self._callers: list[Caller] = []
        self.agent = self.caller(self.ids.agent_token)
        self.admin_caller = self.caller(self.ids.admin_token)

    def close(self) -> None:
        self.admin.close()
        for caller in self._callers:
            caller.__exit__(None, None, None)

    def caller(self, token: str | None) -> Caller:
        self._callers.append(Caller(self.sim.api_url, token))
        return self._callers[-1]

    def other_agent(self, name: str = "smith-dc2") -> tuple[str, Caller]:
        """Create another agent of the same provider; return its id and a client with its token."""
        agent_id, token = add_agent(
            self.admin, name=name, provider_id=self.ids.provider_id, agent_type_id=self.ids.agent_type_id
        )
        return agent_id, self.caller(token)

    def agent_of_other_provider(self) -> tuple[str, Caller]:
        """Create an agent of another provider; return its id and a client with its token."""
        provider_id = self.admin.create("participants", name="Elsewhere", status="Enabled")["id"]
        agent_id, token = add_agent(
            self.admin, name="foreign", provider_id=provider_id, agent_type_id=self.ids.agent_type_id
        )
        return agent_id, self.caller(token)

    def participant(self, participant_id: str) -> Caller:
        return self.caller(self.admin.create_token("participant", "participant", participant_id)["value"])

    def group(self, name: str = "acme-web") -> str:
        return self.admin.create_group(self.ids.consumer_id, name)

    def order(self, group_id: str | None = None, name: str = "web-1", **properties: Any) -> dict[str, Any]:
        """Order a service. Its create job is then pending. Return the service."""
        return self.admin.create_service(
            group_id=group_id or self.group(),
            service_type_id=self.ids.service_type_id,
            agent_id=self.ids.agent_id,
            name=name,
            properties={**VM, **properties},
        )

    def claimed(self, service: dict[str, Any]) -> dict[str, Any]:
        """Claim the newest job of the service as the agent; return the job."""
        job = self.job_of(service)
        assert self.agent.claim(job) == 204
        return job

    def job_of(self, service: dict[str, Any]) -> dict[str, Any]:
        """Return the service's newest job, in the form in which FulcrumCore lists jobs."""
        return self.admin.list_jobs(service["id"])[-1]

    def created(self, instance: str = "agent/100000", **properties: Any) -> dict[str, Any]:
        """Create a service and complete its create job; return the service, whose status is then Stopped."""
        service = self.order(self.group(f"group-{instance}"), **properties)
        assert self.agent.complete(self.claimed(service), agentInstanceId=instance).status_code == 204
        return self.admin.get_service(service["id"])

    def service(self, service: dict[str, Any]) -> dict[str, Any]:
        """Return the present state of a service that was read earlier."""
        return self.admin.get_service(service["id"])

    def order_with(
        self, schema: dict[str, Any], properties: dict[str, Any], lifecycle: dict[str, Any] | None = None
    ) -> requests.Response:
        """Create a service of a new type with this property schema; return the response."""
        type_id = self.type_with(schema, lifecycle)
        return self.admin_caller.post("/services", self.order_body(type_id, properties))

    def type_with(self, schema: dict[str, Any], lifecycle: dict[str, Any] | None = None) -> str:
        """Create a service type that the agent's type supports; return its id."""
        number = len(self.admin.list_all("service-types"))
        kind = self.admin.create(
            "service-types", name=f"type-{number}", propertySchema=schema, lifecycleSchema=lifecycle or SIMPLE_LIFECYCLE
        )
        known = self.admin.call("GET", f"/agent-types/{self.ids.agent_type_id}")["serviceTypeIds"]
        self.admin.call("PATCH", f"/agent-types/{self.ids.agent_type_id}", {"serviceTypeIds": [*known, kind["id"]]})
        return str(kind["id"])

    def order_body(self, type_id: str, properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "groupId": self.group(f"for-{type_id}"),
            "agentId": self.ids.agent_id,
            "serviceTypeId": type_id,
            "name": "thing",
            "properties": properties,
        }


#: A lifecycle with create, update and delete only.
SIMPLE_LIFECYCLE: dict[str, Any] = {
    "initialState": "New",
    "terminalStates": ["Gone"],
    "states": [{"name": "New"}, {"name": "Up"}, {"name": "Gone"}],
    "actions": [
        {"name": "create", "transitions": [{"from": "New", "to": "Up"}]},
        {"name": "update", "transitions": [{"from": "Up", "to": "Up"}]},
        {"name": "delete", "transitions": [{"from": "Up", "to": "Gone"}, {"from": "New", "to": "Gone"}]},
    ],
}


def error_of(response: requests.Response) -> dict[str, Any]:
    """Return the error's JSON, which FulcrumCore sends as plain text."""
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    return dict(json.loads(response.text))
