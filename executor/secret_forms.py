"""Lists the forms in which a text may contain a secret: plain, JSON-escaped, URL-encoded, in base64, in hex, quoted."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

#: Each line of a secret, and of its base64 text, is also a form if the line has at least this length.
MIN_LINE_LENGTH = 8

#: Each item contains the special characters that one kind of program leaves unescaped in a URL.
_UNESCAPED_IN_URLS = (
    "",  # a program that escapes all special characters
    "/",  # a program that encodes a path
    "!#$%&'()*+,/:;=?@[]~",  # the Python library `requests`
    "!'()*~",  # a browser
)


def list_written_forms(secret: str, min_length: int) -> set[str]:
    """Return the forms in which a text may contain the secret, without forms shorter than `min_length` characters."""
    texts = {secret, secret.strip()}
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        texts.update(line for line in lines if len(line) >= MIN_LINE_LENGTH)
    return {form for text in texts for form in _forms(text) if len(form) >= min_length}


def _forms(text: str) -> Iterator[str]:
    """Yield every form of a text. The text is a whole secret or one line of a secret."""
    data = text.encode("utf-8", "surrogatepass")
    yield text
    yield from _escaped_forms(text)
    yield from _url_encoded_forms(text)
    json_data = {_escape_json_ascii(text).encode(), _escape_json_unicode(text).encode("utf-8", "surrogatepass")}
    for data_to_encode in {data, *json_data}:  # base64 is often applied to a whole JSON document
        yield from _base64_forms(data_to_encode)
    yield from (data.hex(), data.hex().upper())


def _escaped_forms(text: str) -> Iterator[str]:
    """Yield the JSON forms and the quoted forms of the text, and variants of each form.

    The variants of every form: escaped once more, for JSON, for Python's `repr` or for HTML.
    More variants of a JSON form: quoted for YAML; URL-encoded; escaped for JSON twice more, because Ansible prints JSON
    inside JSON.
    """
    json_forms = {escape(text) for escape in _JSON_ESCAPE_FUNCTIONS}
    second_escapes = (
        *_JSON_ESCAPE_FUNCTIONS,
        _repr_in_double_quotes,
        _repr_in_single_quotes,
        _escape_html_like_python,
        _escape_html_like_jinja,
    )
    for form in {*json_forms, *_quoted_forms(text)}:
        yield form
        yield from (escape(form) for escape in second_escapes)
    for form in json_forms:
        yield form.replace("'", "''")  # JSON between single quotes in YAML
        yield from (quote(form, safe="", errors="surrogatepass"), quote_plus(form, errors="surrogatepass"))
        yield from (_escape_json_ascii(_escape_json_ascii(form)), _escape_json_unicode(_escape_json_unicode(form)))


def _quoted_forms(text: str) -> Iterator[str]:
    """Yield the text as several languages write it between quotes, but without these quotes."""
    # Python; the longer text around a secret determines which quotes `repr` uses, so both kinds are possible
    yield from (_repr_in_double_quotes(text), _repr_in_single_quotes(text))
    yield from (_ascii_in_double_quotes(text), _escape_single_quotes(_ascii_in_double_quotes(text)))
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]
    yield text.encode("ascii", "backslashreplace").decode()  # how Python prints an error to a stream that is not UTF-8
    # Perl and libpq
    yield _escape_single_quotes(text.replace("\\", "\\\\"))
    # a shell; the last form is the output of `printf %q`
    yield shlex.quote(text).removeprefix("'").removesuffix("'")
    yield text.replace("'", "'\\''")
    yield "".join(char if char.isalnum() or char in "_-./:@%+=," else f"\\{char}" for char in text)
    # YAML
    yield text.replace("'", "''")
    yield _yaml_in_double_quotes(text, _YAML_UNESCAPED_ASCII)
    yield _yaml_in_double_quotes(text, _YAML_UNESCAPED_UNICODE)
    # HTML
    yield from (_escape_html_like_python(text), html.escape(text, quote=False), _escape_html_like_jinja(text))


def _repr_in_double_quotes(text: str) -> str:
    """Return the text as Python's `repr` writes it between double quotes."""
    return "".join(char if char in "'\"" else repr(char)[1:-1] for char in text)


def _repr_in_single_quotes(text: str) -> str:
    """Return the text as Python's `repr` writes it between single quotes."""
    return _escape_single_quotes(_repr_in_double_quotes(text))


def _escape_single_quotes(text: str) -> str:
    """Return the text with a backslash before each single quote."""
    return text.replace("'", "\\'")


def _ascii_in_double_quotes(text: str) -> str:
    """Return the text as Python's `ascii` writes it between double quotes."""
    return "".join(char if char in "'\"" else ascii(char)[1:-1] for char in text)


def _escape_html_like_python(text: str) -> str:
    return html.escape(text)


def _escape_html_like_jinja(text: str) -> str:
    """Return the text as Jinja escapes it for HTML. Jinja and Python's `html` use different entities for quotes."""
    return html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")


def _escape_json_ascii(text: str) -> str:
    """Return the text as JSON in which all characters outside of ASCII are escaped."""
    return json.dumps(text)[1:-1]


