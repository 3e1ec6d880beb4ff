"""Generates the tables of docs/actions.md from the members of `vm` and actions.yml, when run as a script.

`test_docs.py` checks that the page is up to date and that the named tests exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import role_docs
import yaml

from executor.shared.vm_arguments import VM_ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "actions.md"
DATA: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "actions.yml").read_text())
ACTIONS: dict[str, dict[str, Any]] = DATA["actions"]
#: The actions that the beginning of a sentence in a description names: `C(stop), C(delete): …`.
PREFIX = re.compile(r"(?:^|\. )((?:C\([a-z]+\)(?:, )?)+): ")


def list_members_that_an_action_uses(action: str) -> str:
    """Return the members of `vm` that actions.yml lists for an action, and those whose description names it."""
    if action == "create":
        return "what the action [vm_present](../plugins/modules/vm_present.py) documents"
    configured = ACTIONS[action].get("takes", [])
    if unknown := set(configured) - set(VM_ARGUMENTS):
        raise ValueError(f"actions.yml names members that vm does not have: {sorted(unknown)}")
    member_names = [name for name, option in VM_ARGUMENTS.items() if name in configured or action in _named_by(option)]
    return " ".join(f"`{name}`" for name in member_names)


def _named_by(option: dict[str, Any]) -> set[str]:
    """Return the actions that a description names before a colon: two in `C(stop), C(delete): seconds …`."""
    groups = PREFIX.findall(option["description"])
    return {name for group in groups for name in re.findall(r"C\(([a-z]+)\)", group)}


def members() -> str:
    """Return the table of all members of `vm`."""
    return "\n".join(["| member | type | meaning |", "|---|---|---|", *_member_rows(VM_ARGUMENTS, "")])


def _member_rows(options: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, option in options.items():
        kind = f"list of {option['elements']}" if "elements" in option else option["type"]
        required = ", required" if option.get("required") else ""
        yield f"| `{prefix}{name}` | {kind}{required} | {role_docs.meaning(option)} |"
        yield from _member_rows(option.get("options", {}), f"{prefix}{name}.")


def effects() -> str:
    """Return the table of what is true after each action, and of the members of `vm` that the action uses."""
    lines = [
        "| action | true afterwards | module runs (changing; again) | takes, besides the identity |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {row['truth']} | {row['runs']} | {list_members_that_an_action_uses(name)} |"
        for name, row in ACTIONS.items()
    ]
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


def _for_all(subject: str, group: str) -> str:
    return f"{subject} may end in {', '.join(f'`{code}`' for code in DATA['common'][group])}."


def tests_named() -> Iterator[str]:
    """Yield each test that the data names."""
    common = DATA["common"]
    yield from (*common["codes"].values(), *common["identity_codes"].values(), common["check"])
    for row in ACTIONS.values():
        yield from (row["idempotent"]["test"], *row["codes"].values(), *row["result"].values())
        yield from [row["cut"]] if "cut" in row else []


def with_tables(text: str) -> str:
    """Return the page with its tables replaced."""
    for name, table in (("effects", effects()), ("promises", promises()), ("members", members())):
        begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        replacement = f"{begin}\n{table}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, new=replacement: new, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
