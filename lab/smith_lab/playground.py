"""Implements `smith lab`: runs the simulator and the stand-in, and writes the settings that an executor needs.

The settings are shell variables in the file `lab.env`.
"""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from executor.errors import EXIT_OK
from smith_lab.private_file import write_private
from smith_lab.system import SETTING_PREFIXES, LabSystem, running_lab

#: Secrets among the settings. The lab also writes each of them to its own file, which a container can mount.
SECRET_SETTINGS = ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET")


def main(*, time_scale: float = 1.0, folder: Path | None = None, core_port: int = 0, proxmox_port: int = 0) -> int:
    """Run the lab until Ctrl-C or SIGTERM; return the exit code. Overwrite the files of an earlier lab in `folder`.

    `time_scale` is the number of real seconds for each second of simulated Proxmox time.
    """
    stop_requested = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop_requested.set())
    with ExitStack() as stack:
        lab_folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-smith-lab-")))
        lab_folder = lab_folder.resolve()
        lab_folder.mkdir(parents=True, exist_ok=True)
        (lab_folder / "lab.env").unlink(missing_ok=True)
        lab = stack.enter_context(
            running_lab(
                lab_folder,
                time_scale=time_scale,
                core_port=core_port,
                proxmox_port=proxmox_port,
                is_restricted=True,
            )
        )
        _write_files(lab)
        _print_usage(lab, Console())
        stop_requested.wait()
    return EXIT_OK


def _write_files(lab: LabSystem) -> None:
    """Write the settings and the secrets. `lab.env` is written last: once it exists, all other files exist."""
    settings = {key: value for key, value in lab.environment().items() if key.startswith(SETTING_PREFIXES)}
    (lab.folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    for name in SECRET_SETTINGS:
        write_private(lab.folder / "secrets" / name.lower(), settings[name].encode())
    write_private(lab.folder / "admin-token", lab.ids.admin_token.encode())
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in sorted(settings.items()))
    write_private(lab.folder / "lab.env.new", exports.encode()).rename(lab.folder / "lab.env")


def _print_usage(lab: LabSystem, console: Console) -> None:
    """Print the addresses and ids of the lab, and the command that starts an executor with the lab's settings."""
    ids, proxmox = lab.ids, lab.proxmox
    proxmox_url = f"https://{proxmox.host}:{proxmox.port}"
    console.print(f"FulcrumCore simulator  {lab.core.url}  (admin token in {lab.folder / 'admin-token'})")
    console.print(f"Proxmox stand-in       {proxmox_url}  (CA certificate in {proxmox.ca_bundle})")
    console.print(f"agent {ids.agent_id}  service type {ids.service_type_id}  consumer {ids.consumer_id}")
    console.print(f"\nIn another shell:  . {lab.folder / 'lab.env'} && smith run", highlight=False)
    console.print("Ctrl-C stops the simulator and the stand-in.")
