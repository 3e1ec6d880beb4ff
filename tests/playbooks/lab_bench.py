"""Runs the tests with the mark `lab` on the Proxmox cluster that LAB_PROXMOX_* names, and deletes what they created.

The plays reach Proxmox through a loopback proxy that records the requests. So a test can check here too that a play
has sent no changing request. Tests that inject faults do not have the mark `lab`: a real cluster cannot inject them.
Settings: CONTRIBUTING.md.
"""

from __future__ import annotations

import itertools
import os
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from play_bench import Bench, Place
from proxmoxer import ResourceException
from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.lab_settings import LabSettings, missing_required_variables
from smith_lab.lab_test.open_lab import KEEP_VARIABLE, lab_run_of_parent_process
from smith_lab.proxmox.certificates import make_certificates

API = "/api2/json"
SECRET_PARAMETERS = ("password", "cipassword", "ssh-public-keys")
TIMEOUT_S = 60


def problem_of_settings() -> str:
    """Return a text about the settings that are missing; '' if the lab is configured."""
    missing = missing_required_variables(os.environ)
    return f"-m lab needs {', '.join(missing)} (CONTRIBUTING.md)" if missing else ""


@dataclass
class LabProxmox:
    """The cluster, with those methods of the stand-in that inject no fault."""

    folder: Path
    lab_settings: LabSettings = field(default_factory=lambda: LabSettings.from_environment(os.environ))
    log: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def cluster(self) -> LabCluster:
        return LabCluster(self.lab_settings)

    @property
    def api(self) -> Any:
        """Return a client without the proxy, as requests of the test itself are not recorded."""
        return self.cluster.api

    @cached_property
    def proxy_port(self) -> int:
        """Start the proxy, which runs until this process ends; return its port."""
        certificate, key = make_certificates(self.folder, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        verify = (self.lab_settings.ca_bundle or True) if self.lab_settings.validate_certs else False
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self.lab_settings.url, verify, self.log))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    def env(self) -> dict[str, str]:
        """Return the variables with which a play reaches Proxmox through the proxy."""
        return self.lab_settings.proxmox_variables() | {
            "PROXMOX_HOST": "127.0.0.1",
            "PROXMOX_PORT": str(self.proxy_port),
            "PROXMOX_VALIDATE_CERTS": "true",
            "PROXMOX_CA_BUNDLE": str(self.folder / "ca.pem"),
        }

    @property
    def token_secret(self) -> str:
        return self.lab_settings.token_secret

    def reset_request_log(self) -> None:
        self.log.clear()

    def changing_requests(self) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["method"] != "GET"]

    def guest(self, vmid: int) -> dict[str, Any] | None:
        """Return a guest in the stand-in's form, or None."""
        row = next((row for row in self.rows() if int(row["vmid"]) == vmid), None)
        if row is None:
            return None
        guest = getattr(self.api.nodes(row["node"]), row["type"])(vmid)
        current = guest.config.get(current=1) if row["type"] == "qemu" else guest.config.get()
        status = guest.status.current.get()
        snapshots = [snapshot["name"] for snapshot in guest.snapshot.get() if snapshot["name"] != "current"]
        facts = {"vmid": vmid, "node": row["node"], "status": status["status"], "lock": status.get("lock")}
        return {**facts, "config": current, "pool": row.get("pool"), "snapshots": snapshots}

    def rows(self) -> list[dict[str, Any]]:
        return list(self.api.cluster.resources.get(type="vm"))

    def destroy(self, vmid: int, service_id: str) -> None:
        """Destroy a guest that a test has left, if it has the test's marker."""
        guest = self.cluster.guest(vmid)
        if guest is not None and f"smith-uid={service_id}" in guest.notes:
            self.cluster.stop_and_remove(guest)


