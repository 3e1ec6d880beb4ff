"""`python -m executor` is the command `smith`."""

from __future__ import annotations

from executor.cli.app import main

if __name__ == "__main__":
    main()
