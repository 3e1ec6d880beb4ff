"""Whether warm runs are possible here: Linux, a tested ansible-core, and each name of `patches` in the packages."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from executor.runs.warm import patches


def is_tested(version: str) -> bool:
    """True for a release, not a preview, of a tested series."""
    series, _, patch = version.rpartition(".")
    return series in patches.TESTED and patch.isdigit()


def why_untested() -> str:
    """Return why warm runs are not possible on this machine, or nothing."""
    if sys.platform != "linux":
        return "warm runs need Linux"
    from importlib import metadata  # noqa: PLC0415  10 ms that the servers do without

    try:
        return why_unsupported(metadata.version("ansible-core"))
    except metadata.PackageNotFoundError:
        return "ansible-core is not installed beside the agent"


def why_unsupported(version: str) -> str:
    """Return why warm runs are not possible with this ansible-core, the installed one, or nothing."""
    if not is_tested(version):
        return f"ansible-core {version} was not tested with warm runs: {', '.join(patches.TESTED)} were"
    missing = next(_missing(version.rpartition(".")[0]), None)
    return f"{missing.module} has no {missing.name} any more, which warm runs need" if missing else ""


def _missing(series: str) -> Iterator[patches.PrivateName]:
    read = cache(read_source)
    return (name for name in patches.NAMES if series in name.versions and not name.is_defined(read))


def read_source(file: str) -> str:
    """Return the text of a file of an installed package; empty when there is none."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            return Path(root, rest).read_text(encoding="utf-8")
    return ""
