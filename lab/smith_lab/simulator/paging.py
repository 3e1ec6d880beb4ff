"""Pages, filters and sort orders of lists. An unknown filter or sort field is a 500, as in the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smith_lab.simulator import decoding
from smith_lab.simulator.problems import bad_request, internal
from smith_lab.simulator.web import Call, Reply

#: Turns the values of a query into a predicate for rows. Raises ValueError for a malformed value.
Filter = Callable[[list[str]], Callable[[Any], bool]]
DEFAULT_PAGE_SIZE = 10
MAX_PAGE_SIZE = 100
_RESERVED = ("page", "pageSize", "sort")


@dataclass(frozen=True)
class Listing:
    """The filters and sort fields of one collection."""

    filters: Mapping[str, Filter] = field(default_factory=dict)
    sorts: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def reply(self, call: Call, rows: Iterable[Any], view: Callable[[Any], Any]) -> Reply:
        """Return the requested page."""
        page = _whole(call, "page", 1, None)
        size = _whole(call, "pageSize", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        found = self._sorted(call, self._filtered(call, rows))
        start = (page - 1) * size
        pages = -(-len(found) // size)
        return Reply(
            body={
                "items": [view(row) for row in found[start : start + size]],
                "totalItems": len(found),
                "totalPages": pages,
                "currentPage": page,
                "hasNext": page < pages,
                "hasPrev": page > 1,
            }
        )

    def _filtered(self, call: Call, rows: Iterable[Any]) -> list[Any]:
        found = list(rows)
        for name in {name for name, _ in call.query if name not in _RESERVED}:
            if name not in self.filters:
                raise internal(f"cannot filter by field {name}")
            values = [value for key, value in call.query if key == name]
            try:
                keep = self.filters[name](values)
            except ValueError as exc:
                raise internal(str(exc)) from exc
            found = [row for row in found if keep(row)]
        return found

    def _sorted(self, call: Call, rows: list[Any]) -> list[Any]:
        text = next((value for name, value in call.query if name == "sort"), "")
        if not text:
            return rows
        name = text.lstrip("+- ") if text[0] in "+- " else text
        if name not in self.sorts:
            raise internal(f"cannot sort by field {name}")
        key = self.sorts[name]
        # PostgreSQL sorts absent values last, and first when descending.
        return sorted(rows, key=lambda row: (key(row) is None, key(row)), reverse=text.startswith("-"))


def _whole(call: Call, name: str, default: int, maximum: int | None) -> int:
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
    """Filter: the member equals one of the values."""
    return lambda values: lambda row: getattr(row, member) in values


def contains(member: str) -> Filter:
    """Filter: the member contains the first value, ignoring case."""
    return lambda values: lambda row: values[0].lower() in getattr(row, member).lower()


def is_uuid(member: str) -> Filter:
    """Filter: the member equals one of the values, which must be UUIDs."""
    return _read_by(member, decoding.read_uuid)


def is_bool(member: str) -> Filter:
    """Filter: the member equals one of the values, which must be true or false."""
    return _read_by(member, lambda value: ("false", "true").index(value) == 1)


def one_of(member: str, allowed: Sequence[str]) -> Filter:
    """Filter: the member equals one of the values, which must all be allowed ones."""
    return _read_by(member, lambda value: allowed[allowed.index(value)])


def _read_by(member: str, reader: Callable[[str], Any]) -> Filter:
    def make(values: list[str]) -> Callable[[Any], bool]:
        wanted = [reader(value) for value in values]
        return lambda row: getattr(row, member) in wanted

    return make


def by(member: str) -> Callable[[Any], Any]:
    return lambda row: getattr(row, member)
