"""Look-ups and constraints that several tables share. A violated constraint is a 500, as in the real server."""

from __future__ import annotations

from typing import Any

from smith_lab.simulator.problems import bad_request, internal, not_found
from smith_lab.simulator.rows import Json
from smith_lab.simulator.web import Call


def find(table: dict[str, Any], call: Call) -> Any:
    """Return a row of a table without scopes. An unknown id is a 404; tables with scopes answer 403."""
    row = table.get(call.id)
    if row is None:
        raise not_found()
    return row


def refuse_duplicate(table: dict[str, Any], row: Any, member: str = "name") -> None:
    taken = any(getattr(other, member) == getattr(row, member) and other.id != row.id for other in table.values())
    if taken:
        raise internal(f"duplicate key value violates unique constraint on {member} (SQLSTATE 23505)")


def refuse_if_in_use(used: bool) -> None:
    if used:
        raise internal("update or delete on table violates foreign key constraint (SQLSTATE 23503)")


def required_name(body: Json) -> str:
    name = body.get("name", "")
    if not name:
        raise bad_request("name cannot be empty")
    return str(name)
