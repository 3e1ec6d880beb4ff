"""Lab: simulator and stand-in kept running, with the settings to point an executor, playbooks or curl at them."""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from executor.errors import EXIT_OK
from executor.lab.system import running_lab

#: Everything that a shell needs to work with the lab.
SHOWN = ("FULCRUM_", "PROXMOX_", "SMITH_")


def main(*, time_scale: float = 1.0) -> int:
    """Keep the lab until Ctrl-C or TERM; returns the exit code."""
    console = Console()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory(prefix="agent-smith-lab-") as name:
        folder = Path(name)
        with running_lab(folder, time_scale=time_scale) as lab:
            shown = {key: value for key, value in lab.environment().items() if key.startswith(SHOWN)}
            file = folder / "lab.env"
            file.touch(mode=0o600)
            file.write_text("".join(f"export {key}={shlex.quote(value)}\n" for key, value in sorted(shown.items())))
            console.print(f"FulcrumCore simulator  {lab.core.url}  (admin token in {folder / 'admin-token'})")
            (folder / "admin-token").touch(mode=0o600)
            (folder / "admin-token").write_text(lab.ids.admin_token)
            console.print(
                f"Proxmox stand-in       https://{lab.proxmox.host}:{lab.proxmox.port}  (CA {lab.proxmox.ca_bundle})"
            )
            console.print(
                f"agent {lab.ids.agent_id}  service type {lab.ids.service_type_id}  consumer {lab.ids.consumer_id}"
            )
            console.print(f"\nIn another shell:  . {file} && smith run", highlight=False)
            console.print("Ctrl-C ends both.")
            ended.wait()
    return EXIT_OK
