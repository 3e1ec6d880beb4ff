"""Writes the agent's token from `smith bootstrap core` to a file, and keeps the token for the command to print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import typer

from executor.errors import SmithError
from executor.redaction import redactor


class TokenNotStored(SmithError):
    """The token is not in the file of --token-file.

    Raised if the file cannot be created. If the agent has a token already, `smith bootstrap core` creates no token, and
    raises this error if the file does not exist or contains no token of this agent.
    """


class TokenDestination:
    """The place for the new token: a new file with mode 0600, the terminal, or both.

    Used as a context manager. `create_empty_file` is called before the token is created, and `store_token` afterwards.
    This class writes only the file. `smith bootstrap core` prints the attribute `token` on the terminal.
    """

    def __init__(self, file: Path | None, *, is_token_printed: bool, will_create_token: bool) -> None:
        """`file` is the value of --token-file, and `is_token_printed` the value of --show-token.

        `will_create_token` is False if no token will be created, because the agent has one already. In this case
        `create_empty_file` does nothing, and `store_token` is not called.
        """
        self.file = file
        self.is_token_printed = is_token_printed
        self.token: str | None = None
        self._will_create_token = will_create_token
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Check that the file for a new token does not exist yet, before anything is created in FulcrumCore.

        Raises typer.BadParameter if a token will be created and the file exists.
        """
        if self._will_create_token and self.file and os.path.lexists(self.file):
            raise typer.BadParameter(f"{self.file} exists already: --token-file must name a file that does not exist")
        return self

    def create_empty_file(self) -> None:
        """Create the empty file. If this fails, no token is created.

        FulcrumCore returns a token's value only once, so a token that cannot be written to the file would be lost.

        Raises TokenNotStored when the file cannot be created, and typer.BadParameter when neither --token-file nor
        --show-token is set.
        """
        if not self._will_create_token:
            return
        if not self.file and not self.is_token_printed:
            raise typer.BadParameter(
                "a token will be created: use --token-file FILE to store it, or --show-token to print it"
            )
        if self.file:
            try:
                self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except OSError as error:
                raise TokenNotStored(
                    f"{self.file} cannot be written: {error.strerror}; nothing was created in FulcrumCore"
                ) from None

    def store_token(self, token: str) -> None:
        """Write the token to the file, and flush the file to the disk.

        Without --show-token, the token is redacted from all output.
        """
        self.token = token
        if not self.is_token_printed:
            redactor.add(token)
        if self._descriptor is not None:
            os.write(self._descriptor, f"{token}\n".encode())
            os.fsync(self._descriptor)

    def __exit__(self, *_: object) -> None:
        """Close the file, and delete it if no token was written."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            if self.file and self.token is None:
                self.file.unlink(missing_ok=True)
