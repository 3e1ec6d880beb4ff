"""`smith support`: lists the files of an archive for a bug report, and writes the archive. Secrets are masked."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import Annotated

import typer

from executor.cli.arguments import AsJson, CommandFailed, confirm
from executor.cli.context import PRIVATE_UMASK, open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_outcome, show_text
from executor.cli.support_files import collect_files
from executor.cli.tables import show_rows
from executor.database.times import utc_now
from executor.redaction import redactor

#: The columns of the list of files: maps each key of a row to the heading of its column.
COLUMNS = {"name": "FILE", "bytes": "BYTES"}


@examples(
    "smith support                                   lists the files, and asks before it writes the archive",
    "smith support --yes --output report.tar.gz",
    "journalctl -u agent-smith > agent.log; smith support --log agent.log",
)
def support(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="The archive; must not exist.")
    ] = None,
    log_files: Annotated[
        list[Path] | None, typer.Option("--log", metavar="FILE", help="Add the last 2 MiB of FILE; may be repeated.")
    ] = None,
    with_doctor: Annotated[bool, typer.Option("--doctor/--no-doctor", help="Add the result of `smith doctor`.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an archive for a bug report.

    It contains the versions of Agent Smith and its dependencies, the settings, the result of `smith doctor`, the
    status, the failed jobs with their timelines and the output of their runs, and statistics of the database.
    Secrets are masked, and the properties of customers' services are left out.
    """
    settings = open_settings()
    file = output or Path(f"smith-support-{utc_now():%Y%m%dT%H%M%SZ}.tar.gz")
    if file.exists():
        raise CommandFailed(f"{file} exists: choose another name with --output")
    # `collect_files` masks secrets in each single value of a JSON file. Two values and the punctuation between them may
    # together contain a secret. So the whole text of each file is masked again.
    files = {
        name: redactor.redact(text) for name, text in collect_files(settings, log_files or [], with_doctor=with_doctor)
    }
    if not as_json:
        rows = [{"name": name, "bytes": len(text.encode("utf-8", "replace"))} for name, text in files.items()]
        show_rows(rows, COLUMNS, if_empty="")  # `rows` is never empty
        show_text("secrets are masked; look through the archive before you send it")
    confirm(f"Write {file}?", yes=yes)
    _write_archive(file, files)
    archive_bytes = file.stat().st_size
    text = f"written: {file}, {archive_bytes} bytes"
    show_outcome(text, as_json=as_json, file=str(file), bytes=archive_bytes, files=list(files))


def _write_archive(file: Path, files: dict[str, str]) -> None:
    """Write the archive. Only the user who runs the command can read the file."""
    os.umask(PRIVATE_UMASK)
    top_folder = file.name.partition(".")[0]
    try:
        with tarfile.open(file, "x:gz") as archive:
            for name, text in files.items():
                data = text.encode("utf-8", "replace")
                archive_entry = tarfile.TarInfo(f"{top_folder}/{name}")
                archive_entry.size, archive_entry.mode, archive_entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(archive_entry, io.BytesIO(data))
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from error
