"""Makes FulcrumCore's error answers, which are JSON with the content type `text/plain`."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """The error answer that ends a call. If `body` is None, the answer has no body, as after a panic of a Go handler.

    In this package, "Raises a 400" in a docstring means that a function raises a Problem with this status.
    """

    def __init__(self, status: int, body: dict[str, Any] | None) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


class PropertyErrors(Exception):
    """The properties in a request are invalid.

    Each error is a pair: the name of a top-level property and a message. The name is empty if the error is about
    several properties.
    """

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        self.errors = errors
        super().__init__(self._summary())

    def _summary(self) -> str:
        # If there is one error, FulcrumCore sends its message; if there are several, only their number.
        if len(self.errors) == 1:
            path, message = self.errors[0]
            return f"{path}: {message}" if path else message
        return f"validation failed with {len(self.errors)} errors"


def unauthorized(text: str = "authentication required") -> Problem:
    return Problem(401, {"status": "Unauthorized", "error": text})


def forbidden(text: str = "access denied") -> Problem:
    return Problem(403, {"status": "Forbidden", "error": text})


def bad_request(text: str) -> Problem:
    return Problem(400, {"status": "Invalid request", "error": text})


def not_found() -> Problem:
    return Problem(404, {"status": "Resource not found"})


def conflict(text: str) -> Problem:
    return Problem(409, {"status": "Conflict", "error": text})


def internal(text: str) -> Problem:
    return Problem(500, {"status": "Internal server error", "error": text})


def panic() -> Problem:
    """Return the answer of the real server when a handler panics: 500 without a body."""
    return Problem(500, None)


def validation_failed(errors: PropertyErrors) -> Problem:
    items = [{"path": path, "message": message} for path, message in errors.errors]
    return Problem(400, {"status": "Validation failed", "valid": False, "errors": items})
