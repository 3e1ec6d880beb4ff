"""The tables for SQLAlchemy Core: they agree with the classes of the ORM, and reading commands import no ORM."""

from __future__ import annotations

import pytest
from sqlalchemy import TableClause

from executor.database import core_tables
from executor.database.core_tables import ReadRow
from executor.database.tables.all_tables import METADATA

CORE_TABLES = [value for value in vars(core_tables).values() if isinstance(value, TableClause)]


def columns(table: TableClause) -> dict[str, type]:
    """Return the kind of type of each column."""
    return {column.name: column.type._type_affinity for column in table.c}


@pytest.mark.parametrize("table", CORE_TABLES, ids=lambda table: table.name)
def test_a_table_has_the_columns_of_the_class_that_changes_its_rows(table: TableClause) -> None:
    assert columns(table) == columns(METADATA.tables[table.name])


def test_an_attribute_of_a_read_row_cannot_be_changed() -> None:
    row = ReadRow(status="Pending", count=3)
    assert (row.status, row.count) == ("Pending", 3)
    with pytest.raises(AttributeError, match="status cannot be changed"):
        row.status = "Failed"
