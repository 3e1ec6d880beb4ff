"""Which Ansible the warm runs were compared with, event by event (tests/integration/test_warm.py)."""

from __future__ import annotations

#: Releases of ansible-core by their first two numbers. Its insides move between them; others run cold.
TESTED = ("2.19", "2.21")


def is_tested(version: str) -> bool:
    """True for a release, not a preview, of a tested series."""
    return version.rpartition(".")[0] in TESTED and version.rpartition(".")[2].isdigit()
