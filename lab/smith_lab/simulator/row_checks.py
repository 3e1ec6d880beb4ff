"""Finds rows and checks constraints for several tables. As in FulcrumCore, a violated constraint is answered 500."""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.problems import bad_request, internal, not_found
from smith_lab.simulator.rows import Json
from smith_lab.simulator.web import Call


def find_row(table: dict[str, Any], call: Call) -> Any:
    """Return the row with the id in the call's path. Raises a 404 for an unknown id.

    Endpoints with a scope do not need this function, because an unknown id has no scope and is answered 403.
    """
    row = table.get(call.id)
    if row is None:
        raise not_found()
    return row


def refuse_duplicate(table: dict[str, Any], row: Any, member: str = "name") -> None:
    """Raise a 500 if another row has the same value in this member."""
    taken = any(getattr(other, member) == getattr(row, member) and other.id != row.id for other in table.values())
    if taken:
        raise internal(f"duplicate key value violates unique constraint on {member} (SQLSTATE 23505)")


def refuse_if_in_use(used: bool) -> None:
    """Raise a 500 if the row that the caller wants to delete is used, which means that other rows refer to it."""
    if used:
        raise internal("update or delete on table violates foreign key constraint (SQLSTATE 23503)")


def require_name(body: Json) -> str:
    """Return the name in the body. Raises a 400 if it is missing or empty."""
    name = body.get("name", "")
    if not name:
        raise bad_request("name cannot be empty")
    return str(name)
