"""What the commands print: tables for people, JSON for scripts, and never a secret or a terminal's control sequence.

Data from outside (action names, error messages, what a playbook printed) passes `harmless` before it is shown, and is
never read as markup.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from executor.redaction import redactor

if TYPE_CHECKING:  # rich takes as long to import as everything else that `--help` needs
    from rich.console import RenderableType
    from rich.text import Text

#: Width of a line when nobody sees it: what a script reads is never wrapped.
WIDE = 100_000
#: Ends of a table's short ids: as many digits as make one of FulcrumCore's ids known.
SHORT = 8
STYLES = {
    "pending": "yellow",
    "reserved": "yellow",
    "due": "yellow",
    "missing": "yellow",
    "warning": "yellow",
    "processing": "cyan",
    "running": "cyan",
    "completed": "green",
    "active": "green",
    "successful": "green",
    "ok": "green",
    "changed": "green",
    "found": "green",
    "made": "green",
    "differs": "yellow",
    "would be made": "yellow",
    "failed": "red",
    "wrong": "red",
    "timeout": "red",
    "unreachable": "red",
    "orphaned": "red",
    "overdue": "red",
    "vanished": "red",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def examples(*lines: str) -> str:
    """Return the end of a command's help. The `\\b` keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def harmless(text: str, *, keep_lines: bool = False) -> str:
    """Return the text redacted, with every control and invisible character written out as `\\x1b`.

    With `keep_lines` line breaks and tabs stay, and plain colour codes are dropped.
    """
    if keep_lines:
        text = _COLOURS.sub("", text.replace("\r\n", "\n"))
    text = redactor.redact(text)
    if text.isprintable():
        return text
    kept = "\n\t" if keep_lines else ""
    return "".join(char if char.isprintable() or char in kept else _written_out(char) for char in text)


def _written_out(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def show_json(document: Any) -> None:
    """Print one document. Everything outside ASCII is escaped, so no terminal is steered by it either."""
    print(json.dumps(redactor.redact_value(_jsonable(document)), indent=2))


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, nothing: str) -> None:
    """Print a table: `columns` says which keys of the rows, under which headings; `nothing` stands for no rows."""
    if not rows:
        say(nothing)
        return
    from rich.table import Table  # noqa: PLC0415 (see above)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in columns))
    _print(table)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values below each other; a value that is not known is left out."""
    from rich.table import Table  # noqa: PLC0415 (see above)
    from rich.text import Text  # noqa: PLC0415 (see above)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, "", [], {}):
            table.add_row(Text(name.replace("_", " ")), cell(value))
    _print(table)


def show_heading(text: str) -> None:
    """Print a title with an empty line before it."""
    from rich.text import Text  # noqa: PLC0415 (see above)

    say("")
    _print(Text(harmless(text), style="bold"))


def show_document(value: Any) -> None:
    """Print JSON for people: indented, letters of every alphabet as they are."""
    from rich.text import Text  # noqa: PLC0415 (see above)

    text = json.dumps(redactor.redact_value(_jsonable(value)), indent=2, ensure_ascii=False)
    _print(Text(harmless(text, keep_lines=True)))


def say(text: str) -> None:
    """Print one line, or several when the text is of our own making."""
    print(harmless(text, keep_lines=True))


def tell(text: str, *, as_json: bool, **facts: Any) -> None:
    """Say what was done: a line for people, or the same as facts for scripts."""
    if as_json:
        show_json(facts)
    else:
        say(text)


def complain(text: str) -> None:
    """Print on stderr, a `smith:` before every line."""
    for line in text.splitlines() or [""]:
        print(f"smith: {harmless(line)}", file=sys.stderr)


def cell(value: Any) -> Text:
    """Return a value as a table shows it."""
    from rich.text import Text  # noqa: PLC0415 (see above)

    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, (list, tuple)):
        return Text(harmless(", ".join(str(item) for item in value)))
    text = harmless(str(value))
    return Text(text, style=STYLES.get(text, ""))


def iso(moment: datetime) -> str:
    """Return a time as JSON shows it: UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(moment: datetime | None, now: datetime) -> str | None:
    """Return how long ago something was, in its largest unit: `42s`, `3m`, `5h`, `12d`."""
    if moment is None:
        return None
    seconds = max(int((now - moment).total_seconds()), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size * 2:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def short(identifier: str | None) -> str | None:
    """Return the beginning of an id, enough to name it."""
    return identifier[:SHORT] if identifier else None


def _print(renderable: RenderableType) -> None:
    """Render, and write without the blanks that fill a table's last column."""
    from rich.console import Console  # noqa: PLC0415 (see above)

    width = None if sys.stdout.isatty() else WIDE
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(renderable)
    lines: Iterable[str] = captured.get().rstrip("\n").split("\n")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
