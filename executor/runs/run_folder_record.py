"""Reads the paths of the run folders that an agent uses now or has used before.

A run folder contains the private folders of all runs of an agent. An agent may have used several run folders, because
the setting SMITH_RUN_DIR was changed. This code is in a separate module with few imports, so that commands that need
only this module start fast.
"""

from __future__ import annotations

from pathlib import Path

#: Name of the file in the data folder with the paths of the run folders, one per line. The first line is the
#: folder that the agent uses now or used last. The agent locks the file, so that two agents cannot use the same data
#: folder.
RECORD_FILE = "run-folders"


def current_and_earlier_values_of_run_dir(data_dir: Path) -> list[Path]:
    """Return the run folders of the agent with this data folder. The first folder is used now or was used last.

    A path is not always a value of SMITH_RUN_DIR: if the folder `run` was not usable, the path ends with `run-2`.
    """
    try:
        text = (data_dir / RECORD_FILE).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [Path(line) for line in text.splitlines() if line.startswith("/")]
