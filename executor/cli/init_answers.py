"""Asks the operator for the values for `smith init` that no option, file or environment variable contains.

No option has a secret as its value, because every user of the machine can read the arguments of a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from executor.cli.arguments import EXIT_INTERRUPTED, confirm
from executor.redaction import redactor
from executor.settings.sources import read_secret_file
from executor.views.text import sanitized


class Prompter:
    """Asks the operator questions on the terminal, and returns the answers.

    Without a terminal, or with --yes, a question that has a default is not asked, and the default is returned. A
    question without a default is asked even with --yes. If such a question cannot be asked, because there is no
    terminal, typer.BadParameter is raised; the error text names the missing option.
    """

    def __init__(self, *, skips_questions_with_default: bool) -> None:
        """`skips_questions_with_default` is the option --yes."""
        self._skips_questions_with_default = skips_questions_with_default
        self._has_terminal = sys.stdin.isatty()

    @property
    def is_interactive(self) -> bool:
        """Return whether questions that have a default are asked: there is a terminal, and --yes is not set."""
        return self._has_terminal and not self._skips_questions_with_default

    def ask_text(self, question: str, *, option: str, option_value: str | None, default: str = "") -> str:
        """Return the option's value if it is not None, otherwise the operator's answer or the default."""
        if option_value is not None:
            return option_value
        if self.is_interactive:
            return _prompt(question, default=default)
        return default or self._ask_without_default(question, option)

    def ask_optional_text(self, question: str, *, default: str) -> str:
        """Return the operator's answer, or '' if the operator answers `-`.

        The question is always asked. Call this function only if `is_interactive` is true.
        """
        answer = _prompt(f"{question} (- for no value)", default=default or "-")
        return "" if answer == "-" else answer

    def ask_choice(
        self, question: str, choices: tuple[str, ...], *, option: str, option_value: str | None, default: str
    ) -> str:
        """Return the value of the option, or an answer that is one of the choices.

        If an answer is not one of the choices, the question is asked again. Raises typer.BadParameter if the value of
        the option, or a default that is used without a question, is not one of the choices.
        """
        while True:
            answer = self.ask_text(
                f"{question} ({', '.join(choices)})", option=option, option_value=option_value, default=default
            )
            if answer in choices:
                return answer
            if option_value is not None or not self.is_interactive:
                raise typer.BadParameter(f"{option} must be one of {', '.join(choices)}, not {answer}")

    def ask_secret(
        self,
        question: str,
        *,
        file: Path | None,
        variable: str,
        option: str,
        secrets_in: Callable[[str], Iterable[str]] = lambda text: [text],
    ) -> str:
        """Return the secret from the file or the environment variable; otherwise ask the operator, without echo.

        `secrets_in` returns the parts of the secret that the redactor masks in all output; by default the whole secret.
        """
        secret = read_secret_file(file) if file is not None else os.environ.get(variable, "").strip()
        if not secret and not self._has_terminal:
            raise typer.BadParameter(f"{option} or {variable} is missing, and there is no terminal to ask on")
        secret = secret or _prompt(question, hide_input=True)
        redactor.add(*secrets_in(secret))
        return secret

    def ask_code(self) -> str:
        """Return the code of the administrator's second factor. Raises typer.BadParameter without a terminal."""
        if not self._has_terminal:
            raise typer.BadParameter(
                "the administrator has a second factor, and there is no terminal to ask on: use a token of the "
                "administrator, as in --admin root@pam!setup"
            )
        return _prompt("Code of the second factor (TOTP)")

    def ask_yes_or_no(self, question: str, *, default: bool = True) -> bool:
        """Return whether the operator answers yes. Without a terminal or with --yes, return the default."""
        if not self.is_interactive:
            return default
        try:
            # `sanitized` masks secrets and escapes control characters.
            return typer.confirm(sanitized(question), default=default)
        except typer.Abort:
            raise typer.Exit(EXIT_INTERRUPTED) from None

    def require_agreement(self, question: str) -> None:
        """End the command unless the operator agrees, or --yes is set."""
        confirm(question, yes=self._skips_questions_with_default)

    def _ask_without_default(self, question: str, option: str) -> str:
        if not self._has_terminal:
            raise typer.BadParameter(f"{option} is missing, and there is no terminal to ask on")
        return _prompt(question)


def _prompt(question: str, *, default: str = "", hide_input: bool = False) -> str:
    try:
        answer = typer.prompt(sanitized(question), default=default or None, hide_input=hide_input)
    except typer.Abort:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    return str(answer).strip()
