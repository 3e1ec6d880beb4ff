"""Writes the table of arguments into each role's README from its argument_specs: `python tests/playbooks/role_docs.py`.

A test checks that each README is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
BEGIN, END = "<!-- arguments: generated -->", "<!-- end -->"


def table(role: Path) -> str:
    """Return the Markdown table of a role's arguments."""
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    lines = ["| argument | type | default | meaning |", "|---|---|---|---|", *rows(options, "")]
    return "\n".join(lines)


def rows(options: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield one row per argument; the members of a dict follow their dict."""
    for name, option in options.items():
        default = "required" if option.get("required") else _format_default(option.get("default", ""))
        kind = f"list of {option['elements']}" if "elements" in option else option["type"]
        yield f"| `{prefix}{name}` | {kind} | {default} | {meaning(option)} |"
        yield from rows(option.get("options", {}), f"{prefix}{name}.")


def meaning(option: dict[str, Any]) -> str:
    """Return the description as one line, with its choices."""
    description = option["description"]
    text = " ".join(description) if isinstance(description, list) else description
    text = re.sub(r"C\(([^)]*)\)", r"`\1`", text)
    text = re.sub(r"M\((agent_smith\.proxmox\.([^)]*))\)", r"[\1](../../plugins/modules/\2.py)", text)
    return f"{text} One of {', '.join(option['choices'])}." if "choices" in option else text


def _format_default(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def with_table(role: Path) -> str:
    """Return a role's README with its table replaced."""
    text = (role / "README.md").read_text()
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table(role)}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    for folder in sorted(ROLES.iterdir()):
        (folder / "README.md").write_text(with_table(folder))
