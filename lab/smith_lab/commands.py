"""Defines the commands `smith demo` and `smith lab`.

The lab's package declares both functions as entry points in the group `smith.commands`, by which `smith` finds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.cli.help_text import examples
from smith_lab import playground
from smith_lab.demo import main as run_demo


@examples(
    "smith demo                  six services, from create to delete",
    "smith demo --services 20    more services at once",
    "smith demo --json           the summary for scripts",
)
def demo(
    services: Annotated[int, typer.Option("--services", min=1, max=1000, help="How many services to create.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with log, database and artifacts.")] = False,
) -> None:
    """Run Agent Smith against a FulcrumCore simulator and a Proxmox stand-in, without using your settings."""
    raise typer.Exit(run_demo(service_count=services, as_json=as_json, keep_folder=keep))


@examples(
    "smith lab                   a FulcrumCore simulator and a Proxmox stand-in, until Ctrl-C",
    "smith lab --folder lab --core-port 3000 --proxmox-port 8006     with a known folder and known ports",
)
def lab(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder for settings, secrets and the CA; default: a temporary one.")
    ] = None,
    core_port: Annotated[
        int, typer.Option("--core-port", min=0, max=65535, help="The simulator's port; 0: any free port.")
    ] = 0,
    proxmox_port: Annotated[
        int, typer.Option("--proxmox-port", min=0, max=65535, help="The stand-in's port; 0: any free port.")
    ] = 0,
) -> None:
    """Keep a FulcrumCore simulator and a Proxmox stand-in running, until Ctrl-C."""
    raise typer.Exit(playground.main(folder=folder, core_port=core_port, proxmox_port=proxmox_port))
