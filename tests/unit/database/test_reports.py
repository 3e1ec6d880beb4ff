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


def report_after(action: str, **vm: Any) -> dict[str, Any]:
    """Return what the agent reports to FulcrumCore after this action, whose result has these members of the VM."""
    return completion_arguments(Job(action=action, result=VM | vm), AGENT)


def test_every_report_has_the_known_addresses() -> None:
    """After an update, FulcrumCore ignores the reported properties and stores only the agent instance data."""
    for action in ("start", "stop", "snapshot", "update"):
        assert report_after(action)["agent_instance_data"]["ip_addresses"] == ["192.0.2.7"]
    assert report_after("start")["properties"]["ipAddresses"] == ["192.0.2.7"]
    assert "properties" not in report_after("update")


def test_facts_of_a_vm_that_are_unknown_are_not_reported() -> None:
    data = report_after("stop", ip_addresses=[], mac_address="")
    assert not {"ip_addresses", "mac_address"} & set(data["agent_instance_data"])
    assert not {"ipAddresses", "macAddress"} & set(data["properties"])


def test_a_backups_archive_is_reported() -> None:
    assert report_after("backup", backup="backups:backup/x")["agent_instance_data"]["backup"] == "backups:backup/x"


def test_the_report_of_a_deletion_has_no_instance_id() -> None:
    assert report_after("delete", status="absent") == {}
    pending_deletion = report_after("delete", status="stopped", delete_at=1_900_000_000)
    assert pending_deletion == {
        "agent_instance_data": {"vmid": 100_000, "node": "pve1", "name": "web", "delete_at": 1_900_000_000}
    }
