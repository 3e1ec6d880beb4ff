"""The file that names, for each recorded database, the commit that wrote it; and the export of such a commit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from support.recorded_commits import (
    PROJECT,
    CommitMissing,
    RecordedCommit,
    committed_on,
    export_tree,
    recorded_commit,
    recorded_commits,
    require_commit,
)
from support.recorded_databases import revisions

UNKNOWN = "0123456789" * 4
#: The schemas whose databases were recorded before the file of the commits existed.
WITHOUT_COMMIT = {"0001"}


@pytest.fixture(params=recorded_commits(), ids=lambda recorded: recorded.schema)
def recorded(request: pytest.FixtureRequest) -> RecordedCommit:
    """Return a recorded commit that this clone has. A clone with its complete history must have all of them."""
    commit_of_schema: RecordedCommit = request.param
    try:
        require_commit(commit_of_schema.commit)
    except CommitMissing as missing:
        if missing.history_is_complete:
            raise
        pytest.skip(f"NOT TESTED: {missing}")
    return commit_of_schema


def test_the_export_of_a_recorded_commit_has_the_schema_and_the_date_that_the_file_names(
    recorded: RecordedCommit, tmp_path: Path
) -> None:
    export_tree(recorded.commit, tmp_path)
    assert (tmp_path / "pyproject.toml").is_file()
    assert not (tmp_path / ".git").exists()
    (migrations,) = tmp_path.glob("executor/**/migrations")
    assert ScriptDirectory(str(migrations)).get_current_head() == recorded.schema
    assert committed_on(recorded.commit) == recorded.date


def test_each_recorded_database_has_its_commit_with_a_full_hash_and_a_description() -> None:
    assert {recorded.schema for recorded in recorded_commits()} == set(revisions()) - WITHOUT_COMMIT
    for recorded in recorded_commits():
        assert recorded_commit(recorded.schema) == recorded, "one commit per schema"
        assert len(recorded.commit) == 40, "a short hash can become ambiguous"
        assert set(recorded.commit) <= set("0123456789abcdef")
        assert recorded.description.strip()


def test_if_a_complete_clone_does_not_have_a_commit_the_file_is_wrong(tmp_path: Path) -> None:
    clone = _repository(tmp_path)
    with pytest.raises(CommitMissing, match=rf"{UNKNOWN} is not in this clone's history.*is wrong") as raised:
        require_commit(UNKNOWN, clone)
    assert raised.value.history_is_complete


def test_a_shallow_clone_says_how_to_get_the_commit(tmp_path: Path) -> None:
    source = _repository(tmp_path)
    shallow = tmp_path / "shallow"
    _git("clone", "--quiet", "--depth=1", source.as_uri(), str(shallow), folder=tmp_path)
    with pytest.raises(CommitMissing, match="not in this shallow clone: run `git fetch --unshallow`") as raised:
        require_commit(UNKNOWN, shallow)
    assert not raised.value.history_is_complete


def test_a_source_archive_has_no_history(tmp_path: Path) -> None:
    with pytest.raises(CommitMissing, match="is not a git clone: fatal: not a git repository") as raised:
        require_commit(UNKNOWN, tmp_path)
    assert not raised.value.history_is_complete


def _repository(folder: Path) -> Path:
    """Create a git repository with two commits; return its folder."""
    repository = folder / "source"
    repository.mkdir()
    _git("init", "--quiet", folder=repository)
    shutil.copy(PROJECT / "LICENSE", repository)
    for message in ("Add a licence", "Change nothing"):
        _git("add", "--all", folder=repository)
        author = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
        _git(*author, "commit", "--quiet", "--allow-empty", "--message", message, folder=repository)
    return repository


def _git(*arguments: str, folder: Path) -> None:
    subprocess.run([shutil.which("git") or "git", *arguments], cwd=folder, check=True, capture_output=True)
