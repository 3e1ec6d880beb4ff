"""Jobs at FulcrumCore for the tests of FulcrumClient."""

from __future__ import annotations

from typing import Any

from smith_lab.fulcrum_setup import AdminClient, CreatedObjects

from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumJob

PROPERTIES = {"cores": 2, "memoryMb": 2048, "diskGb": 20, "image": "debian-12"}


def order(admin: AdminClient, core: CreatedObjects, name: str = "web-1", **more: Any) -> dict[str, Any]:
    """Create a service in its own group."""
    properties = PROPERTIES | more.pop("properties", {})
    return admin.create_service(
        group_id=admin.create_group(core.consumer_id, f"group of {name}"),
        service_type_id=core.service_type_id,
        agent_id=more.pop("agent_id", core.agent_id),
        name=name,
        properties=properties,
    )


def only_job(client: FulcrumClient) -> FulcrumJob:
    """Return the pending job. There must be exactly one."""
    (job,) = client.pending_jobs().jobs
    return job
