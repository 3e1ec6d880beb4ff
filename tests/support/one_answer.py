"""Reads COUNT answers of a server, one after the other; prints the errors and the growth of this process's memory.

    python -m support.one_answer KIND PORT CA COUNT

The growth is that of the peak. The peak of a process never falls, so each measurement needs a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import client, cluster

from executor.fulcrum.client import FulcrumClient
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection

READ_TIMEOUT_S = 5.0


def peak_mib() -> float:
    """Return the peak of this process's memory. That of `getrusage` would include the memory before `exec`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def read_proxmox(port: int, ca: Path, **login: str) -> object:
    connection = ProxmoxConnection(host="127.0.0.1", port=port, user="smith@pve", verify=ca, **login)  # type: ignore[arg-type]
    return ProxmoxReader(connection, timeout_s=READ_TIMEOUT_S).vms()


def read_in_collection(port: int, ca: Path) -> object:
    login: dict[str, Any] = {"api_host": "127.0.0.1", "api_port": port, "api_user": "smith@pve"}
    token = {"api_token_id": "job", "api_token_secret": "secret-of-the-token"}
    return cluster.Cluster(client.connect({**login, **token}, str(ca)), "qemu", "").list_guests()


def read_fulcrum(port: int, ca: Path, call: str) -> object:
    client = FulcrumClient(f"https://127.0.0.1:{port}", lambda: "token", ca_bundle=ca, read_timeout_s=READ_TIMEOUT_S)
    return getattr(client, call)()


READERS: dict[str, Callable[[int, Path], object]] = {
    "proxmox": lambda port, ca: read_proxmox(port, ca, token_id="job", token_secret="secret-of-the-token"),
    "proxmox login": lambda port, ca: read_proxmox(port, ca, password="secret-of-the-user"),
    "collection": read_in_collection,
    "pending jobs": lambda port, ca: read_fulcrum(port, ca, "pending_jobs"),
    "own agent": lambda port, ca: read_fulcrum(port, ca, "get_own_agent"),
}


def main() -> None:
    kind, port, ca, count = sys.argv[1:]
    before_mib, errors = peak_mib(), []
    for _ in range(int(count)):
        try:
            READERS[kind](int(port), Path(ca))
        except Exception as exc:
            errors.append(f"{type(exc).__name__}: {exc}"[:200])
    print(json.dumps({"mib": peak_mib() - before_mib, "errors": errors}))


if __name__ == "__main__":
    main()
