"""Requests and settings from which runs are planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executor.runs.request import PlaybookSettings, RunRequest

SERVICE = "0a1b2c3d-1111-4000-8000-000000000001"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv me@example.net"
MINIMAL = {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}
ACTIONS = ("create", "update", "start", "stop", "restart", "delete", "snapshot", "rollback")
#: Texts that a template engine, YAML, a shell or SQL would interpret.
INJECTIONS = (
    "{{ lookup('pipe', 'id') }}",
    "{% raw %}",
    "!unsafe x",
    "!vault |",
    "yes",
    "0777",
    "&a *a",
    "- a\n- b",
    "$(id)",
    "'; DROP TABLE jobs; --",
)


def make_settings(*folders: Path, **wanted: Any) -> PlaybookSettings:
    values: dict[str, Any] = {
        "cluster": "default",
        "templates": {"debian-12": 9000, "ubuntu-24.04": 9001},
        "storage": "local-zfs",
        "bridge": "vmbr0",
        "pool": "",
        "node": "",
        "playbook_folders": folders,
        "playbook_timeout_s": 240.0,
        "shutdown_timeout_s": 60.0,
    }
    return PlaybookSettings(**(values | wanted))


def make_request(action: str = "create", properties: dict[str, Any] | None = None, **wanted: Any) -> RunRequest:
    values: dict[str, Any] = {
        "action": action,
        "service_id": SERVICE,
        "service_name": "web",
        "properties": MINIMAL if properties is None else properties,
        "vmid": 101,
        "vm_name": "web-0a1b2c3d",
        "time_left_s": 280.0,
    }
    return RunRequest(**(values | wanted))
