"""`smith version`: shows the installed versions, for example for a bug report."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.database.schema import head_revision
from executor.version import VERSION, collection_version, package_version


@examples(
    "smith version",
    "smith version --json",
)
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the versions of Agent Smith and of its dependencies."""
    versions = _versions()
    if as_json:
        show_json(versions)
    else:
        show_text("\n".join(f"{name.replace('_', '-'):<19} {value or 'not found'}" for name, value in versions.items()))


def _versions() -> dict[str, str | None]:
    return {
        "agent_smith": VERSION,
        "python": platform.python_version(),
        "ansible_core": package_version("ansible-core"),
        "ansible_runner": package_version("ansible-runner"),
        "community_proxmox": collection_version(),
        "newest_schema": head_revision(),
    }
