"""A Proxmox server that answers each request with one list of VMs, and the values in metric entries."""

from __future__ import annotations

import json
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import Engine

from executor.database import mappings
from executor.database.engine import transaction

RATES = {"vm.network.in", "vm.network.out", "vm.disk.read", "vm.disk.write"}
Row = dict[str, Any]


class Cluster(ThreadingHTTPServer):
    """A Proxmox server whose list of VMs the test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ClusterRequestHandler)
        self.rows: list[Row] = []
        self.status = 200
        self.calls: list[str] = []


class ClusterRequestHandler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        body = json.dumps({"data": self.server.rows}).encode()
        self.send_response(self.server.status, "OK" if self.server.status == 200 else "error")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def map_vm(engine: Engine, vmid: int, cluster: str = "default") -> None:
    """Write an active mapping of a new service to the VMID."""
    with transaction(engine) as session:
        wanted = {"service_id": str(uuid.uuid4()), "cluster": cluster, "name": f"vm-{vmid}", "node": "pve1"}
        assert mappings.insert_active_mapping(session, vmid=vmid, **wanted)


def vm(vmid: int = 101, **changed: Any) -> Row:
    """Return a VM as Proxmox lists it; a value of ... leaves the member out."""
    row: Row = {
        "id": f"qemu/{vmid}",
        "type": "qemu",
        "vmid": vmid,
        "node": "pve1",
        "name": f"vm-{vmid}",
        "status": "running",
        "template": 0,
        "cpu": 0.25,
        "maxcpu": 2,
        "mem": 512,
        "maxmem": 2048,
        "disk": 0,
        "maxdisk": 10_000,
        "netin": 1000,
        "netout": 1000,
        "diskread": 1000,
        "diskwrite": 1000,
        "uptime": 100,
    }
    return {name: value for name, value in (row | changed).items() if value is not ...}


def values(entries: list[Row]) -> dict[str, float]:
    """Return the value of each metric entry by the name of its type."""
    return {entry["typeName"]: entry["value"] for entry in entries}
