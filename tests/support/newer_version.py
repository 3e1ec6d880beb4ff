"""A newer version of this project for tests: this one, with one migration that only the tests have."""

from __future__ import annotations

import shutil
from pathlib import Path

from executor.database import revisions

PROJECT = Path(__file__).resolve().parents[2]
REVISION = "9999"
MIGRATION = '''"""Add a column that this version does not know."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("unknown", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "unknown")
'''


def newer_migrations(folder: Path) -> Path:
    """Create the folder with the migrations of the newer version; return it."""
    shutil.copytree(revisions.MIGRATIONS_FOLDER, folder)
    text = MIGRATION.format(revision=REVISION, head=revisions.head_revision())
    (folder / "versions" / f"{REVISION}_unknown.py").write_text(text)
    return folder


def newer_project(folder: Path) -> Path:
    """Create a folder with links to the files of this project, and with the newer migrations; return it."""
    _link_all(PROJECT, folder, except_for="executor")
    _link_all(PROJECT / "executor", folder / "executor", except_for="database")
    _link_all(PROJECT / "executor" / "database", folder / "executor" / "database", except_for="migrations")
    newer_migrations(folder / "executor" / "database" / "migrations")
    return folder


def _link_all(source: Path, folder: Path, *, except_for: str) -> None:
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in (except_for, "__pycache__"):
            (folder / path.name).symlink_to(path)
