"""The contents of a report of a completed job."""

from __future__ import annotations

from typing import Any

from executor.agent.report import completion_arguments
from executor.database.tables.jobs import Job

AGENT = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
VM: dict[str, Any] = {
    **{"vmid": 100_000, "node": "pve1", "name": "web", "status": "running", "mac_address": "BC:24:11:00:00:01"},
    **{"ip_addresses": ["192.0.2.7"], "reboot_required": False, "delete_at": 0, "upids": ["UPID:x"]},
}


def reported(action: str, **vm: Any) -> dict[str, Any]:
    return completion_arguments(Job(action=action, result=VM | vm), AGENT)


def test_every_report_has_the_known_addresses() -> None:
    """After an update FulcrumCore drops the reported properties and keeps the instance's data."""
    for action in ("start", "stop", "snapshot", "update"):
        assert reported(action)["agent_instance_data"]["ip_addresses"] == ["192.0.2.7"]
    assert reported("start")["properties"]["ipAddresses"] == ["192.0.2.7"]
    assert "properties" not in reported("update")


def test_unknown_facts_are_not_reported() -> None:
    data = reported("stop", ip_addresses=[], mac_address="")
    assert not {"ip_addresses", "mac_address"} & set(data["agent_instance_data"])
    assert not {"ipAddresses", "macAddress"} & set(data["properties"])


def test_a_backups_archive_is_reported() -> None:
    assert reported("backup", backup="backups:backup/x")["agent_instance_data"]["backup"] == "backups:backup/x"


def test_a_vm_pending_deletion_has_no_instance() -> None:
    assert reported("delete", status="absent") == {}
    kept = reported("delete", status="stopped", delete_at=1_900_000_000)
    assert kept == {"agent_instance_data": {"vmid": 100_000, "node": "pve1", "name": "web", "delete_at": 1_900_000_000}}
