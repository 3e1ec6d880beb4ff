"""Runs the tests with the mark `lab` on the Proxmox cluster that LAB_PROXMOX_* names, and deletes what they created.

The plays reach Proxmox through a loopback proxy that records the requests, so that a test can check that none changes
something, as on the stand-in. Tests that inject faults have no such mark, as a real cluster cannot inject them.
Settings: CONTRIBUTING.md.
"""

from __future__ import annotations

import itertools
import os
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from play_bench import Bench, Place
from proxmoxer import ProxmoxAPI, ResourceException
from smith_lab.proxmox.certificates import make_certificates

PREFIX = "LAB_PROXMOX_"
REQUIRED = ("HOST", "USER", "TOKEN_ID", "TOKEN_SECRET", "NODE", "TEMPLATE", "STORAGE", "VMID_MIN", "VMID_MAX")
OPTIONAL = {
    "PORT": "8006",
    "CA_BUNDLE": "",
    "VALIDATE_CERTS": "true",
    "BRIDGE": "vmbr0",
    "SECOND_NODE": "",
    "BACKUP_STORAGE": "",
    "OS_TEMPLATE": "",
}
API = "/api2/json"
SECRET = ("password", "cipassword", "ssh-public-keys")
TIMEOUT_S = 60
NO = ("0", "false", "no", "off")


def is_configured() -> bool:
    """Whether LAB_PROXMOX_HOST names a real Proxmox."""
    return bool(os.environ.get(f"{PREFIX}HOST"))


def problem() -> str:
    """Return which variables are missing, '' if none."""
    missing = [PREFIX + name for name in REQUIRED if not os.environ.get(PREFIX + name)]
    return f"-m lab needs {', '.join(missing)} (CONTRIBUTING.md)" if missing else ""


def setting(name: str) -> str:
    return os.environ.get(PREFIX + name) or OPTIONAL.get(name, "")


