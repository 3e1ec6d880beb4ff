"""Lab: simulator and stand-in kept running, with the settings to point an executor, playbooks or curl at them."""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from executor.errors import EXIT_OK
from smith_lab.system import LabSystem, running_lab

#: Everything that a shell needs to work with the lab.
SHOWN = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: What a container mounts as secrets, named as it looks for them.
SECRETS = ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET")


def main(*, time_scale: float = 1.0, folder: Path | None = None, core_port: int = 0, proxmox_port: int = 0) -> int:
    """Keep the lab until Ctrl-C or TERM; returns the exit code. What a lab before has left in `folder` is replaced."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-smith-lab-")))
        place = place.resolve()
        place.mkdir(parents=True, exist_ok=True)
        (place / "lab.env").unlink(missing_ok=True)
        lab = stack.enter_context(
            running_lab(place, time_scale=time_scale, core_port=core_port, proxmox_port=proxmox_port)
        )
        _write_files(lab)
        _show(lab, Console())
        ended.wait()
    return EXIT_OK


def _write_files(lab: LabSystem) -> None:
    """Write settings and secrets; `lab.env` last, so that whoever sees it finds the rest."""
    shown = {key: value for key, value in lab.environment().items() if key.startswith(SHOWN)}
    (lab.folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    for name in SECRETS:
        _write(lab.folder / "secrets" / name.lower(), shown[name])
    _write(lab.folder / "admin-token", lab.ids.admin_token)
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in sorted(shown.items()))
    _write(lab.folder / "lab.env.new", exports)
    (lab.folder / "lab.env.new").rename(lab.folder / "lab.env")


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def _show(lab: LabSystem, console: Console) -> None:
    ids, proxmox = lab.ids, lab.proxmox
    console.print(f"FulcrumCore simulator  {lab.core.url}  (admin token in {lab.folder / 'admin-token'})")
    console.print(f"Proxmox stand-in       https://{proxmox.host}:{proxmox.port}  (CA {proxmox.ca_bundle})")
    console.print(f"agent {ids.agent_id}  service type {ids.service_type_id}  consumer {ids.consumer_id}")
    console.print(f"\nIn another shell:  . {lab.folder / 'lab.env'} && smith run", highlight=False)
    console.print("Ctrl-C ends both.")
