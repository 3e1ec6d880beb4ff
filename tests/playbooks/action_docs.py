"""Generates the tables of docs/actions.md from the roles' argument_specs and actions.yml, when run as a script.

`test_docs.py` checks that the page is up to date and that the named tests exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "actions.md"
DATA: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "actions.yml").read_text())
ACTIONS: dict[str, dict[str, Any]] = DATA["actions"]


def _members(role: str) -> dict[str, Any]:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    return dict(specs["argument_specs"]["main"]["options"]["vm"]["options"])


def takes(action: str) -> str:
    """Return the members of `vm` that the argument_specs assign to an action."""
    if action == "create":
        return "what [vm_present](../roles/vm_present/README.md) lists"
    named = [name for name, option in _members("vm_identity").items() if f"C({action})" in _said(option).split(":")[0]]
    return " ".join(f"`{name}`" for name in named)


def _said(option: dict[str, Any]) -> str:
    said = option["description"]
    lines = said if isinstance(said, list) else [said]
    # In a list, each line may name actions before its colon.
    return " ".join(line.partition(":")[0] for line in lines if ":" in line) + ":" if len(lines) > 1 else str(said)


def effects() -> str:
    """Return the table of what is true after each action, and what it takes."""
    lines = [
        "| action | true afterwards | module runs (changing; again) | takes, besides the identity |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{name}` | {row['truth']} | {row['runs']} | {takes(name)} |" for name, row in ACTIONS.items()]
    return "\n".join(lines)


def promises() -> str:
    """Return the table of what each action promises, with the privileges that it needs."""
    lines = [
        "| action | idempotent | check mode | codes of its own | result fields of its own | privileges and VM.Audit |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ACTIONS.items():
        codes, fields = (" ".join(f"`{key}`" for key in row[column]) for column in ("codes", "result"))
        lines.append(f"| `{name}` | {row['idempotent']['answer']} | yes | {codes} | {fields} | {row['privileges']} |")
    return "\n".join(
        [*lines, "", _for_all("Every action", "codes"), "", _for_all("All but `create`", "identity_codes")]
    )


def _for_all(who: str, group: str) -> str:
    return f"{who} may end in {', '.join(f'`{code}`' for code in DATA['common'][group])}."


def tests_named() -> Iterator[str]:
    """Yield each test that the data names."""
    common = DATA["common"]
    yield from (*common["codes"].values(), *common["identity_codes"].values(), common["check"])
    for row in ACTIONS.values():
        yield from (row["idempotent"]["test"], *row["codes"].values(), *row["result"].values())
        yield from [row["cut"]] if "cut" in row else []


def with_tables(text: str) -> str:
    """Return the page with its tables replaced."""
    for name, table in (("effects", effects()), ("promises", promises())):
        begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        replacement = f"{begin}\n{table}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, new=replacement: new, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
