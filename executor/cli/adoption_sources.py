"""Reads service ids and their VMIDs for `smith mappings adopt --from`: from CSV, JSON, or the PHP agent's SQLite file.

The PHP agent is an earlier agent for FulcrumCore. Its table `job_service_mappings` has the columns `job_service_id` and
`vmid`. In this table, only the pair of the two values is unique: several rows may have the same service id or the same
VMID. The content of a file is not trusted: each value is checked.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from executor.cli.arguments import CommandFailed

#: The bytes with which every SQLite file begins.
SQLITE_MAGIC = b"SQLite format 3\0"
PHP_TABLE = "job_service_mappings"
#: The accepted names of the column with the service's id, and the name of the column with the VMID.
SERVICE_COLUMNS = ("service_id", "job_service_id", "service")
VMID_COLUMN = "vmid"
MIN_VMID, MAX_VMID = 100, 999_999_999
#: The maximum size of a file, and the maximum number of its rows. A file that exceeds one of them cannot be a list of
#: VMs, and is refused.
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000
#: Each value is cut to this length, which is longer than any valid value. Error texts quote the shortened value.
MAX_VALUE_LENGTH = 60
_UUID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class AdoptionRow:
    """The service id and the VMID of one row of the file. If one of them is not valid, `problem` says why."""

    service_id: str
    vmid: int | None
    problem: str = ""


def read_rows(file: Path) -> list[AdoptionRow]:
    """Return one AdoptionRow for each distinct pair of a service id and a VMID, in the order of the file.

    Raises CommandFailed if the file cannot be read.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CommandFailed(f"{file} is too large for a list of VMs")
        with file.open("rb") as opened_file:
            is_sqlite = opened_file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
        pairs = list(islice(_read_sqlite(file) if is_sqlite else _read_text(file), MAX_ROWS + 1))
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
    except (sqlite3.Error, csv.Error, ValueError, RecursionError) as error:
        raise CommandFailed(f"{file} cannot be read: {error}") from None
    if len(pairs) > MAX_ROWS:
        raise CommandFailed(f"{file} has more than {MAX_ROWS} rows")
    return list(dict.fromkeys(_check_row(service_id, vmid) for service_id, vmid in pairs))


def _read_sqlite(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a service id and a VMID in the PHP agent's table. The file is not changed."""
    uri = f"{file.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        connection.text_factory = lambda content: content.decode(errors="replace")
        column_names = [row[1] for row in connection.execute(f"PRAGMA table_info({PHP_TABLE})")]
        if "job_service_id" not in column_names or VMID_COLUMN not in column_names:
            raise CommandFailed(f"{file} has no table {PHP_TABLE} with the columns job_service_id and vmid")
        yield from connection.execute(f"SELECT job_service_id, vmid FROM {PHP_TABLE} ORDER BY rowid")  # noqa: S608


def _read_text(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a service id and a VMID in a JSON list of objects, or in a CSV file with headings."""
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith(("[", "{")):
        document = json.loads(text)
        if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
            raise CommandFailed(f"{file} must be a JSON list of objects with service_id and vmid")
        entries: list[Mapping[str, Any]] = document
        column_names = {name for entry in entries for name in entry}
    else:
        delimiter = ";" if ";" in text.partition("\n")[0] else ","
        reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
        column_names, entries = set(reader.fieldnames or ()), list(reader)
    service_column = next((name for name in SERVICE_COLUMNS if name in column_names), None)
    if service_column is None or VMID_COLUMN not in column_names:
        raise CommandFailed(
            f"{file} needs the columns service_id and vmid; the first line of a CSV file must contain these names"
        )
    yield from ((entry.get(service_column), entry.get(VMID_COLUMN)) for entry in entries)


def _check_row(service_id: Any, vmid: Any) -> AdoptionRow:
    """Check the two values of a row, and return them. If one of them is not valid, `problem` says why."""
    id_text, vmid_text = _shortened_text(service_id).lower(), _shortened_text(vmid)
    vmid_number = int(vmid_text) if vmid_text.isascii() and vmid_text.isdecimal() and len(vmid_text) <= 9 else None
    problem = ""
    if not _UUID_PATTERN.fullmatch(id_text):
        problem = f"{id_text!r} is not the id of a service"
    elif vmid_number is None or not MIN_VMID <= vmid_number <= MAX_VMID:
        problem = f"{vmid_text!r} is not a VMID (a number from {MIN_VMID} to {MAX_VMID})"
    return AdoptionRow(service_id=id_text, vmid=vmid_number, problem=problem)


def _shortened_text(value: Any) -> str:
    """Return a value of the file as a text without spaces around it, cut to MAX_VALUE_LENGTH."""
    return "" if value is None or isinstance(value, bool) else str(value).strip()[:MAX_VALUE_LENGTH]
