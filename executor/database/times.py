"""Defines the type of columns that contain times, and two clocks: `utc_now` and `db_now`.

`utc_now` is the clock of this machine, and `db_now` is the clock of the database.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Float, SQLColumnExpression, TypeDecorator, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class UtcDateTime(TypeDecorator[datetime]):
    """A column type for UTC times. SQLite stores no time zone, so this type adds UTC to each value that is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time to UTC before it is stored. Raises ValueError for a time without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        utc_value = value.astimezone(UTC)
        return utc_value.replace(tzinfo=None) if dialect.name == "sqlite" else utc_value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time that was read from the database to UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):
    """An SQL expression: the time of the database's clock plus `offset_s` seconds (a number, or an SQL expression).

    Leases use the database's clock, because the clocks of several agent processes may differ.
    """

    type = UtcDateTime()
    inherit_cache = True  # the offset is a bound parameter, so SQLAlchemy compiles a statement once for all offsets

    def __init__(self, offset_s: float | SQLColumnExpression[float] = 0.0) -> None:
        if isinstance(offset_s, int | float):
            super().__init__(literal(float(offset_s), Float()))
        else:
            super().__init__(offset_s)


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: Any, **kw: Any) -> str:
    # On SQLite, SQLAlchemy stores a DateTime as text, with six digits after the decimal point. `%f` writes only three
    # digits, so three zeros follow. SQLite compares the texts, which have the same order as the times.
    offset_s = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {offset_s}))"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: Any, **kw: Any) -> str:
    offset_s = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {offset_s}))"


def utc_now() -> datetime:
    """Return the time of this machine's clock. Times that several agent processes compare use `db_now` instead."""
    return datetime.now(UTC)
