"""Lists the revisions of the database's schema that this program contains. Each migration creates one revision.

The name of a migration's file begins with its revision, a number such as `0001`. The highest number is the newest
revision. A test checks that Alembic finds the same revisions. This module does not import Alembic, because the import
takes 0.1 s.
"""

from __future__ import annotations

from pathlib import Path

#: The folder of the Alembic migrations.
MIGRATIONS_FOLDER = Path(__file__).parent / "migrations"


def revisions_of_this_program() -> frozenset[str]:
    """Return the revisions of the schema that this program contains."""
    return frozenset(file.name.partition("_")[0] for file in (MIGRATIONS_FOLDER / "versions").glob("[0-9]*.py"))


def head_revision() -> str:
    """Return the newest revision of the schema that this program contains."""
    return max(revisions_of_this_program())
