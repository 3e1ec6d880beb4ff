"""Finds rows, checks names, and checks database constraints.

A `Call` is an HTTP request whose token the simulator has checked. As in FulcrumCore, the simulator answers 500 if a
request violates a database constraint.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.problems import bad_request, internal_error, not_found
from smith_lab.simulator.rows import Json
from smith_lab.simulator.web import Call


def find_row_or_404(table: dict[str, Any], call: Call) -> Any:
    """Return the row with the id in the call's path. Raises a 404 for an unknown id.

    An endpoint that checks the row's owner answers 403 to an unknown id. So it does not call this function.
    """
    row = table.get(call.id)
    if row is None:
        raise not_found()
    return row


def refuse_duplicate(table: dict[str, Any], row: Any, member: str = "name") -> None:
    """Raise a 500 if another row has the same value in this member."""
    other_rows = [other for other in table.values() if other.id != row.id]
    if any(getattr(other, member) == getattr(row, member) for other in other_rows):
        raise internal_error(f"duplicate key value violates unique constraint on {member} (SQLSTATE 23505)")


def refuse_if_in_use(is_in_use: bool) -> None:
    """Raise a 500 if other rows refer to the row that the caller wants to delete (`is_in_use`)."""
    if is_in_use:
        raise internal_error("update or delete on table violates foreign key constraint (SQLSTATE 23503)")


def require_name(body: Json) -> str:
    """Return the member `name` of the body. Raises a 400 if it is missing or empty."""
    name = body.get("name", "")
    if not name:
        raise bad_request("name cannot be empty")
    return str(name)
