"""Runs the command line `smith`. `python -m executor` does the same."""

from __future__ import annotations

import os
from typing import NoReturn

from executor.cli.garbage import pause_garbage_collection

#: The environment variable that turns off pydantic's plug-ins, and its value. To find plug-ins, pydantic would read the
#: metadata of all installed packages, and a plug-in could read the values of the settings.
NO_PYDANTIC_PLUGINS = ("PYDANTIC_DISABLE_PLUGINS", "__all__")


def main() -> NoReturn:
    """Run the command that the command-line arguments name, and end the process with its exit code."""
    # The import below creates many objects and hardly any garbage, so the garbage collector would only cost time.
    pause_garbage_collection()
    os.environ.setdefault(*NO_PYDANTIC_PLUGINS)
    from executor.cli.app import main as run_command_line  # noqa: PLC0415 (only after garbage collection is paused)

    run_command_line()


if __name__ == "__main__":
    main()
