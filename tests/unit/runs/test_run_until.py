"""The file with the time at which runs must end (their deadline), in each state in which a reader may find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.runs.run_until_file import RUN_UNTIL_FILE, RunUntilFile
from executor.shared.run_until import (
    NO_LIMIT,
    RECORD_BYTES,
    RUN_UNTIL_VARIABLE,
    RunDeadline,
    boottime_s,
    decode,
    encode,
    run_deadline_from_environment,
)

PAST = 1.0
FUTURE = 1e12


@pytest.fixture
def file(tmp_path: Path) -> RunUntilFile:
    return RunUntilFile(tmp_path / RUN_UNTIL_FILE)


@pytest.mark.parametrize("deadline_s", [0.0, 12.5, 86_400.125, 1e12, NO_LIMIT])
def test_a_written_deadline_is_read_and_its_file_has_a_fixed_size(file: RunUntilFile, deadline_s: float) -> None:
    file.set_deadline(FUTURE)
    file.set_deadline(deadline_s)

    content = file.path.read_bytes()
    assert decode(content) == deadline_s
    assert len(content) == 2 * RECORD_BYTES


def test_at_every_moment_of_a_write_the_file_has_the_old_or_the_new_deadline(tmp_path: Path) -> None:
    """Each write of a record may be interrupted after any number of bytes."""
    old, new = encode(123.0), encode(987_654.0)
    for written_bytes in range(2 * RECORD_BYTES + 1):
        content = (new * 2)[:written_bytes] + (old * 2)[written_bytes:]
        assert decode(content) == (987_654.0 if written_bytes >= _first_byte_after_difference(old, new) else 123.0)


def _first_byte_after_difference(old: bytes, new: bytes) -> int:
    return max(position for position in range(RECORD_BYTES) if old[position] != new[position]) + 1


@pytest.mark.parametrize("content", [b"", b"x" * 2 * RECORD_BYTES, bytes(2 * RECORD_BYTES), encode(1.0)[:-2], b"\xff"])
def test_damaged_content_has_no_deadline(content: bytes) -> None:
    assert decode(content) is None


def test_runs_must_end_after_the_deadline_in_the_file(file: RunUntilFile) -> None:
    file.set_deadline(NO_LIMIT)
    run_deadline = RunDeadline(str(file.path))
    assert not run_deadline.has_passed()

    file.set_deadline(boottime_s() + 3600)
    assert not run_deadline.has_passed()
    file.set_deadline(boottime_s() - 0.001)
    assert run_deadline.has_passed()
    file.set_deadline(NO_LIMIT)
    assert not run_deadline.has_passed()


@pytest.mark.parametrize(("deadline_s", "has_passed"), [(PAST, True), (FUTURE, False)])
@pytest.mark.parametrize("damage", ["removed", "emptied", "overwritten", "unreadable"])
def test_if_the_file_becomes_unreadable_the_last_deadline_counts(
    file: RunUntilFile, damage: str, deadline_s: float, has_passed: bool
) -> None:
    file.set_deadline(deadline_s)
    run_deadline = RunDeadline(str(file.path))
    file.path.unlink()
    if damage == "unreadable":
        file.path.mkdir()
    elif damage != "removed":
        file.path.write_bytes(b"" if damage == "emptied" else b"x" * 2 * RECORD_BYTES)

    assert run_deadline.has_passed() is has_passed


def test_a_file_that_was_never_readable_lets_no_run_continue(tmp_path: Path) -> None:
    assert RunDeadline(str(tmp_path / "missing")).has_passed()


def test_without_the_environment_variable_a_run_has_no_deadline(file: RunUntilFile) -> None:
    file.set_deadline(PAST)

    assert run_deadline_from_environment({}) is None
    assert run_deadline_from_environment({RUN_UNTIL_VARIABLE: ""}) is None
    run_deadline = run_deadline_from_environment({RUN_UNTIL_VARIABLE: str(file.path)})
    assert run_deadline is not None
    assert run_deadline.has_passed()


def test_before_a_run_a_file_that_is_missing_or_has_another_deadline_is_written_again(file: RunUntilFile) -> None:
    file.set_deadline(FUTURE)
    for damage in (file.path.unlink, lambda: file.path.write_bytes(encode(PAST) * 2)):
        damage()
        file.ensure_written()
        assert decode(file.path.read_bytes()) == FUTURE


def test_a_file_that_cannot_be_written_is_logged_once_and_lets_no_run_start(
    file: RunUntilFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.mkdir()

    file.set_deadline(FUTURE)
    file.set_deadline(FUTURE + 1)

    assert caplog.text.count("run_limit_not_written") == 1
    with pytest.raises(OSError, match="directory"):
        file.ensure_written()


def test_no_link_is_followed(file: RunUntilFile, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("foreign")
    os.symlink(target, file.path)

    file.set_deadline(FUTURE)

    assert target.read_text() == "foreign"