def handler_of(upstream: str, verify: bool | str, log: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """Return the handler that forwards requests to Proxmox and records them."""
    session = requests.Session()
    session.trust_env = False

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _mark, query = self.path.partition("?")
            log.append(
                {
                    "method": self.command,
                    "path": path.removeprefix(API),
                    "params": parameters_without_secrets(query, body.decode()),
                }
            )
            forwarded_headers = {
                name: text for name, text in self.headers.items() if name.lower() not in ("host", "content-length")
            }
            answer = session.request(
                self.command,
                upstream + self.path,
                data=body,
                headers=forwarded_headers,
                verify=verify,
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
            self.send_response(answer.status_code, answer.reason)  # Proxmox says in the reason what is wrong
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_DELETE = forward

        def log_message(self, *_arguments: Any) -> None:
            """Log nothing."""

    return Handler


def parameters_without_secrets(*encoded: str) -> dict[str, str]:
    """Return a request's parameters with masked secrets."""
    pairs = [pair for text in encoded for pair in urllib.parse.parse_qsl(text)]
    return {name: "***" if name in SECRET_PARAMETERS else value for name, value in pairs}


class LabBench(Bench):
    """Runs playbooks on the real cluster. The guests of a test are destroyed after it."""

    def __init__(self, folder: Path) -> None:
        self.cluster = LabProxmox(folder)
        self.run = lab_run_of_parent_process(os.environ)
        super().__init__(pve=self.cluster, folder=folder, vmids=self.free_vmids(), place=self.place_of_lab())  # type: ignore[arg-type]
        self.requested_guests: list[Mapping[str, Any]] = []

    def place_of_lab(self) -> Place:
        lab = self.cluster.lab_settings
        return Place(
            node=lab.node,
            second_node=lab.second_node,
            template=lab.template,
            disk_gib=self.cluster.cluster.template_disk_gib(lab.template),
            storage=lab.storage,
            other_storage=lab.storage,
            other_bridge=lab.bridge,
            backup_storage=lab.backup_storage,
            os_template=lab.os_template,
            timeout_s=300,
            shutdown_s=20,
            is_real=True,
        )

    def free_vmids(self) -> Iterator[int]:
        """Yield the free VMIDs of the lab's range, repeatedly, because each test frees those that it used.

        Raises LabError if all are in use.
        """
        vmids, used_in_a_row = range(self.cluster.lab_settings.vmid_min, self.cluster.lab_settings.vmid_max + 1), 0
        for vmid in itertools.cycle(vmids):
            if used_in_a_row == len(vmids):
                raise LabError(f"all VMIDs from {vmids[0]} to {vmids[-1]} are in use")
            try:
                self.cluster.api.cluster.nextid.get(vmid=vmid)
            except ResourceException:
                used_in_a_row += 1
                continue
            used_in_a_row = 0
            yield vmid

    def vm(self, **more: Any) -> dict[str, Any]:
        """Return the variables of a new VM; in a run of `smith lab-test`, with its prefix and its service id."""
        if self.run is not None:
            service_id = self.run.reserved_range.new_service_id()
            name = f"{self.run.reserved_range.prefix}-web-{service_id[:8]}"
            more = {"service_id": service_id, "name": name, **more}
        vm = super().vm(**more)
        self.requested_guests.append(vm)
        return vm

    def add_vm(self, **more: Any) -> dict[str, Any]:
        """Create a VM with our playbook; return its variables."""
        vm = self.vm(storage=self.place.storage)
        return self.create_running(vm) if more.get("status") == "running" else self.create_stopped(vm)

    def add_container(self, **more: Any) -> dict[str, Any]:
        vm = self.container(storage=self.place.storage, os_template=self.place.os_template, node=self.place.node)
        return self.create_running(vm) if more.get("status") == "running" else self.create_stopped(vm)

    def create_stopped(self, vm: dict[str, Any]) -> dict[str, Any]:
        done = self.play("create", vm)
        assert done.rc == 0, done.output
        return vm

    def create_running(self, vm: dict[str, Any]) -> dict[str, Any]:
        done = self.play("start", self.create_stopped(vm))
        assert done.rc == 0, done.output
        return vm

    def clear(self) -> None:
        """Destroy the guests of the test, unless `smith lab-test --keep` keeps them.

        Raises RuntimeError if some guests could not be destroyed, after the attempt to destroy all of them.
        """
        failures = []
        if os.environ.get(KEEP_VARIABLE):
            self.requested_guests.clear()
        for vm in self.requested_guests:
            try:
                self.cluster.destroy(int(vm["vmid"]), str(vm["service_id"]))
            except LabError as exc:
                failures.append(f"VM {vm['vmid']}: {exc}")
        self.requested_guests.clear()
        if failures:
            raise RuntimeError("; ".join(failures))
