"""Checks whether warm runs are possible: they need Linux and a tested ansible-core with all names of `patches`.

A warm run is a fork of a server process that has already imported Ansible. A cold run is a new ansible-playbook
process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from executor.runs.warm import patches


def is_tested(version: str) -> bool:
    """True if this version of ansible-core is a final release of a tested series: 2.19.3 is one, 2.19.0rc1 is not."""
    series, _, patch = version.rpartition(".")
    return series in patches.TESTED and patch.isdigit()


def why_unavailable() -> str:
    """Return why warm runs are not possible on this machine; '' if they are."""
    if sys.platform != "linux":
        return "warm runs need Linux"
    from importlib import metadata  # noqa: PLC0415  the import takes 10 ms; the servers do not need it

    try:
        return why_unsupported(metadata.version("ansible-core"))
    except metadata.PackageNotFoundError:
        return "ansible-core is not installed beside the agent"


def why_unsupported(version: str) -> str:
    """Return why warm runs are not possible with the installed ansible-core; '' if they are.

    `version` is the version of the installed ansible-core.
    """
    if not is_tested(version):
        return f"ansible-core {version} was not tested with warm runs: {', '.join(patches.TESTED)} were"
    missing = next(_missing(version.rpartition(".")[0]), None)
    return f"{missing.module} has no {missing.name} any more, which warm runs need" if missing else ""


def _missing(series: str) -> Iterator[patches.PrivateName]:
    """Return the names in `patches.NAMES` that this series of ansible-core should have, but that are not installed."""
    read = cache(read_source)
    return (name for name in patches.NAMES if series in name.versions and not name.is_defined(read))


def read_source(file: str) -> str:
    """Return the text of a file of an installed package; '' when the file does not exist.

    `file` begins with the name of the package, as in `ansible/release.py`.
    """
    package, _, path = file.partition("/")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            return Path(root, path).read_text(encoding="utf-8")
    return ""
