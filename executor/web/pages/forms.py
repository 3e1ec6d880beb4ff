"""Reads the HTML forms that browsers send to the pages."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

#: The maximum size of a form in bytes, and the maximum number of its fields.
MAX_FORM_BYTES, MAX_FORM_FIELD_COUNT = 16_384, 20


class FormTooLarge(Exception):
    """The form exceeds MAX_FORM_BYTES or MAX_FORM_FIELD_COUNT."""


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form. In the values, a blank replaces each unprintable character.

    If a field is sent twice, the last value is used. Raises FormTooLarge.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise FormTooLarge
    try:
        fields = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELD_COUNT)
    except ValueError as error:
        raise FormTooLarge from error
    return {name: replace_unprintable(value) for name, value in fields}


def replace_unprintable(text: str) -> str:
    """Return the text with a blank in place of each unprintable character. PostgreSQL, for example, refuses NUL."""
    return "".join(char if char.isprintable() else " " for char in text)
