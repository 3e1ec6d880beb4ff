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
    """The place for the new token: a new file with mode 0600, the terminal, or both.

    Used as a context manager. `reserve` is called before the token is created, and `store` afterwards.
    """

    def __init__(self, file: Path | None, *, is_shown: bool, is_needed: bool) -> None:
        """Store the options --token-file (`file`) and --show-token (`is_shown`), and whether a token is needed."""
        self.file = file
        self.is_shown = is_shown
        self.value: str | None = None
        self._is_needed = is_needed
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Check, before anything is created in FulcrumCore, that the file for a new token does not exist yet.

        Raises typer.BadParameter if a token will be created and the file exists.
        """
        if self._is_needed and self.file and os.path.lexists(self.file):
            raise typer.BadParameter(f"{self.file} exists already: a new token goes into a new file")
        return self

    def reserve(self) -> None:
        """Create the empty file, so that a file that cannot be written is noticed before the token is created.

        FulcrumCore returns a token's value only once, when the token is created. Raises TokenNotStored when the file
        cannot be created, and typer.BadParameter when neither --token-file nor --show-token is set.
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
        """Write the token to the file, and flush the file to the disk.

        If the token is not printed on purpose (--show-token), it is redacted from all output.
        """
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
