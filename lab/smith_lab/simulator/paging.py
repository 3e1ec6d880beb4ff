"""Filters and sorts lists, and splits them into pages.

As in the real server, a query with an unknown filter or an unknown sort field is answered 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smith_lab.simulator import decoding
from smith_lab.simulator.problems import bad_request, internal
from smith_lab.simulator.web import Call, Reply

#: A function that gets the values of one query parameter and returns a function that says whether a row matches them.
#: It raises ValueError for a malformed value.
Filter = Callable[[list[str]], Callable[[Any], bool]]
DEFAULT_PAGE_SIZE = 10
MAX_PAGE_SIZE = 100
#: The query parameters that are not filters.
_RESERVED = ("page", "pageSize", "sort")


@dataclass(frozen=True)
class Listing:
    """The filters of one collection by query parameter, and its sort keys by sort field."""

    filters: Mapping[str, Filter] = field(default_factory=dict)
    sort_keys: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def reply(self, call: Call, rows: Iterable[Any], view: Callable[[Any], Any]) -> Reply:
        """Return the requested page of the rows that match the query. `view` returns the JSON of a row."""
        page = _read_number(call, "page", 1, None)
        size = _read_number(call, "pageSize", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        matching = self._sorted(call, self._filtered(call, rows))
        start = (page - 1) * size
        pages = -(-len(matching) // size)
        return Reply(
            body={
                "items": [view(row) for row in matching[start : start + size]],
                "totalItems": len(matching),
                "totalPages": pages,
                "currentPage": page,
                "hasNext": page < pages,
                "hasPrev": page > 1,
            }
        )

    def _filtered(self, call: Call, rows: Iterable[Any]) -> list[Any]:
        matching = list(rows)
        for name in {name for name, _ in call.query if name not in _RESERVED}:
            if name not in self.filters:
                raise internal(f"cannot filter by field {name}")
            values = [value for key, value in call.query if key == name]
            try:
                keep = self.filters[name](values)
            except ValueError as exc:
                raise internal(str(exc)) from exc
            matching = [row for row in matching if keep(row)]
        return matching

    def _sorted(self, call: Call, rows: list[Any]) -> list[Any]:
        text = next((value for name, value in call.query if name == "sort"), "")
        if not text:
            return rows
        name = text.lstrip("+- ") if text[0] in "+- " else text
        if name not in self.sort_keys:
            raise internal(f"cannot sort by field {name}")
        key = self.sort_keys[name]
        # As in PostgreSQL, absent values are last in ascending order and first in descending order.
        return sorted(rows, key=lambda row: (key(row) is None, key(row)), reverse=text.startswith("-"))


def _read_number(call: Call, name: str, default: int, maximum: int | None) -> int:
    """Return the query parameter `name` as a number, or `default` if it is absent. Raises a 400 if it is invalid."""
    text = next((value for key, value in call.query if key == name), "")
    if not text:
        return default
    try:
        value = int(text)
    except ValueError as exc:
        raise bad_request(f"invalid {name} parameter: {text}") from exc
    if value < 1 or (maximum is not None and value > maximum):
        raise bad_request(f"{name} parameter is out of range: {value}")
    return value


def equals(member: str) -> Filter:
    """Return a filter for rows whose member equals one of the values."""
    return lambda values: lambda row: getattr(row, member) in values


def contains(member: str) -> Filter:
    """Return a filter for rows whose member contains the first value, ignoring case."""
    return lambda values: lambda row: values[0].lower() in getattr(row, member).lower()


def equals_uuid(member: str) -> Filter:
    """Return a filter for rows whose member equals one of the values, which must be UUIDs."""
    return _equals_parsed(member, decoding.read_uuid)


def equals_bool(member: str) -> Filter:
    """Return a filter for rows whose member equals one of the values, which must be `true` or `false`."""
    return _equals_parsed(member, lambda value: ("false", "true").index(value) == 1)


def equals_allowed(member: str, allowed: Sequence[str]) -> Filter:
    """Return a filter for rows whose member equals one of the values, which must all be in `allowed`."""
    return _equals_parsed(member, lambda value: allowed[allowed.index(value)])


def _equals_parsed(member: str, parse: Callable[[str], Any]) -> Filter:
    """Return a filter for rows whose member equals one of the values after `parse` converted them."""

    def make_predicate(values: list[str]) -> Callable[[Any], bool]:
        wanted = [parse(value) for value in values]
        return lambda row: getattr(row, member) in wanted

    return make_predicate


def sort_by(member: str) -> Callable[[Any], Any]:
    """Return a sort key: the value of this member."""
    return lambda row: getattr(row, member)
