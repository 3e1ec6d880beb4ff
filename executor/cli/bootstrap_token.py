"""Stores or prints the token that `smith bootstrap core` creates for the agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import typer

from executor.errors import SmithError
from executor.redaction import redactor


class TokenNotStored(SmithError):
    """The token file does not contain a token of the agent."""


class TokenDestination:
    """The place for the new token: a new file with mode 0600, the terminal, or both."""

    def __init__(self, file: Path | None, *, is_shown: bool, is_needed: bool) -> None:
        self.file = file
        self.is_shown = is_shown
        self.value: str | None = None
        self._is_needed = is_needed
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Check the file before anything is created. Raises typer.BadParameter when a token is needed and it exists."""
        if self._is_needed and self.file and os.path.lexists(self.file):
            raise typer.BadParameter(f"{self.file} exists already: a new token goes into a new file")
        return self

    def reserve(self) -> None:
        """Create the file before the token is created, because FulcrumCore returns a token only once.

        Raises TokenNotStored when the file cannot be written, typer.BadParameter without a place for the token.
        """
        if not self._is_needed:
            return
        if not self.file and not self.is_shown:
            raise typer.BadParameter("a token will be created: set --token-file FILE, or --show-token")
        if self.file:
            try:
                self._handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except OSError as error:
                raise TokenNotStored(f"{self.file} cannot be written: {error.strerror}; nothing was created") from None

    def store(self, value: str) -> None:
        """Write the token to the file, and flush it to the disk."""
        self.value = value
        if not self.is_shown:
            redactor.add(value)
        if self._handle is not None:
            os.write(self._handle, f"{value}\n".encode())
            os.fsync(self._handle)

    def __exit__(self, *_: object) -> None:
        """Close the file, and delete it if no token was written."""
        if self._handle is not None:
            os.close(self._handle)
            if self.file and self.value is None:
                self.file.unlink(missing_ok=True)
