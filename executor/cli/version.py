"""`smith version`: shows the installed versions, for example for a bug report."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.database.revisions import head_revision
from executor.version import VERSION, community_proxmox_version, package_version

#: The width of the column with the names, in characters.
NAME_WIDTH = 19


@examples(
    "smith version",
    "smith version --json",
)
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the versions of Agent Smith and of its dependencies."""
    versions = collect_versions()
    if as_json:
        show_json(versions)
    else:
        for name, version in versions.items():
            show_text(f"{name.replace('_', '-'):<{NAME_WIDTH}} {version or 'not found'}")


def collect_versions() -> dict[str, str | None]:
    """Return the version of each component, or None for a component that is not installed."""
    return {
        "agent_smith": VERSION,
        "python": platform.python_version(),
        "ansible_core": package_version("ansible-core"),
        "ansible_runner": package_version("ansible-runner"),
        "community_proxmox": community_proxmox_version(),
        "newest_schema": head_revision(),  # the revision of the database schema that this Agent Smith needs
    }
