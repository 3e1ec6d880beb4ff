"""The `smith` command (also `python -m executor`): the command line of `cli`, and the lab's two commands."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from executor.cli.app import build, run_app
from executor.cli.output import examples
from executor.errors import SmithError

DEMO_EXAMPLES = examples(
    "smith demo                  six services through their whole life",
    "smith demo --services 20    more of them at once",
    "smith demo --json           the summary for scripts",
)
LAB_EXAMPLES = examples(
    "smith lab                   FulcrumCore's simulator and a fake Proxmox, until Ctrl-C",
    "smith lab --folder lab --core-port 3000 --proxmox-port 8006     where others can find them again",
)


class LabMissing(SmithError):
    """The lab's dependencies are an extra, and it is not installed."""


def demo(
    services: Annotated[int, typer.Option("--services", min=1, max=1000, help="How many services to create.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the working folder to look around in.")] = False,
) -> None:
    """See the whole system at work: simulator, fake Proxmox, executor; nothing of yours is touched."""
    raise typer.Exit(_in_lab("demo", services=services, as_json=as_json, keep=keep))


def lab(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Put settings, secrets and the CA here; a temporary one without.")
    ] = None,
    core_port: Annotated[int, typer.Option("--core-port", min=0, max=65535, help="The simulator's; 0: any.")] = 0,
    proxmox_port: Annotated[int, typer.Option("--proxmox-port", min=0, max=65535, help="Proxmox's; 0: any.")] = 0,
) -> None:
    """Keep FulcrumCore's simulator and a fake Proxmox running to play with."""
    raise typer.Exit(_in_lab("playground", folder=folder, core_port=core_port, proxmox_port=proxmox_port))


def _in_lab(name: str, **options: Any) -> int:
    """Run the `main` of one of the lab's modules. Raises LabMissing when the extra that it needs is not installed."""
    try:
        return int(importlib.import_module(f"smith_lab.{name}").main(**options) or 0)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("executor.") and error.name != "smith_lab":
            raise  # a defect of ours, not a missing extra
        raise LabMissing(f"{error.name} is missing, which the lab needs: pip install 'agent-smith[lab]'") from None


def main() -> NoReturn:
    """Run the command that the arguments name."""
    app = build()
    app.command("demo", epilog=DEMO_EXAMPLES)(demo)
    app.command("lab", epilog=LAB_EXAMPLES)(lab)
    run_app(app)


if __name__ == "__main__":
    main()
