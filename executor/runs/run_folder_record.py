"""Reads the names of the run folders that an agent uses or has used.

This code is in a separate module with few imports, so that commands that need only this module start fast.
"""

from __future__ import annotations

from pathlib import Path

#: File in the data folder with the paths of the run folders, one per line. The first line is the folder in use. The
#: agent locks the file, so that two agents cannot use the same data folder.
RECORD_FILE = "run-folders"


def recorded_run_folders(data_dir: Path) -> list[Path]:
    """Return the run folders that the agent with this data folder uses or has used. The last one used is first."""
    try:
        text = (data_dir / RECORD_FILE).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [Path(line) for line in text.splitlines() if line.startswith("/")]
