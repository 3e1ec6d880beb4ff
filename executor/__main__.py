"""Runs the command `smith` for `python -m executor`."""

from __future__ import annotations

from executor.cli.app import main

if __name__ == "__main__":
    main()