def _escape_json_unicode(text: str) -> str:
    """Return the text as JSON in which characters outside of ASCII are not escaped."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _escape_json_slashes(text: str) -> str:
    """Return the text as JSON with escaped slashes, which some programs write."""
    return _escape_json_ascii(text).replace("/", "\\/")


def _escape_json_like_go(text: str) -> str:
    """Return the text as Go, the language of FulcrumCore, writes JSON."""
    return _escape_json_unicode(text).translate(_GO_JSON_ESCAPE_SEQUENCES)


#: The functions that escape a text for JSON.
_JSON_ESCAPE_FUNCTIONS: tuple[Callable[[str], str], ...] = (
    _escape_json_ascii,
    _escape_json_unicode,
    _escape_json_slashes,
    _escape_json_like_go,
)
#: The escape sequences of the characters that Go escapes in JSON, but Python does not.
_GO_JSON_ESCAPE_SEQUENCES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
#: The characters for which YAML has a short escape sequence, each with the character after the backslash.
_YAML_SHORT_ESCAPES = {
    **{"\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e"},
    **{'"': '"', "\\": "\\", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P"},
}
#: The first and the last character of a range. The range includes both.
CharacterRange = tuple[str, str]
#: The characters that PyYAML leaves unescaped between double quotes: without its option `allow_unicode`, and with this
#: option.
_YAML_UNESCAPED_ASCII: tuple[CharacterRange, ...] = ((" ", "~"),)
_YAML_UNESCAPED_UNICODE: tuple[CharacterRange, ...] = (
    *_YAML_UNESCAPED_ASCII,
    ("\xa0", "\u2027"),
    ("\u202a", "\ud7ff"),
    ("\ue000", "\ufefe"),
    ("\uff00", "\ufffd"),
)


def _yaml_in_double_quotes(text: str, unescaped_ranges: tuple[CharacterRange, ...]) -> str:
    """Return the text as PyYAML writes it between double quotes.

    PyYAML escapes double quotes, backslashes, and all characters outside of `unescaped_ranges`.
    """
    return "".join(char if _stays_unescaped(char, unescaped_ranges) else _yaml_escape(char) for char in text)


def _stays_unescaped(char: str, unescaped_ranges: tuple[CharacterRange, ...]) -> bool:
    return char not in '"\\' and any(first <= char <= last for first, last in unescaped_ranges)


def _yaml_escape(char: str) -> str:
    """Return the escape sequence of one character in YAML: the short one if there is one, otherwise its code in hex."""
    if char in _YAML_SHORT_ESCAPES:
        return "\\" + _YAML_SHORT_ESCAPES[char]
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _url_encoded_forms(text: str) -> Iterator[str]:
    """Yield the text percent-encoded, with hex digits in upper and lower case."""
    encoded_texts = [
        quote(text, safe=unescaped_chars, errors="surrogatepass") for unescaped_chars in _UNESCAPED_IN_URLS
    ]
    encoded_texts.append(quote_plus(text, errors="surrogatepass"))
    for encoded in encoded_texts:
        yield from (encoded, _with_lower_case_hex(encoded))
        yield from (quote(encoded, safe=""), quote(encoded))  # a URL that is a parameter of another URL


def _with_lower_case_hex(encoded: str) -> str:
    """Return the percent-encoded text with the two hex digits after each `%` in lower case, as in `%2f`."""
    before_first_percent, *parts = encoded.split("%")
    return before_first_percent + "".join(f"%{part[:2].lower()}{part[2:]}" for part in parts)


def _base64_forms(data: bytes) -> Iterator[str]:
    """Yield the data in base64: on its own, as a part of longer data, and in lines of 76 characters.

    Each of these texts has four forms: unchanged, in the URL-safe alphabet, with escaped slashes, and URL-encoded. Each
    form is yielded with and without padding.
    """
    lines = base64.encodebytes(data).decode().split("\n")
    long_lines = [line for line in lines if len(line) >= MIN_LINE_LENGTH]
    for text in [base64.b64encode(data).decode(), *_base64_forms_inside_longer_data(data), *long_lines]:
        url_safe = text.replace("+", "-").replace("/", "_")
        for form in (text, url_safe, text.replace("/", "\\/"), quote(text, safe="")):
            without_padding = form.rstrip("=").removesuffix("%3D%3D").removesuffix("%3D")
            yield from (form, without_padding)


def _base64_forms_inside_longer_data(data: bytes) -> Iterator[str]:
    """Yield the base64 characters that encode the data if the data is a part of longer data.

    Base64 encodes groups of three bytes. The data may start at any of the three positions in a group, which gives three
    different texts. A character that also depends on the bytes before or after the data is left out.
    """
    # In the group in which the data starts, `bytes_before` bytes precede the data. The first `mixed_char_count`
    # characters of the group depend on these bytes, and are left out. The characters from index `end` depend on the
    # bytes after the data.
    for bytes_before, mixed_char_count in ((0, 0), (1, 2), (2, 3)):
        end = (bytes_before + len(data)) * 8 // 6  # one character encodes 6 bits
        yield base64.b64encode(bytes(bytes_before) + data).decode()[mixed_char_count:end]
