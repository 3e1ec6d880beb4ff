"""`smith version`: what is installed, for a bug report."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from executor.cli.output import examples, say, show_json

EXAMPLES = examples(
    "smith version",
    "smith version --json",
)


def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say which version this is, and of what."""
    facts = _facts()
    if as_json:
        show_json(facts)
    else:
        say("\n".join(f"{name.replace('_', '-'):<19} {value or 'not found'}" for name, value in facts.items()))


def if_asked(wanted: bool) -> None:
    """Answer `smith --version` and leave."""
    if wanted:
        show(as_json=False)
        raise typer.Exit


def _facts() -> dict[str, str | None]:
    from executor.database.schema import head_revision  # noqa: PLC0415 (SQLAlchemy and Alembic are not for every `--help`)
    from executor.version import (  # noqa: PLC0415 (the same)
        VERSION,
        collection_version,
        package_version,
    )

    return {
        "agent_smith": VERSION,
        "python": platform.python_version(),
        "ansible_core": package_version("ansible-core"),
        "ansible_runner": package_version("ansible-runner"),
        "community_proxmox": collection_version(),
        "newest_schema": head_revision(),
    }
