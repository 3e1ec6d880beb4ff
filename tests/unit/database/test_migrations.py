"""Each migration has exactly one successor, so that `upgrade` knows which migration is the newest."""

from __future__ import annotations

from alembic.script import ScriptDirectory

from executor.database.revisions import MIGRATIONS_FOLDER


def test_each_migration_follows_the_migration_with_the_previous_number() -> None:
    """Two branches of the code may each add a migration with the same number."""
    files = sorted((MIGRATIONS_FOLDER / "versions").glob("[0-9]*.py"))
    numbers = [file.name.partition("_")[0] for file in files]
    assert numbers == [f"{number:04}" for number in range(1, len(files) + 1)]
    scripts = list(ScriptDirectory(str(MIGRATIONS_FOLDER)).walk_revisions())
    revisions = {script.revision: script.down_revision for script in scripts}
    assert revisions == dict(zip(numbers, [None, *numbers[:-1]], strict=True))
