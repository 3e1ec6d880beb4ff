"""Texts in the results of runs, which each database must be able to store."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.databases import row, submit
from support.run_events import early, failed, read

from executor.database import job_queue
from executor.database.engine import transaction


@pytest.mark.parametrize("words", ["nul\x00", "half \ud800 a character", "\x1b[31mred", "two\nlines", "\u202eevil"])
def test_an_error_text_with_unprintable_characters_is_stored_in_printable_form(
    tmp_path: Path, engine: Engine, words: str
) -> None:
    """No database stores a NUL or half a character. If a result contained one, the job could never be finished."""
    job_id = submit(engine)
    result = read(tmp_path, early(name=words), failed(f"VM_STATE: {words}"))
    with transaction(engine) as session:
        job = job_queue.claim(session, "me", lease_s=30)
        assert job is not None
        job_queue.finish(session, job_queue.lease_of(job), result)
    stored = str(row(engine, job_id).error_message)
    assert stored.isprintable()
    assert stored.startswith("VM_STATE: ")
