"""Decides which columns of a table fit into a terminal. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: The keys of the columns with free text, which may be wrapped. All other columns contain ids, names, numbers and
#: times, which an operator copies, so they are never wrapped and never shortened.
FREE_TEXT_COLUMNS = frozenset(
    {"error", "reason", "text", "message", "note", "last_error", "change", "value", "detail", "found", "repair", "task"}
    | {"help", "description", "problem", "cause", "why", "differences", "default", "reachable_from"}
)
#: The minimum width of a column with free text, in characters.
MIN_FREE_TEXT_WIDTH = 20
#: The keys of the less important columns of all tables of `smith`, the least important first.
#: While a table is too wide, one more column is omitted, in this order: 1. the columns without a value in any row;
#: 2. the columns with a key of this tuple; 3. the other columns without free text, from right to left; 4. the columns
#: with free text; 5. the columns of KEYS_OMITTED_LAST. The first column and one other always stay.
LESS_IMPORTANT_KEYS = (
    "fulcrum",  # the beginning of the job's id in FulcrumCore
    "left",  # the time until the job's deadline
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
    "subject_kind",  # in the audit log: what was changed, for example `job`
    "started",
    "finished",
    "ended_at",
    "report_state",
    "service",
    "updated",
    "started_at",
    "role",
    "source",  # `built-in`, or the folder of the action's playbook
    "vm",
)
#: The keys of the columns that are omitted last, because the rows mean nothing without them. In the audit log, "verb"
#: is the kind of change, for example `cancel`, and "who" is the operator.
KEYS_OMITTED_LAST = frozenset({"status", "state", "outcome", "verb", "who"})
#: The number of columns that always stay.
MIN_COLUMN_COUNT = 2
#: The space between two columns, in characters.
COLUMN_GAP = 2


def columns_that_fit(
    unwrapped_widths: Mapping[str, int], terminal_width: int | None, *, empty_keys: Collection[str] = ()
) -> tuple[list[str], int | None]:
    """Return the keys of the shown columns, and the width of the table (None: the table is as wide as its cells need).

    `unwrapped_widths` has the width of the widest cell of each column. `terminal_width` is None if the output is not
    a terminal: then no column is omitted. The columns in `empty_keys` have no value in any row, and are omitted before
    all others. At least MIN_COLUMN_COUNT columns stay. If they are wider than the terminal, no cell is cut: the
    terminal wraps the lines of the table.
    """
    shown_keys = list(unwrapped_widths)
    if terminal_width is None:
        return shown_keys, None
    omitted_keys: list[str] = []
    while len(shown_keys) > MIN_COLUMN_COUNT and _min_width(shown_keys, unwrapped_widths) > terminal_width:
        keys_without_value = [key for key in reversed(shown_keys[1:]) if key in empty_keys]
        omitted_keys.append(keys_without_value[0] if keys_without_value else _least_important_key(shown_keys))
        shown_keys.remove(omitted_keys[-1])
    # After a wide column was omitted, narrow columns that were omitted before it may fit.
    for key in reversed(omitted_keys):
        candidate_keys = [each for each in unwrapped_widths if each in shown_keys or each == key]
        if _min_width(candidate_keys, unwrapped_widths) <= terminal_width:
            shown_keys = candidate_keys
    return shown_keys, max(terminal_width, _min_width(shown_keys, unwrapped_widths))


def free_text_widths(shown_keys: list[str], unwrapped_widths: Mapping[str, int], table_width: int) -> dict[str, int]:
    """Return the width of each shown column with free text, if the whole table has the width `table_width`."""
    free_text_keys = sorted(
        (key for key in shown_keys if key in FREE_TEXT_COLUMNS), key=lambda key: unwrapped_widths[key]
    )
    remaining_width = (
        table_width
        - COLUMN_GAP * (len(shown_keys) - 1)
        - sum(unwrapped_widths[key] for key in shown_keys if key not in free_text_keys)
    )
    widths: dict[str, int] = {}
    for index, key in enumerate(free_text_keys):
        widths[key] = min(
            unwrapped_widths[key], max(remaining_width // (len(free_text_keys) - index), MIN_FREE_TEXT_WIDTH)
        )
        remaining_width -= widths[key]
    return widths


def _least_important_key(shown_keys: list[str]) -> str:
    """Return the key of the column that is omitted next."""
    candidates = shown_keys[1:]
    keys_least_important_first = [key for key in LESS_IMPORTANT_KEYS if key in candidates]
    # Next are the columns without free text. The columns with free text, such as errors, follow them.
    keys_least_important_first += [
        key for key in reversed(candidates) if key not in FREE_TEXT_COLUMNS | KEYS_OMITTED_LAST
    ]
    keys_least_important_first += [key for key in reversed(candidates) if key not in KEYS_OMITTED_LAST]
    return keys_least_important_first[0] if keys_least_important_first else shown_keys[-1]


def _min_width(shown_keys: list[str], unwrapped_widths: Mapping[str, int]) -> int:
    """Return the width of the table if no column with free text is wider than MIN_FREE_TEXT_WIDTH."""
    widths = [
        min(unwrapped_widths[key], MIN_FREE_TEXT_WIDTH) if key in FREE_TEXT_COLUMNS else unwrapped_widths[key]
        for key in shown_keys
    ]
    return sum(widths) + COLUMN_GAP * (len(shown_keys) - 1)
