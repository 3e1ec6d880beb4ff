"""Databases of earlier versions, as SQL text in tests/data/databases: what an upgrade finds at a provider.

The database of each schema is recorded before a release, with jobs in flight. The files are never changed afterwards.
This command

    python tests/support/recorded_databases.py "Release 1.2.0"

records the database of the checked-out commit on both engines, and the commit (recorded_commits.py).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # for a call from a shell; pytest adds both itself

from support.database_contents import fill  # noqa: E402 (see above)
from support.databases import postgres_binaries, postgres_cluster  # noqa: E402 (see above)
from support.recorded_commits import FILE, record_head, uncommitted  # noqa: E402 (see above)

from executor.database import schema  # noqa: E402 (see above)
from executor.database.engine import open_engine  # noqa: E402 (see above)
from executor.database.revisions import head_revision  # noqa: E402 (see above)

FOLDER = TESTS / "data" / "databases"
KINDS = ("sqlite", "postgresql")
#: Lines of pg_dump that are left out: comments, which name versions, and psql's own commands.
NOT_SQL = re.compile(r"^(--|\\)")


def file_of(revision: str, kind: str) -> Path:
    """Return the file of a schema's database, of `sqlite` or `postgresql`."""
    return FOLDER / f"{revision}.{kind}.sql"


def revisions() -> list[str]:
    """Return the schemas whose databases are recorded."""
    return sorted({path.name.partition(".")[0] for path in FOLDER.glob("*.sql")})


def replay(engine: Engine, revision: str) -> None:
    """Restore a recorded database into an empty one."""
    kind = engine.dialect.name
    script = file_of(revision, kind).read_text(encoding="utf-8")
    with contextlib.closing(engine.raw_connection()) as connection:
        if kind == "sqlite":
            connection.driver_connection.executescript(script)  # type: ignore[union-attr]
        else:
            connection.cursor().execute(script)
        connection.commit()
    engine.dispose()  # the script's SET commands apply to its connection only


# --- recording --------------------------------------------------------------------------------------------------------


def record(revision: str) -> Iterator[Path]:
    """Write the files of the newest schema; yield them."""
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL's server is needed: apt install postgresql")
    with tempfile.TemporaryDirectory() as folder:
        yield _write(revision, "sqlite", _sqlite_script(f"sqlite:///{folder}/smith.db"))
    with postgres_cluster(binaries) as cluster, cluster.fresh_database("template0") as url:
        _open_filled_database(url).dispose()
        options = ["--inserts", "--no-owner", "--no-privileges", "--host", cluster.folder, "--username=smith"]
        dump = [binaries / "pg_dump", *options, url.rpartition("/@/")[2].partition("?")[0].rpartition("/")[2]]
        done = subprocess.run(dump, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line and not NOT_SQL.match(line)]
        yield _write(revision, "postgresql", "\n".join(lines))


def _sqlite_script(url: str) -> str:
    engine = _open_filled_database(url)
    with contextlib.closing(engine.raw_connection()) as connection:
        lines = list(connection.driver_connection.iterdump())  # type: ignore[union-attr]
    engine.dispose()
    return "\n".join(lines)


def _open_filled_database(url: str) -> Engine:
    engine = open_engine(url)
    schema.upgrade(engine)
    fill(engine)
    return engine


def _write(revision: str, kind: str, script: str) -> Path:
    file = file_of(revision, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script + "\n", encoding="utf-8")
    return file


def _reason_to_refuse(revision: str) -> str:
    """Return why this schema cannot be recorded now, '' if it can."""
    if revision in revisions():
        return f"schema {revision} is recorded, and recorded databases are not changed"
    if changed := uncommitted("executor"):
        return "the recorded commit must have the code that wrote the database; commit first:\n" + "\n".join(changed)
    return ""


def main(arguments: list[str]) -> None:
    """Record the checked-out commit and its database; print the files."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit('usage: recorded_databases.py DESCRIPTION   what the commit is, such as "Release 1.2.0"')
    revision = head_revision()
    if reason := _reason_to_refuse(revision):
        raise SystemExit(reason)
    written = list(record(revision))
    record_head(revision, arguments[0])
    for file in (*written, FILE):
        print(file.relative_to(TESTS.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
