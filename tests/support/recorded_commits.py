"""The commits whose databases are recorded, so that a test can install exactly such a version from git's history.

`tests/data/recorded_commits.json` has an object per recorded schema: the commit, its schema's revision, the day it was
committed, and a line that says what it is.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FILE = PROJECT / "tests" / "data" / "recorded_commits.json"


class CommitMissing(Exception):
    """The commit is not in this clone. If its history is complete, the file probably names a wrong commit."""

    def __init__(self, message: str, *, history_is_complete: bool) -> None:
        super().__init__(message)
        self.history_is_complete = history_is_complete


@dataclass(frozen=True, kw_only=True)
class RecordedCommit:
    """A version whose database is recorded."""

    schema: str  #: the newest revision of its migrations
    commit: str  #: the full hash
    date: str  #: when it was committed, YYYY-MM-DD
    description: str


def recorded_commits() -> list[RecordedCommit]:
    """Return every recorded commit, the oldest schema first."""
    return [RecordedCommit(**entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))]


def recorded_commit(schema: str) -> RecordedCommit:
    """Return the commit whose database is recorded for a schema."""
    return next(recorded for recorded in recorded_commits() if recorded.schema == schema)


def export_tree(commit: str, folder: Path) -> None:
    """Write the commit's files into `folder`, without a repository. Raises CommitMissing."""
    require_commit(commit)
    archive = _git("archive", "--format=tar", commit).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def require_commit(commit: str, project: Path = PROJECT) -> None:
    """Raise CommitMissing, with what to do, unless the clone's history has the commit."""
    shallow = _git("rev-parse", "--is-shallow-repository", project=project)
    if shallow.returncode != 0:
        raise CommitMissing(f"{project} is not a git clone: {_error(shallow)}", history_is_complete=False)
    if _git("cat-file", "-e", f"{commit}^{{commit}}", project=project).returncode == 0:
        return
    if shallow.stdout.strip() == b"true":
        message = f"commit {commit} is not in this shallow clone: run `git fetch --unshallow`"
        raise CommitMissing(message, history_is_complete=False)
    message = f"commit {commit} is not in this clone's history: {FILE.name} is wrong, or `git fetch` is needed"
    raise CommitMissing(message, history_is_complete=True)


def committed_on(commit: str) -> str:
    """Return the day of the commit, YYYY-MM-DD."""
    return _git("show", "--no-patch", "--format=%cs", commit).stdout.decode().strip()


def record_head(schema: str, description: str) -> RecordedCommit:
    """Add the checked-out commit to the file as the one of `schema`."""
    commit = _git("rev-parse", "HEAD").stdout.decode().strip()
    entry = RecordedCommit(schema=schema, commit=commit, date=committed_on(commit), description=description)
    others = [recorded for recorded in recorded_commits() if recorded.schema != schema] if FILE.exists() else []
    entries = sorted([*others, entry], key=lambda recorded: recorded.schema)
    text = json.dumps([asdict(recorded) for recorded in entries], indent=2, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
    return entry


def uncommitted(folder: str) -> list[str]:
    """Return the files of a folder that differ from the checked-out commit."""
    return _git("status", "--porcelain", "--", folder).stdout.decode().splitlines()


def _git(*arguments: str, project: Path = PROJECT) -> subprocess.CompletedProcess[bytes]:
    command = ["git", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise CommitMissing("git is not installed", history_is_complete=False) from error


def _error(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode(errors="replace").strip()
