"""Lists the forms in which a secret may be written: plain, JSON-escaped, URL-encoded, base64, hex, or quoted."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

#: Each line of a secret with several lines is also masked on its own, if it has at least this many characters.
MIN_LINE_LENGTH = 8

#: Sets of characters that programs leave unescaped in URLs: none; the slash of a path; as requests; as a browser.
_URL_SAFE = ("", "/", "!#$%&'()*+,/:;=?@[]~", "!'()*~")


def forms_of(secret: str, min_length: int) -> set[str]:
    """Return every form of a secret that has at least `min_length` characters."""
    pieces = {secret, secret.strip()}
    forms = {form for piece in pieces for form in _encoded(piece)}
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        forms |= {form for line in lines if len(line) >= MIN_LINE_LENGTH for form in _encoded(line)}
    return {form for form in forms if len(form) >= min_length}


def _encoded(text: str) -> Iterator[str]:
    data = text.encode("utf-8", "surrogatepass")
    yield text
    yield from _escaped(text)
    yield from _url_encoded(text)
    for whole in {data, _json_ascii(text).encode(), _json_unicode(text).encode("utf-8", "surrogatepass")}:
        yield from _base64(whole)
    yield from (data.hex(), data.hex().upper())


def _escaped(text: str) -> Iterator[str]:
    """Yield the JSON and quoted forms, and each of these escaped again for JSON, `repr` or HTML.

    The JSON forms also occur inside YAML and URLs, and may be escaped three times for JSON.
    """
    json_forms = {escape(text) for escape in _JSON}
    for written in {*json_forms, *_quoted(text)}:
        yield written
        yield from (escape(written) for escape in (*_JSON, _repr, _repr_single, _html, _html_by_jinja))
    for written in json_forms:
        yield written.replace("'", "''")  # inside YAML
        yield from (quote(written, safe=""), quote_plus(written))
        yield from (_json_ascii(_json_ascii(written)), _json_unicode(_json_unicode(written)))


def _quoted(text: str) -> Iterator[str]:
    """Yield the forms between quotes in Python, Perl, shell, YAML and HTML."""
    yield from (_repr(text), _repr_single(text), _ascii(text), _single(_ascii(text)))
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]
    yield text.encode("ascii", "backslashreplace").decode()  # how Python prints an error without UTF-8
    yield _single(text.replace("\\", "\\\\"))  # Perl and libpq, between single quotes
    yield shlex.quote(text).removeprefix("'").removesuffix("'")
    yield text.replace("'", "'\\''")
    yield "".join(char if char.isalnum() or char in "_-./:@%+=," else f"\\{char}" for char in text)  # printf %q
    yield text.replace("'", "''")
    yield from (_yaml(text, shown) for shown in (_YAML_ASCII, _YAML_UNICODE))
    yield from (_html(text), html.escape(text, quote=False), _html_by_jinja(text))


def _repr(text: str) -> str:
    """Return the text as Python writes it between double quotes."""
    return "".join(char if char in "'\"" else repr(char)[1:-1] for char in text)


def _repr_single(text: str) -> str:
    return _single(_repr(text))


def _single(text: str) -> str:
    """Return the text as it is written between single quotes. `repr` may choose them because of the text around it."""
    return text.replace("'", "\\'")


def _ascii(text: str) -> str:
    return "".join(char if char in "'\"" else ascii(char)[1:-1] for char in text)


def _html(text: str) -> str:
    return html.escape(text)


def _html_by_jinja(text: str) -> str:
    return html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")


def _json_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _json_unicode(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_slashes(text: str) -> str:
    return _json_ascii(text).replace("/", "\\/")


def _json_go(text: str) -> str:
    """Return the text as Go, the language of FulcrumCore, writes JSON."""
    return _json_unicode(text).translate(_GO)


_JSON: tuple[Callable[[str], str], ...] = (_json_ascii, _json_unicode, _json_slashes, _json_go)
_GO = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
_YAML_NAMES = {
    **{"\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e"},
    **{'"': '"', "\\": "\\", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P"},
}
#: Characters that PyYAML does not escape between double quotes, without and with `allow_unicode`.
_YAML_ASCII = re.compile(r"[ -~]")
_YAML_UNICODE = re.compile(r"[ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]")


def _yaml(text: str, shown: re.Pattern[str]) -> str:
    """Return the text as YAML writes it between double quotes."""
    return "".join(char if shown.match(char) and char not in '"\\' else _yaml_escape(char) for char in text)


def _yaml_escape(char: str) -> str:
    code = ord(char)
    number = f"x{code:02X}" if code <= 0xFF else f"u{code:04X}" if code <= 0xFFFF else f"U{code:08X}"
    return "\\" + _YAML_NAMES.get(char, number)


def _url_encoded(text: str) -> Iterator[str]:
    for upper in [*(quote(text, safe=safe, errors="surrogatepass") for safe in _URL_SAFE), _plus_encoded(text)]:
        yield from (upper, _lower_hex(upper))
        yield from (quote(upper, safe=""), quote(upper))  # a URL inside a URL


def _plus_encoded(text: str) -> str:
    return quote_plus(text, errors="surrogatepass")


def _lower_hex(encoded: str) -> str:
    """Return the text with the hex digits after `%` in lower case, as in `%2f`."""
    head, *tail = encoded.split("%")
    return head + "".join(f"%{part[:2].lower()}{part[2:]}" for part in tail)


def _base64(data: bytes) -> Iterator[str]:
    """Yield base64 of the value, of the value inside longer data, and of the value in lines of 76 characters."""
    folded = base64.encodebytes(data).decode().split("\n")
    whole = [base64.b64encode(data).decode(), *_inner_base64(data)]
    for text in [*whole, *(line for line in folded if len(line) >= MIN_LINE_LENGTH)]:
        for form in (text, text.replace("+", "-").replace("/", "_"), text.replace("/", "\\/"), quote(text, safe="")):
            yield from (form, form.rstrip("=").removesuffix("%3D%3D").removesuffix("%3D"))


def _inner_base64(data: bytes) -> Iterator[str]:
    """Yield the base64 characters that depend on this value only, for each position in a group of three bytes."""
    for offset, skipped in ((0, 0), (1, 2), (2, 3)):
        whole = (offset + len(data)) * 8 // 6
        yield base64.b64encode(bytes(offset) + data).decode()[skipped:whole]
