"""Answers requests that list rows: filters and sorts the rows, and returns one page of them.

Like FulcrumCore, the simulator answers 500 to a query with an unknown filter or an unknown sort field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smith_lab.simulator import decoding
from smith_lab.simulator.decoding import contains_nul
from smith_lab.simulator.problems import bad_request, internal_error
from smith_lab.simulator.web import Call, Reply

#: A filter belongs to one query parameter. It is a function that gets all values of this parameter (`["a", "b"]` for
#: `?name=a&name=b`) and returns a predicate: a function that returns whether a row matches these values. The filter
#: raises ValueError for a malformed value.
Filter = Callable[[list[str]], Callable[[Any], bool]]
DEFAULT_PAGE_SIZE = 10
MAX_PAGE_SIZE = 100
MAX_INT64 = 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]+")
#: The query parameters that select the page and the order. Every other query parameter is the name of a filter.
_PAGE_AND_SORT_PARAMETERS = ("page", "pageSize", "sort")


@dataclass(frozen=True)
class Listing:
    """Answers the requests that list the rows of one collection, with the filters and sort fields that are allowed."""

    filters: Mapping[str, Filter] = field(default_factory=dict)  #: maps the name of a query parameter to its filter
    #: Maps the name of a sort field to a function that returns the value by which a row is sorted.
    sort_keys: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def reply(self, call: Call, rows: Iterable[Any], render_row: Callable[[Any], Any]) -> Reply:
        """Return the requested page of the rows that match the query. `render_row` returns the JSON of a row."""
        page_number, page_size = _read_page(call)
        return _page_reply(self._sort_rows(call, self._filter_rows(call, rows)), page_number, page_size, render_row)

    def reply_distinct_values(self, call: Call, rows: Iterable[Any], read_value: Callable[[Any], str]) -> Reply:
        """Read one value from each row that matches the query; return the requested page of the distinct values.

        The values are sorted. The query parameter `sort` is ignored.
        """
        page_number, page_size = _read_page(call)
        values = sorted({read_value(row) for row in self._filter_rows(call, rows)})
        return _page_reply(values, page_number, page_size, lambda value: value)

    def _filter_rows(self, call: Call, rows: Iterable[Any]) -> list[Any]:
        matching_rows = list(rows)
        filter_names = {name for name, _ in call.query if name not in _PAGE_AND_SORT_PARAMETERS}
        for name in filter_names:
            if name not in self.filters:
                raise internal_error(f"cannot filter by field {name}")
            values = [value for key, value in call.query if key == name]
            if contains_nul(values):
                raise internal_error("invalid byte sequence for encoding (SQLSTATE 22021)")
            try:
                matches_values = self.filters[name](values)
            except ValueError as exc:
                raise internal_error(str(exc)) from exc
            matching_rows = [row for row in matching_rows if matches_values(row)]
        return matching_rows

    def _sort_rows(self, call: Call, rows: list[Any]) -> list[Any]:
        text = next((value for name, value in call.query if name == "sort"), "")
        if not text:
            return rows
        # A client must send `+` as `%2B`. A plain `+` arrives here as a space, and ` name` is an unknown field.
        field_name = text[1:] if text[0] in "+-" else text
        if field_name not in self.sort_keys:
            raise internal_error(f"cannot sort by field {field_name}")
        sort_key = self.sort_keys[field_name]
        # As in PostgreSQL, absent values are last in ascending order and first in descending order.
        return sorted(rows, key=lambda row: (sort_key(row) is None, sort_key(row)), reverse=text.startswith("-"))


def _read_page(call: Call) -> tuple[int, int]:
    """Return the number and the size of the requested page."""
    page_number = _read_positive_number(call, "page", default=1, maximum=None)
    return page_number, _read_positive_number(call, "pageSize", default=DEFAULT_PAGE_SIZE, maximum=MAX_PAGE_SIZE)


def _page_reply(rows: Sequence[Any], page_number: int, page_size: int, render_row: Callable[[Any], Any]) -> Reply:
    start = (page_number - 1) * page_size
    page_count = math.ceil(len(rows) / page_size)
    return Reply(
        body={
            "items": [render_row(row) for row in rows[start : start + page_size]],
            "totalItems": len(rows),
            "totalPages": page_count,
            "currentPage": page_number,
            "hasNext": page_number < page_count,
            "hasPrev": page_number > 1,
        }
    )


def _read_positive_number(call: Call, name: str, *, default: int, maximum: int | None) -> int:
    """Return a query parameter as a number, or `default` if it is absent or empty. Raises a 400 if it is invalid."""
    text = next((value for key, value in call.query if key == name), "")
    if not text:
        return default
    if not _INTEGER.fullmatch(text) or abs(int(text)) > MAX_INT64:
        raise bad_request(f"invalid {name} parameter: {text}")
    value = int(text)
    if value < 1 or (maximum is not None and value > maximum):
        raise bad_request(f"{name} parameter is out of range: {value}")
    return value


def equals(member: str) -> Filter:
    """Return a filter for rows whose attribute `member` equals one of the values in the query."""
    return lambda values: lambda row: getattr(row, member) in values


def contains(member: str) -> Filter:
    """Return a filter for rows whose attribute `member` contains one of the values in the query, ignoring case.

    Spaces at the start and the end of a value are ignored. If all values are empty, every row matches.
    """

    def make_predicate(values: list[str]) -> Callable[[Any], bool]:
        parts = [value.strip().lower() for value in values if value.strip()]
        return lambda row: not parts or any(part in getattr(row, member).lower() for part in parts)

    return make_predicate


def equals_uuid(member: str) -> Filter:
    """Return a filter for rows whose attribute `member` equals one of the values in the query, which must be UUIDs."""
    return _equals_parsed(member, decoding.read_uuid)


def equals_bool(member: str) -> Filter:
    """Return a filter for rows whose attribute `member` equals one of the query's values, each `true` or `false`."""

    def parse(value: str) -> bool:
        if value not in ("true", "false"):
            raise ValueError(f"not a bool: {value!r}")
        return value == "true"

    return _equals_parsed(member, parse)


def equals_enum(member: str, allowed_values: Sequence[str]) -> Filter:
    """Return a filter for rows whose attribute `member` equals one of the values in the query.

    Each value in the query must be in `allowed_values`.
    """

    def parse(value: str) -> str:
        if value not in allowed_values:
            raise ValueError(f"not one of {allowed_values}: {value!r}")
        return value

    return _equals_parsed(member, parse)


def _equals_parsed(member: str, parse: Callable[[str], Any]) -> Filter:
    """Return a filter for rows whose attribute `member` equals one of the query's values, converted by `parse`."""

    def make_predicate(values: list[str]) -> Callable[[Any], bool]:
        parsed_values = [parse(value) for value in values]
        return lambda row: getattr(row, member) in parsed_values

    return make_predicate


def sort_by(member: str) -> Callable[[Any], Any]:
    """Return a function that returns the value of a row's attribute `member`. Rows are sorted by this value."""
    return lambda row: getattr(row, member)
