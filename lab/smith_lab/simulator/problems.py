"""Makes FulcrumCore's error answers. Their body is JSON, but their content type is `text/plain`."""

from __future__ import annotations

from typing import Any


class ErrorAnswer(Exception):
    """The error answer that ends a call. If `body` is None, the answer has no body, as after a panic of a Go handler.

    In this package, "Raises a 400" in a docstring means that the function raises an ErrorAnswer with the status 400.
    """

    def __init__(self, status: int, body: dict[str, Any] | None) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


class PropertyErrors(Exception):
    """The properties in a request are invalid.

    Each item of `errors` is a pair: the name of a property and a message. The name is empty if the message is about
    several properties. The name is also empty if a function that checks one value raises the exception: its caller,
    `properties.process`, adds the name.
    """

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        self.errors = errors
        super().__init__(self._summary())

    def _summary(self) -> str:
        # FulcrumCore sends this text if the configuration of an agent, or a property that an agent reports, is invalid.
        # If a user sends invalid properties of a service, FulcrumCore sends all errors (`validation_failed`).
        if len(self.errors) == 1:
            name, message = self.errors[0]
            return f"{name}: {message}" if name else message
        return f"validation failed with {len(self.errors)} errors"


def unauthorized(text: str = "authentication required") -> ErrorAnswer:
    return ErrorAnswer(401, {"status": "Unauthorized", "error": text})


def forbidden(text: str = "access denied") -> ErrorAnswer:
    return ErrorAnswer(403, {"status": "Forbidden", "error": text})


def bad_request(text: str) -> ErrorAnswer:
    return ErrorAnswer(400, {"status": "Invalid request", "error": text})


def not_found() -> ErrorAnswer:
    return ErrorAnswer(404, {"status": "Resource not found"})


def conflict(text: str) -> ErrorAnswer:
    return ErrorAnswer(409, {"status": "Conflict", "error": text})


def internal_error(text: str) -> ErrorAnswer:
    return ErrorAnswer(500, {"status": "Internal server error", "error": text})


def panic_answer() -> ErrorAnswer:
    """Return the answer that FulcrumCore sends when a handler panics: 500 without a body."""
    return ErrorAnswer(500, None)


def validation_failed(property_errors: PropertyErrors) -> ErrorAnswer:
    items = [{"path": name, "message": message} for name, message in property_errors.errors]
    return ErrorAnswer(400, {"status": "Validation failed", "valid": False, "errors": items})
