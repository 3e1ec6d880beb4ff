"""Counts the error texts of Proxmox that our actions can meet: `python tests/proxmox_texts.py MIRRORS`.

`MIRRORS` is a folder with a clone of each repository of REPOSITORIES (https://git.proxmox.com). The script reads each
`die` and each `raise` with a text in their Perl modules, and each error answer of the HTTP server. A text counts as
reached, unless a row of tests/data/proxmox_unreached.json excludes its file, its function or its words. Each reached
text must have a row in tests/data/proxmox_failures.jsonl; the script prints those that have none, and then exits with
status 1. It writes the counts to tests/data/proxmox_texts.md, which docs/proxmox_behaviour.md contains.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
ROWS = DATA / "proxmox_failures.jsonl"
UNREACHED = DATA / "proxmox_unreached.json"
COUNTS = DATA / "proxmox_texts.md"
#: The repositories, each with the branch or the last commit of Proxmox VE 8 and of 9.
REPOSITORIES = {
    "qemu-server": ("stable-bookworm", "master"),
    "pve-container": ("stable-bookworm", "master"),
    "pve-guest-common": ("58ad183", "master"),
    "pve-storage": ("stable-8", "master"),
    "pve-manager": ("stable-8", "master"),
    "pve-common": ("stable-bookworm", "master"),
    "pve-cluster": ("stable-bookworm", "master"),
    "pve-ha-manager": ("stable-4", "master"),
    "pve-access-control": ("stable-bookworm", "master"),
    "pve-network": ("stable-bookworm", "master"),
    "pve-http-server": ("444a9e1", "master"),
}
VERSIONS = (8, 9)
_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_VALUE = r"[$@][\w:>{}\[\]$'()-]+"
_STATEMENT = re.compile(
    r"\b(die|raise_param_exc|raise_perm_exc|raise|croak|self->error)\b\s*\(?\s*"
    r"(?:\{[^}};]*?=>\s*|\$reqstate,\s*\w+,\s*)?"
    rf"((?:{_STRING}|{_VALUE})(?:\s*\.\s*(?:{_STRING}|{_VALUE}))*)"
)
_FUNCTION = re.compile(r"(?m)^sub (\w+)|^\s+name => '(\w+)',|^my (?:sub (\w+)|\$(\w+) = sub\b)")
#: A line that is a comment, a block of documentation, and what follows the program.
_NO_CODE = re.compile(r"(?m)^\s*#.*$|^=\w(?s:.*?)(?:^=cut$|\Z)|^__END__(?s:.*)")
_VARIABLE = re.compile(
    r"\\[n\"']|\$\{\w+\}|\$\w+(?:->)?(?:\{'?[\w-]+'?\}|->\{'?[\w-]+'?\}|\[\d\])*|\$[@!]|@\{\[.*?\]\}"
)


@dataclass(frozen=True)
class Text:
    """One error text in Proxmox's source."""

    repository: str
    file: str
    function: str
    kind: str  #: the function that raises or sends it: `die`, `raise_param_exc`, `self->error` …
    template: str  #: the text with Perl's variables

    @property
    def source(self) -> str:
        return f"{self.repository} {self.file}"

    def is_in(self, text: str) -> bool:
        """Return whether the fixed words of this text are in `text`, in their order."""
        fixed_words = [" ".join(words.split()) for words in _VARIABLE.split(self.template)]
        pattern = ".*".join(re.escape(words.replace("\\@", "@")) for words in fixed_words)
        return re.search(pattern, text) is not None


def texts_of(mirrors: Path, repository: str, commit: str) -> Iterator[Text]:
    """Yield the error texts in the Perl modules of a commit, without those of tests and simulators."""
    git = ["git", "-C", str(mirrors / f"proxmox+{repository}" / "repo")]
    names = _output(*git, "ls-tree", "-r", "--name-only", commit).split()
    for name in names:
        if not name.endswith(".pm") or re.search(r"(^|/)(test|Sim|CLI)/", name):
            continue
        source = _NO_CODE.sub("", _output(*git, "show", f"{commit}:{name}"))
        functions = [(match.start(), next(filter(None, match.groups()))) for match in _FUNCTION.finditer(source)]
        for match in _STATEMENT.finditer(source):
            function = ([name for start, name in functions if start < match.start()] or ["-"])[-1]
            template = "".join(part[1:-1] for part in re.findall(_STRING, match[2]))
            if template:
                yield Text(repository, name.removeprefix("src/"), function, match[1], template)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout


def is_reached(text: Text, unreached: dict[str, list[list[str]]]) -> bool:
    """Return whether our actions can meet the text."""
    if any(re.search(words, text.template) for words, _reason in unreached["texts"]):
        return False
    return not any(
        text.file.startswith(file) and re.fullmatch(functions, text.function)
        for file, functions, _reason in unreached[text.repository]
    )


def count_texts(mirrors: Path) -> tuple[Counter[str], Counter[str], list[Text]]:
    """Return the number of texts and of reached texts by source file, and the reached texts without a row."""
    unreached = json.loads(UNREACHED.read_text(encoding="utf-8"))
    rows: dict[str, list[str]] = {}
    for row in map(json.loads, ROWS.read_text(encoding="utf-8").splitlines()):
        for source in row["sources"]:
            rows.setdefault(source, []).append(row["text"])
    texts = {
        text
        for repository, commits in REPOSITORIES.items()
        for commit in commits
        for text in texts_of(mirrors, repository, commit)
    }
    reached = {text for text in texts if is_reached(text, unreached)}
    without_row = [text for text in reached if not any(text.is_in(row) for row in rows.get(text.source, []))]
    return Counter(text.source for text in texts), Counter(text.source for text in reached), without_row


def make_table(texts_by_source: Counter[str], reached: Counter[str]) -> str:
    """Return the counts as a table with one row for each repository, and one for each file with a reached text."""
    lines = ["| source | texts | reached | share |", "|---|---|---|---|"]
    for repository in REPOSITORIES:
        files = sorted(source for source in texts_by_source if source.startswith(f"{repository} "))
        lines.append(
            _table_row(
                f"**{repository}**", sum(texts_by_source[file] for file in files), sum(reached[file] for file in files)
            )
        )
        lines += [_table_row(f"`{file}`", texts_by_source[file], reached[file]) for file in files if reached[file]]
    lines.append(_table_row("all", texts_by_source.total(), reached.total()))
    return "\n".join(lines) + "\n"


def _table_row(source: str, total: int, reached: int) -> str:
    return f"| {source} | {total} | {reached} | {reached / total:.0%} |"


def main() -> int:
    texts_by_source, reached, without_row = count_texts(Path(sys.argv[1]))
    for text in sorted(without_row, key=lambda text: text.source):
        print(f"{text.source}: {text.function}: no row for: {text.template}")
    COUNTS.write_text(make_table(texts_by_source, reached), encoding="utf-8")
    print(f"{reached.total()} of {texts_by_source.total()} texts are reached; {len(without_row)} have no row")
    return 1 if without_row else 0


if __name__ == "__main__":
    sys.exit(main())
