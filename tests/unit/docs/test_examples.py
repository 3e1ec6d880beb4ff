"""Each `smith` command in the documents and in the help of the commands has only arguments that the command accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor.cli.app import build_root_command

ROOT = Path(__file__).parents[3]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "lab" / "README.md", ROOT / "executor/man/smith.1"]
#: These are cut from a line: its prompt, a pipe after the command, and the explanation in the section `Examples:`.
COMMAND = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S* )*(?:/opt/agent-smith/bin/)?smith (?P<arguments>.+)$")
END = re.compile(r"\s(?:[|>&;#]|\s).*$")
#: Lines in blocks that are no commands.
NO_COMMANDS = ("smith: ", "smith COMMAND")


def commands_of(text: str, blocks: str) -> Iterator[str]:
    """Yield the arguments of each command in the blocks of a page."""
    for block in re.findall(blocks, text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\-", "-").replace("\\e\n", "").replace("\\\n", "").splitlines():
            found = COMMAND.match(line)
            if found and not line.strip().startswith(NO_COMMANDS):
                yield END.sub("", found["arguments"]).strip()


def examples() -> list[str]:
    """Return the arguments of each command on the pages and on the manual page, which contains the help's examples."""
    found: set[str] = set()
    for page in PAGES:
        blocks = r"^\.nf\n(.*?)^\.fi" if page.suffix == ".1" else r"^```(?:console|sh)\n(.*?)^```"
        found |= set(commands_of(page.read_text(encoding="utf-8"), blocks))
    return sorted(found)


def why_refused(arguments: str) -> str:
    """Return why the command line refuses the arguments; '' if it accepts them. Nothing is run."""
    words = shlex.split(re.sub(r"\$\(.*?\)", "x", arguments))
    command: Any = build_root_command()
    context = command.context_class(command, info_name="smith")
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        child = command.get_command(context, words[0])
        if child is None:
            return f"no command {words[0]}"
        command, words = child.load_real_command() if hasattr(child, "load_real_command") else child, words[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
    try:
        # Only the options and the number of arguments are checked, because the files in the examples do not exist.
        _values, rest, _order = command.make_parser(context).parse_args(args=list(words))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"unexpected {rest}" if rest else ""


def test_the_pages_have_examples() -> None:
    assert {"jobs list", "lab order web-1 --image debian-12", "doctor"} <= set(examples())
    assert len(examples()) > 80


@pytest.mark.parametrize("arguments", examples())
def test_an_example_is_accepted_by_its_command(arguments: str) -> None:
    assert why_refused(arguments) == ""


@pytest.mark.parametrize("arguments", ["nothing", "jobs list --nothing", "jobs show 1 2", "lab order web-1 --imag"])
def test_a_wrong_example_is_refused(arguments: str) -> None:
    assert why_refused(arguments)
