"""Decides which columns of a table fit into a terminal. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: The keys of the flexible columns, whose free text may be wrapped. All other columns contain ids, names, numbers and
#: times, which an operator copies, so they are never wrapped and never shortened.
FLEXIBLE_COLUMNS = frozenset(
    {"error", "reason", "text", "message", "note", "last_error", "change", "value", "detail", "found", "repair", "task"}
    | {"help", "description", "problem", "cause", "why", "differences", "default", "reachable_from"}
)
#: The minimum width of a flexible column, in characters.
MIN_FLEXIBLE_WIDTH = 20
#: The keys of the columns that are omitted first, beginning with the least important. After them, columns without free
#: text are omitted, from right to left. At least two columns stay, among them the first column of the table.
KEYS_OMITTED_FIRST = (
    "fulcrum",
    "left",
    "version",
    "cluster",
    "kind",
    "rc",
    "attempt",
    "runs",
    "interval",
    "playbook",
    "mac_address",
    "stop_reason",
    "pid",
    "host",
    "subject_kind",
    "started",
    "finished",
    "ended_at",
    "report_state",
    "service",
    "updated",
    "started_at",
    "role",
    "source",
    "vm",
)
#: The keys of the columns that are omitted last, because the rows mean nothing without them.
KEYS_OMITTED_LAST = frozenset({"status", "state", "outcome", "verb", "who"})
#: The number of columns that always stay.
MIN_COLUMN_COUNT = 2
#: The space between two columns, in characters.
COLUMN_GAP = 2


def columns_that_fit(
    natural_widths: Mapping[str, int], terminal_width: int | None, *, empty_keys: Collection[str] = ()
) -> tuple[list[str], int | None]:
    """Return the keys of the shown columns, and the width of the table (None: the table is as wide as its cells need).

    `natural_widths` has the width of the widest cell of each column. The columns in `empty_keys` have no value in
    any row, and are omitted first. If even the MIN_COLUMN_COUNT columns that always stay are wider than the
    terminal, the table is wider than the terminal, which then wraps the table's lines: no cell is cut.
    """
    shown_keys = list(natural_widths)
    if terminal_width is None:
        return shown_keys, None
    omitted_keys: list[str] = []
    while len(shown_keys) > MIN_COLUMN_COUNT and _min_width(shown_keys, natural_widths) > terminal_width:
        keys_without_value = [key for key in reversed(shown_keys[1:]) if key in empty_keys]
        omitted_keys.append(keys_without_value[0] if keys_without_value else _least_important_key(shown_keys))
        shown_keys.remove(omitted_keys[-1])
    # After a wide column was omitted, narrow columns that were omitted before it may fit.
    for key in reversed(omitted_keys):
        candidate_keys = [each for each in natural_widths if each in shown_keys or each == key]
        if _min_width(candidate_keys, natural_widths) <= terminal_width:
            shown_keys = candidate_keys
    return shown_keys, max(terminal_width, _min_width(shown_keys, natural_widths))


def flexible_widths(shown_keys: list[str], natural_widths: Mapping[str, int], table_width: int) -> dict[str, int]:
    """Return the width of each shown flexible column, if the whole table has the width `table_width`."""
    flexible_keys = sorted((key for key in shown_keys if key in FLEXIBLE_COLUMNS), key=lambda key: natural_widths[key])
    remaining_width = (
        table_width
        - COLUMN_GAP * (len(shown_keys) - 1)
        - sum(natural_widths[key] for key in shown_keys if key not in flexible_keys)
    )
    widths: dict[str, int] = {}
    for index, key in enumerate(flexible_keys):
        widths[key] = min(natural_widths[key], max(remaining_width // (len(flexible_keys) - index), MIN_FLEXIBLE_WIDTH))
        remaining_width -= widths[key]
    return widths


def _least_important_key(shown_keys: list[str]) -> str:
    """Return the key of the column that is omitted next."""
    candidates = shown_keys[1:]
    keys_least_important_first = [key for key in KEYS_OMITTED_FIRST if key in candidates]
    # Free text, such as an error, is what an operator looks for, so only KEYS_OMITTED_LAST are omitted later.
    keys_least_important_first += [
        key for key in reversed(candidates) if key not in FLEXIBLE_COLUMNS | KEYS_OMITTED_LAST
    ]
    keys_least_important_first += [key for key in reversed(candidates) if key not in KEYS_OMITTED_LAST]
    return keys_least_important_first[0] if keys_least_important_first else shown_keys[-1]


def _min_width(shown_keys: list[str], natural_widths: Mapping[str, int]) -> int:
    """Return the width of the table when each flexible column has at most MIN_FLEXIBLE_WIDTH characters."""
    widths = [
        min(natural_widths[key], MIN_FLEXIBLE_WIDTH) if key in FLEXIBLE_COLUMNS else natural_widths[key]
        for key in shown_keys
    ]
    return sum(widths) + COLUMN_GAP * (len(shown_keys) - 1)
