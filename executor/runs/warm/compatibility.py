"""Checks whether warm runs are possible on this machine.

A warm run is a fork of the playbook server, a process that has already imported Ansible. A cold run is a new
ansible-playbook process. Warm runs need Linux, a tested release of ansible-core, and some private names of Ansible and
other projects. A private name is a function, class or variable that is not part of a public API, so that another
release may lack it. The module `patches` lists the private names and the tested releases.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from executor.runs.warm import patches


def is_version_tested(version: str) -> bool:
    """True if this version of ansible-core is a final release of a tested series. Version 2.19.0rc1 is not final."""
    series, _, patch_number = version.rpartition(".")
    return series in patches.TESTED_SERIES and patch_number.isdigit()


def why_warm_runs_unavailable() -> str:
    """Return why warm runs are not possible on this machine; '' if they are."""
    if sys.platform != "linux":
        return "warm runs need Linux"
    # Imported here, because the import takes 10 ms, and the playbook server, which imports `compatibility`, does not
    # need `metadata`.
    from importlib import metadata  # noqa: PLC0415

    try:
        return why_release_unsupported(metadata.version("ansible-core"))
    except metadata.PackageNotFoundError:
        return "ansible-core is not installed in the agent's Python environment"


def why_release_unsupported(version: str) -> str:
    """Return why warm runs are not possible with the installed ansible-core; '' if they are.

    `version` is the version of the installed ansible-core.
    """
    if not is_version_tested(version):
        tested_series = ", ".join(patches.TESTED_SERIES)
        return f"ansible-core {version} was not tested with warm runs (tested series: {tested_series})"
    series = version.rpartition(".")[0]
    missing_name = next(_find_missing_names(series), None)
    if missing_name is None:
        return ""
    return (
        f"warm runs need the name {missing_name.name} in the Python module {missing_name.module}, "
        "but the installed version of this module lacks it"
    )


def _find_missing_names(series: str) -> Iterator[patches.PrivateName]:
    """Return the names that warm runs need with this series of ansible-core, and that no installed file defines.

    `is_defined` searches the text of a file for the definition of the name. Nothing is imported.
    """
    read_file_once = cache(read_package_file)
    names_of_series = (name for name in patches.PRIVATE_NAMES if series in name.series)
    return (name for name in names_of_series if not name.is_defined(read_file_once))


def read_package_file(file: str) -> str:
    """Return the text of a file of an installed package; '' when the file does not exist.

    `file` begins with the name of the package, as in `ansible/release.py`.
    """
    package, _, path = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""
    for folder in spec.submodule_search_locations or []:
        with contextlib.suppress(OSError):
            return Path(folder, path).read_text(encoding="utf-8")
    return ""
