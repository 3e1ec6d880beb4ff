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

#: Each text has the characters that a program does not escape in a URL. The first program escapes all characters, the
#: second keeps the slash of a path, the third is the Python library requests, and the fourth is a browser.
_URL_SAFE = ("", "/", "!#$%&'()*+,/:;=?@[]~", "!'()*~")


def forms_of(secret: str, min_length: int) -> set[str]:
    """Return the forms in which a secret may be written. Forms shorter than `min_length` characters are left out."""
    pieces = {secret, secret.strip()}
    forms = {form for piece in pieces for form in _encoded(piece)}
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        forms |= {form for line in lines if len(line) >= MIN_LINE_LENGTH for form in _encoded(line)}
    return {form for form in forms if len(form) >= min_length}


def _encoded(text: str) -> Iterator[str]:
    """Yield every form of one text, which is a whole secret or one of its lines."""
    data = text.encode("utf-8", "surrogatepass")
    yield text
    yield from _escaped(text)
    yield from _url_encoded(text)
    # Base64 is often applied to a JSON document, so the JSON-escaped text is also encoded in base64.
    for whole in {data, _json_ascii(text).encode(), _json_unicode(text).encode("utf-8", "surrogatepass")}:
        yield from _base64(whole)
    yield from (data.hex(), data.hex().upper())


def _escaped(text: str) -> Iterator[str]:
    """Yield the forms in JSON and between quotes. Yield each also escaped again for JSON, `repr` or HTML.

    A JSON form may also occur inside YAML or a URL, and may be escaped for JSON three times in all.
    """
    json_forms = {escape(text) for escape in _JSON}
    for written in {*json_forms, *_quoted(text)}:
        yield written
        yield from (escape(written) for escape in (*_JSON, _repr, _repr_single, _html, _html_by_jinja))
    for written in json_forms:
        yield written.replace("'", "''")  # JSON between single quotes in YAML
        yield from (quote(written, safe=""), quote_plus(written))
        yield from (_json_ascii(_json_ascii(written)), _json_unicode(_json_unicode(written)))


def _quoted(text: str) -> Iterator[str]:
    """Yield the text as Python, Perl, a shell, YAML and HTML write it between quotes, without these quotes."""
    yield from (_repr(text), _repr_single(text), _ascii(text), _single(_ascii(text)))
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]
    yield text.encode("ascii", "backslashreplace").decode()  # how Python prints an error to a stream that is not UTF-8
    yield _single(text.replace("\\", "\\\\"))  # how Perl and libpq write it between single quotes
    yield shlex.quote(text).removeprefix("'").removesuffix("'")
    yield text.replace("'", "'\\''")
    yield "".join(
        char if char.isalnum() or char in "_-./:@%+=," else f"\\{char}" for char in text
    )  # how a shell's `printf %q` writes it
    yield text.replace("'", "''")
    yield from (_yaml(text, shown) for shown in (_YAML_ASCII, _YAML_UNICODE))
    yield from (_html(text), html.escape(text, quote=False), _html_by_jinja(text))


def _repr(text: str) -> str:
    """Return the text as Python writes it between double quotes."""
    return "".join(char if char in "'\"" else repr(char)[1:-1] for char in text)


def _repr_single(text: str) -> str:
    """Return the text as Python writes it between single quotes."""
    return _single(_repr(text))


def _single(text: str) -> str:
    """Return the text with its single quotes escaped.

    If a secret is a part of a longer text, the longer text decides which quotes `repr` uses.
    """
    return text.replace("'", "\\'")


def _ascii(text: str) -> str:
    """Return the text as Python's `ascii` writes it between double quotes."""
    return "".join(char if char in "'\"" else ascii(char)[1:-1] for char in text)


def _html(text: str) -> str:
    return html.escape(text)


def _html_by_jinja(text: str) -> str:
    """Return the text as Jinja escapes it for HTML: it writes quotes as other entities than Python's `html` does."""
    return html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")


def _json_ascii(text: str) -> str:
    """Return the text as JSON, with escapes for all characters outside of ASCII."""
    return json.dumps(text)[1:-1]


def _json_unicode(text: str) -> str:
    """Return the text as JSON, without escapes for characters outside of ASCII."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_slashes(text: str) -> str:
    """Return the text as JSON with escaped slashes, which some programs write."""
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
#: These match the characters that PyYAML does not escape between double quotes: the first without the option
#: `allow_unicode`, the second with it.
_YAML_ASCII = re.compile(r"[ -~]")
_YAML_UNICODE = re.compile(r"[ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]")


def _yaml(text: str, shown: re.Pattern[str]) -> str:
    """Return the text as PyYAML writes it between double quotes. `shown` matches the characters it does not escape."""
    return "".join(char if shown.match(char) and char not in '"\\' else _yaml_escape(char) for char in text)


def _yaml_escape(char: str) -> str:
    """Return the escape sequence of one character in YAML: the short name if there is one, else the hex code."""
    code = ord(char)
    number = f"x{code:02X}" if code <= 0xFF else f"u{code:04X}" if code <= 0xFFFF else f"U{code:08X}"
    return "\\" + _YAML_NAMES.get(char, number)


def _url_encoded(text: str) -> Iterator[str]:
    """Yield the text percent-encoded, with hex digits in upper and lower case."""
    for upper in [*(quote(text, safe=safe, errors="surrogatepass") for safe in _URL_SAFE), _plus_encoded(text)]:
        yield from (upper, _lower_hex(upper))
        yield from (quote(upper, safe=""), quote(upper))  # a URL that is a parameter of another URL


def _plus_encoded(text: str) -> str:
    return quote_plus(text, errors="surrogatepass")


def _lower_hex(encoded: str) -> str:
    """Return the text with the hex digits after `%` in lower case, as in `%2f`."""
    head, *tail = encoded.split("%")
    return head + "".join(f"%{part[:2].lower()}{part[2:]}" for part in tail)


def _base64(data: bytes) -> Iterator[str]:
    """Yield the value in base64: on its own, as a part of longer data, and in lines of 76 characters.

    Each text is also yielded in the URL-safe alphabet, with escaped slashes, URL-encoded, and without padding.
    """
    folded = base64.encodebytes(data).decode().split("\n")
    whole = [base64.b64encode(data).decode(), *_inner_base64(data)]
    for text in [*whole, *(line for line in folded if len(line) >= MIN_LINE_LENGTH)]:
        for form in (text, text.replace("+", "-").replace("/", "_"), text.replace("/", "\\/"), quote(text, safe="")):
            yield from (form, form.rstrip("=").removesuffix("%3D%3D").removesuffix("%3D"))


def _inner_base64(data: bytes) -> Iterator[str]:
    """Yield the value's base64 text inside longer data, for each of the three positions at which the value may start.

    Base64 encodes groups of three bytes. Only the characters that do not depend on the bytes around the value are
    yielded.
    """
    for offset, skipped in ((0, 0), (1, 2), (2, 3)):
        whole = (offset + len(data)) * 8 // 6
        yield base64.b64encode(bytes(offset) + data).decode()[skipped:whole]
