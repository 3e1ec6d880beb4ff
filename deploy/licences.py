"""Check that the licences of the installed Python distributions are accepted: licences.py [--list].

An operator installs agent-smith with its extras `postgres` and `collections`. All distributions for an operator must
have a permissive or a weak-copyleft licence, or the GPL if the distribution runs as a process of its own. Distributions
that only developers and users of the lab install may have a licence of any known kind, also the AGPL. The exit code is
1 if a licence is not accepted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

#: The distributions that an operator installs, as pairs of name and extra ('' for no extra).
ROOTS_FOR_OPERATORS = (("agent-smith", ""), ("agent-smith", "postgres"), ("agent-smith", "collections"))
#: The distributions that developers and users of the lab install, as pairs of name and extra.
ROOTS_FOR_DEVELOPERS = (("agent-smith", "dev"), ("agent-smith-lab", ""))
#: The distributions of this project, whose licences are not checked.
OUR_DISTRIBUTIONS = ("agent-smith", "agent-smith-lab")

#: The kinds of licences, each with a regular expression for its names. The first match counts.
LICENCE_KINDS = (
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
#: The kinds that are accepted for every distribution that an operator installs.
ACCEPTED_KINDS = frozenset({"permissive", "mpl"})
#: The licence kinds that are accepted for one distribution only. Maps the distribution and the kind to the reason.
ACCEPTED_EXCEPTIONS = {
    (
        "ansible-core",
        "gpl",
    ): "runs as processes of its own; our code in these processes is under Apache-2.0, which is compatible",
    ("ansible", "gpl"): "contains community.proxmox, which runs in the processes of ansible-core",
    ("psycopg", "lgpl"): "a library, used unchanged and replaceable",
    ("psycopg-binary", "lgpl"): "a library, used unchanged and replaceable",
}
#: For each distribution whose metadata contain no licence: the kind of its licence, and where the licence is stated.
LICENCES_NOT_IN_METADATA: dict[str, tuple[str, str]] = {}


def installed_dependencies(roots: tuple[tuple[str, str], ...]) -> dict[str, Distribution]:
    """Return the installed direct and indirect dependencies of the roots by name, without OUR_DISTRIBUTIONS."""
    distribution_by_name: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(roots)
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution_by_name[name] = distribution(name)
        except PackageNotFoundError:
            continue  # only an extra that is not installed needs this distribution
        for text in distribution_by_name[name].requires or ():
            queue += _required_distributions(Requirement(text), extra)
    return {name: installed for name, installed in distribution_by_name.items() if name not in OUR_DISTRIBUTIONS}


def _required_distributions(requirement: Requirement, extra: str) -> Iterator[tuple[str, str]]:
    """If the requirement applies with the extra `extra`, yield the required distribution as pairs of name and extra."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
        for required_extra in ("", *requirement.extras):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower(), required_extra


def licence_kinds_of(name: str, installed: Distribution) -> set[str]:
    """Return the kinds of a distribution's licences. Of licences joined by OR, the most permissive counts."""
    if name in LICENCES_NOT_IN_METADATA:
        return {LICENCES_NOT_IN_METADATA[name][0]}
    text = _licence_text(installed)
    choices = [
        {_licence_kind(part) for part in re.split(r"\band\b|,|;", choice)}
        for choice in re.split(r"\bor\b(?! later)", text)
    ]
    return min(choices, key=lambda kinds: len(kinds - ACCEPTED_KINDS))


def _licence_text(installed: Distribution) -> str:
    metadata = installed.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression).lower()
    classifiers = [
        line.rpartition("::")[2].strip() for line in metadata.get_all("Classifier", []) if "License ::" in line
    ]
    classifiers = [name for name in classifiers if name not in ("OSI Approved", "DFSG approved")]
    return " and ".join(classifiers or [str(metadata.get("License") or "").split("\n")[0]]).lower()


def _licence_kind(text: str) -> str:
    return next(
        (kind for kind, pattern in LICENCE_KINDS if re.search(pattern, text)),
        f"unknown ({text.strip() or 'not given'})",
    )


def unaccepted_licences() -> list[str]:
    """Return a line for each licence that is not accepted. For developers, each licence of a known kind is accepted."""
    lines = []
    for name, installed in sorted(installed_dependencies(ROOTS_FOR_OPERATORS).items()):
        for kind in sorted(licence_kinds_of(name, installed) - ACCEPTED_KINDS):
            if (name, kind) not in ACCEPTED_EXCEPTIONS:
                lines.append(f"{name} {installed.version}: {kind}, which is not accepted")
    for name, installed in sorted(installed_dependencies(ROOTS_FOR_DEVELOPERS).items()):
        kinds = licence_kinds_of(name, installed)
        lines += [f"{name} {installed.version}: {kind}" for kind in kinds if kind.startswith("unknown")]
    return lines


def main(arguments: list[str]) -> int:
    """Print the licences that are not accepted; with --list, print all licences."""
    if "--list" in arguments:
        for roots in (ROOTS_FOR_OPERATORS, ROOTS_FOR_DEVELOPERS):
            for name, installed in sorted(installed_dependencies(roots).items()):
                print(f"{name:32}{installed.version:16}{', '.join(sorted(licence_kinds_of(name, installed)))}")
        return 0
    lines = unaccepted_licences()
    count = len(installed_dependencies(ROOTS_FOR_OPERATORS))
    print("\n".join(lines) or f"the licences of all {count} distributions that an operator installs are accepted")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
