"""Compare the licences of installed distributions with the accepted ones: licences.py [--list]. Exit code 0 or 1.

What an operator installs (agent-smith and its extras `postgres` and `collections`) may only be under permissive and
weak-copyleft licences, and under the GPL where it runs as a process of its own. The AGPL is accepted in the lab only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

#: Distribution and extra: what an operator installs.
SHIPPED = (("agent-smith", ""), ("agent-smith", "postgres"), ("agent-smith", "collections"))
#: Distribution and extra: what developers and users of the lab install.
OTHER = (("agent-smith", "dev"), ("agent-smith-lab", ""))
OURS = ("agent-smith", "agent-smith-lab")

#: Kinds of licences, and the words that identify each; the first match counts.
KINDS = (
    ("agpl", r"\bagpl|affero"),
    ("lgpl", r"\blgpl|lesser general public|library or lesser"),
    ("gpl", r"\bgpl|general public"),
    ("mpl", r"\bmpl|mozilla public"),
    (
        "permissive",
        r"\bapache|\bmit\b|\bbsd\b|\bisc\b|\bpsf|python software foundation|unlicense|public domain|\bcc0|0bsd|zlib"
        r"|zope|\bwtfpl|\bblueoak",
    ),
)
#: Kinds that are accepted for every distribution that an operator installs.
FREE = frozenset({"permissive", "mpl"})
#: A kind that is accepted for one distribution that an operator installs, with the reason.
EXCEPTIONS = {
    (
        "ansible-core",
        "gpl",
    ): "runs as processes of its own; our code in them is Apache-2.0, compatible with it",
    ("ansible", "gpl"): "contains the collection, which runs in those processes",
    ("psycopg", "lgpl"): "a library, used unchanged and replaceable",
    ("psycopg-binary", "lgpl"): "a library, used unchanged and replaceable",
}
#: Kind and source for distributions whose metadata lack a licence.
KNOWN: dict[str, tuple[str, str]] = {}


def closure(roots: tuple[tuple[str, str], ...]) -> dict[str, Distribution]:
    """Return every installed distribution that the roots depend on, directly or not, without our own two."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(roots)
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # the extra is not installed
        queue += [step for text in found[name].requires or () for step in _steps(Requirement(text), extra)]
    return {name: installed for name, installed in found.items() if name not in OURS}


def _steps(requirement: Requirement, extra: str) -> Iterator[tuple[str, str]]:
    if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
        for wanted in ("", *requirement.extras):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower(), wanted


def kinds_of(name: str, found: Distribution) -> set[str]:
    """Return the kinds of a distribution's licence. Of alternatives joined by OR, the most permissive counts."""
    if name in KNOWN:
        return {KNOWN[name][0]}
    text = _licence_text(found)
    choices = [
        {_kind(part) for part in re.split(r"\band\b|,|;", choice)} for choice in re.split(r"\bor\b(?! later)", text)
    ]
    return min(choices, key=lambda kinds: len(kinds - FREE))


def _licence_text(found: Distribution) -> str:
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression).lower()
    classifiers = [
        line.rpartition("::")[2].strip() for line in metadata.get_all("Classifier", []) if "License ::" in line
    ]
    classifiers = [name for name in classifiers if name not in ("OSI Approved", "DFSG approved")]
    return " and ".join(classifiers or [str(metadata.get("License") or "").split("\n")[0]]).lower()


def _kind(text: str) -> str:
    return next(
        (kind for kind, pattern in KINDS if re.search(pattern, text)), f"unknown ({text.strip() or 'not given'})"
    )


def problems() -> list[str]:
    """Return a line for each licence that is not accepted."""
    shipped, other = closure(SHIPPED), closure(OTHER)
    lines = []
    for name, found in sorted(shipped.items()):
        for kind in sorted(kinds_of(name, found) - FREE):
            if (name, kind) not in EXCEPTIONS:
                lines.append(f"{name} {found.version} is {kind}, which is not accepted")
    for name, found in sorted(other.items()):
        lines += [f"{name} {found.version}: {kind}" for kind in kinds_of(name, found) if kind.startswith("unknown")]
    return lines


def main(arguments: list[str]) -> int:
    """Print the licences that are not accepted, or with --list all."""
    if "--list" in arguments:
        for roots in (SHIPPED, OTHER):
            for name, found in sorted(closure(roots).items()):
                print(f"{name:32}{found.version:16}{', '.join(sorted(kinds_of(name, found)))}")
        return 0
    found = problems()
    print("\n".join(found) or f"{len(closure(SHIPPED))} distributions that an operator installs: all accepted")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
