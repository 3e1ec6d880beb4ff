"""Stores that the agents claim no jobs, because an operator has paused them. No function commits.

An agent that has a pending job reads the table before each claim, so an idle agent pays nothing for it. A job that is
running when the pause begins runs to its end.
"""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from executor.database.statements import insert_into
from executor.database.tables import Pause, utc_now
from executor.redaction import redactor

#: The scope of a pause of all agents that use the database.
ALL_AGENTS = "all"
#: A longer reason is cut to this length.
MAX_REASON_LENGTH = 500


def start(session: Session, *, who: str, reason: str) -> bool:
    """Pause all agents. Return False, and change nothing, if they are paused already."""
    values = {
        "scope": ALL_AGENTS,
        "since": utc_now(),
        "who": who,
        "reason": redactor.redact(reason)[:MAX_REASON_LENGTH],
    }
    stmt = insert_into(session, Pause).values(values).on_conflict_do_nothing(index_elements=["scope"])
    return session.scalar(stmt.returning(Pause.scope)) is not None


def end(session: Session) -> Pause | None:
    """End the pause. Return what it was, or None if nothing was paused."""
    pause = current(session)
    if pause is not None:
        session.execute(delete(Pause).where(Pause.scope == ALL_AGENTS))
    return pause


def current(session: Session) -> Pause | None:
    """Return the pause of all agents, or None if they are not paused."""
    return session.get(Pause, ALL_AGENTS)
