"""Check that all files state the same version of the project, and print this version: versions.py.

The wheels of the executor and of the lab, the collection and the image have the same version. deploy/image/lib.sh reads
the image's version from pyproject.toml. If the versions differ, the script prints each of them, and the exit code is 1.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parent.parent


def read_versions(project: Path) -> dict[str, str]:
    """Return the version that each place states, by the name of the place."""
    executor = _read_project_table(project / "pyproject.toml")
    lab = _read_project_table(project / "lab" / "pyproject.toml")
    galaxy = yaml.safe_load((project / "galaxy.yml").read_text("utf-8"))
    executor_pins = [found[1] for text in lab["dependencies"] if (found := re.fullmatch(r"agent-smith==(.+)", text))]
    return {
        "pyproject.toml": executor["version"],
        "lab/pyproject.toml": lab["version"],
        "the executor that lab/pyproject.toml needs": executor_pins[0] if executor_pins else "not pinned",
        "galaxy.yml": str(galaxy["version"]),
    }


def _read_project_table(file: Path) -> dict:
    return tomllib.loads(file.read_text("utf-8"))["project"]


def main() -> int:
    """Print the version, and return 0. If the versions differ, print all to standard error, and return 1."""
    versions = read_versions(PROJECT)
    if len(set(versions.values())) > 1:
        print("the versions differ:", file=sys.stderr)
        for place, version in versions.items():
            print(f"  {version:12} {place}", file=sys.stderr)
        return 1
    print(versions["pyproject.toml"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
