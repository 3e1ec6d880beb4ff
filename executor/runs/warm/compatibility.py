"""Checks whether warm runs are possible: on Linux, with a tested ansible-core that has all names of `patches`.

A warm run is forked by a server that has already imported Ansible; a cold run is a new ansible-playbook process.
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
    """True for a final release of a tested series of ansible-core, such as 2.19; False for a preview."""
    series, _, patch = version.rpartition(".")
    return series in patches.TESTED and patch.isdigit()


def why_unavailable() -> str:
    """Return why warm runs are not possible on this machine; '' if they are."""
    if sys.platform != "linux":
        return "warm runs need Linux"
    from importlib import metadata  # noqa: PLC0415  takes 10 ms, and the servers do not need it

    try:
        return why_unsupported(metadata.version("ansible-core"))
    except metadata.PackageNotFoundError:
        return "ansible-core is not installed beside the agent"


def why_unsupported(version: str) -> str:
    """Return why warm runs are not possible with this version, the installed ansible-core; '' if they are."""
    if not is_tested(version):
        return f"ansible-core {version} was not tested with warm runs: {', '.join(patches.TESTED)} were"
    missing = next(_missing(version.rpartition(".")[0]), None)
    return f"{missing.module} has no {missing.name} any more, which warm runs need" if missing else ""


def _missing(series: str) -> Iterator[patches.PrivateName]:
    """Return the names of `patches` for this series that the installed packages lack."""
    read = cache(read_source)
    return (name for name in patches.NAMES if series in name.versions and not name.is_defined(read))


def read_source(file: str) -> str:
    """Return the text of a file of an installed package; '' when there is no such file."""
    package, _, path = file.partition("/")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            return Path(root, path).read_text(encoding="utf-8")
    return ""