@dataclass
class LabProxmox:
    """The cluster, with those methods of the stand-in that inject no fault."""

    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def verify(self) -> bool | str:
        if setting("VALIDATE_CERTS").lower() in NO:
            return False
        return setting("CA_BUNDLE") or True

    @cached_property
    def api(self) -> Any:
        """Return a client without the proxy, as requests of the test itself are not recorded."""
        return ProxmoxAPI(
            setting("HOST"),
            port=int(setting("PORT")),
            user=setting("USER"),
            token_name=setting("TOKEN_ID"),
            token_value=setting("TOKEN_SECRET"),
            verify_ssl=self.verify,
            timeout=TIMEOUT_S,
        )

    @cached_property
    def proxy_port(self) -> int:
        """Start the proxy, which runs until this process ends; return its port."""
        certificate, key = make_certificates(self.folder, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        upstream = f"https://{setting('HOST')}:{setting('PORT')}"
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(upstream, self.verify, self.log))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    def env(self) -> dict[str, str]:
        """Return the variables with which a play reaches Proxmox through the proxy."""
        port = str(self.proxy_port)
        return {
            "PROXMOX_HOST": "127.0.0.1",
            "PROXMOX_PORT": port,
            "PROXMOX_USER": setting("USER"),
            "PROXMOX_TOKEN_ID": setting("TOKEN_ID"),
            "PROXMOX_TOKEN_SECRET": setting("TOKEN_SECRET"),
            "PROXMOX_VALIDATE_CERTS": "true",
            "PROXMOX_CA_BUNDLE": str(self.folder / "ca.pem"),
        }

    @property
    def token_secret(self) -> str:
        return setting("TOKEN_SECRET")

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
        taken = [one["name"] for one in guest.snapshot.get() if one["name"] != "current"]
        told = {"vmid": vmid, "node": row["node"], "status": status["status"], "lock": status.get("lock")}
        return {**told, "config": current, "pool": row.get("pool"), "snapshots": taken}

    def rows(self) -> list[dict[str, Any]]:
        return list(self.api.cluster.resources.get(type="vm"))

    def disk_gib(self, template: int) -> int:
        """Return the size of a template's first disk."""
        row = next(row for row in self.rows() if int(row["vmid"]) == template)
        return -(-int(row["maxdisk"]) // 1024**3)

    def destroy(self, vmid: int, service_id: str) -> None:
        """Destroy a guest that a test has left, if it has the test's marker."""
        row = next((row for row in self.rows() if int(row["vmid"]) == vmid), None)
        if row is None:
            return
        guest = getattr(self.api.nodes(row["node"]), row["type"])(vmid)
        config = guest.config.get()
        if f"smith-uid={service_id}" not in str(config.get("description")):
            return
        if config.get("protection"):
            guest.config.put(protection=0)
        if guest.status.current.get()["status"] == "running":  # the status in the list of guests is 10 s late
            self.done(row["node"], guest.status.stop.post())
        self.done(row["node"], guest.delete())

    def done(self, node: str, upid: str) -> None:
        """Wait until a Proxmox task has ended. Raises RuntimeError if it has failed."""
        while (task := self.api.nodes(node).tasks(upid).status.get())["status"] == "running":
            time.sleep(0.5)
        end = str(task["exitstatus"])
        if end != "OK" and not end.startswith("WARNINGS"):
            raise RuntimeError(f"the Proxmox task {upid} has failed: {end}")


def handler_of(upstream: str, verify: bool | str, log: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """Return the handler that forwards requests to Proxmox and records them."""
    session = requests.Session()
    session.trust_env = False

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _mark, query = self.path.partition("?")
            log.append({"method": self.command, "path": path.removeprefix(API), "params": shown(query, body.decode())})
            kept = {name: text for name, text in self.headers.items() if name.lower() not in ("host", "content-length")}
            answer = session.request(
                self.command,
                upstream + self.path,
                data=body,
                headers=kept,
                verify=verify,
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
            self.send_response(answer.status_code, answer.reason)  # Proxmox says in the reason what is wrong
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_DELETE = pass_on

        def log_message(self, *_arguments: Any) -> None:
            """Log nothing."""

    return Handler


def shown(*encoded: str) -> dict[str, str]:
    """Return a request's parameters with masked secrets."""
    found = [pair for text in encoded for pair in urllib.parse.parse_qsl(text)]
    return {name: "***" if name in SECRET else value for name, value in found}


class LabBench(Bench):
    """Runs playbooks on the real cluster. The guests of a test are destroyed after it."""

    def __init__(self, folder: Path) -> None:
        self.cluster = LabProxmox(folder)
        super().__init__(pve=self.cluster, folder=folder, numbers=self.free_vmids(), place=self.found_place())  # type: ignore[arg-type]
        self.described: list[Mapping[str, Any]] = []

    def found_place(self) -> Place:
        template = int(setting("TEMPLATE"))
        return Place(
            node=setting("NODE"),
            second_node=setting("SECOND_NODE"),
            template=template,
            disk_gib=self.cluster.disk_gib(template),
            storage=setting("STORAGE"),
            other_storage=setting("STORAGE"),
            other_bridge=setting("BRIDGE"),
            backup_storage=setting("BACKUP_STORAGE"),
            os_template=setting("OS_TEMPLATE"),
            timeout_s=300,
            shutdown_s=20,
            is_real=True,
        )

    def free_vmids(self) -> Iterator[int]:
        """Yield free VMIDs of the range again and again, as each test frees its own."""
        for vmid in itertools.cycle(range(int(setting("VMID_MIN")), int(setting("VMID_MAX")) + 1)):
            try:
                self.cluster.api.cluster.nextid.get(vmid=vmid)
            except ResourceException:
                continue
            yield vmid

    def vm(self, **more: Any) -> dict[str, Any]:
        vm = super().vm(**more)
        self.described.append(vm)
        return vm

    def add_vm(self, **more: Any) -> dict[str, Any]:
        """Create a VM with our playbook; return its variables."""
        vm = self.vm(storage=self.place.storage)
        return self.running(vm) if more.get("status") == "running" else self.stopped(vm)

    def add_container(self, **more: Any) -> dict[str, Any]:
        vm = self.container(storage=self.place.storage, os_template=self.place.os_template, node=self.place.node)
        return self.running(vm) if more.get("status") == "running" else self.stopped(vm)

    def stopped(self, vm: dict[str, Any]) -> dict[str, Any]:
        done = self.play("create", vm)
        assert done.rc == 0, done.output
        return vm

    def running(self, vm: dict[str, Any]) -> dict[str, Any]:
        done = self.play("start", self.stopped(vm))
        assert done.rc == 0, done.output
        return vm

    def clear(self) -> None:
        """Destroy the guests of the test. Raises RuntimeError after the last one if some could not be destroyed."""
        failures = []
        for vm in self.described:
            try:
                self.cluster.destroy(int(vm["vmid"]), str(vm["service_id"]))
            except RuntimeError as exc:
                failures.append(f"VM {vm['vmid']}: {exc}")
        self.described.clear()
        if failures:
            raise RuntimeError("; ".join(failures))
