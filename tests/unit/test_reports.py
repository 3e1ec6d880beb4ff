"""What FulcrumCore is told of a job that ended well."""

from __future__ import annotations

from typing import Any

from executor.agent.reporter import completion
from executor.database.tables import Job

AGENT = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
VM: dict[str, Any] = {
    **{"vmid": 100_000, "node": "pve1", "name": "web", "status": "running", "mac_address": "BC:24:11:00:00:01"},
    **{"ip_addresses": ["192.0.2.7"], "reboot_required": False, "delete_at": 0, "upids": ["UPID:x"]},
}


def told(action: str, **vm: Any) -> dict[str, Any]:
    return completion(Job(action=action, result=VM | vm), AGENT)


def test_every_report_tells_the_addresses_that_are_known() -> None:
    """After an update FulcrumCore throws properties away; the instance's data stays."""
    for action in ("start", "stop", "snapshot", "update"):
        assert told(action)["agent_instance_data"]["ip_addresses"] == ["192.0.2.7"]
    assert told("start")["properties"]["ipAddresses"] == ["192.0.2.7"]
    assert "properties" not in told("update")


def test_what_nobody_knows_is_not_told() -> None:
    data = told("stop", ip_addresses=[], mac_address="")
    assert not {"ip_addresses", "mac_address"} & set(data["agent_instance_data"])
    assert not {"ipAddresses", "macAddress"} & set(data["properties"])


def test_a_backups_archive_is_told() -> None:
    assert told("backup", backup="backups:backup/x")["agent_instance_data"]["backup"] == "backups:backup/x"


def test_a_deleted_vm_that_is_kept_a_while_has_no_instance_any_more() -> None:
    assert told("delete", status="absent") == {}
    kept = told("delete", status="stopped", delete_at=1_900_000_000)
    assert kept == {"agent_instance_data": {"vmid": 100_000, "node": "pve1", "name": "web", "delete_at": 1_900_000_000}}
