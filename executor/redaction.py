"""No secret leaves this program: one `redactor` masks every registered value, in every form that it may take.

It stands in front of logs, run artifacts, error messages, the database, the command line and the web pages. A secret is
found as it is, JSON-escaped (twice, too: Ansible prints JSON inside JSON), URL-encoded, in base64 at any alignment,
quoted for a shell, for Python, for YAML or for HTML, and line by line when it has several lines.
"""

from __future__ import annotations

import base64
import html
import json
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

#: What stands in a secret's place. Its length says nothing of the secret's.
MASK = "********"
#: Shorter secrets are not masked: "1" or "yes" would turn half of every log into stars and, by where they stand, tell
#: the secret. Whoever takes settings in refuses such secrets instead.
MIN_LENGTH = 4
#: A line of a secret with several lines is masked on its own from this length on.
MIN_LINE_LENGTH = 8
#: Deeper values are replaced as a whole, so that a hostile or circular one cannot exhaust the stack.
MAX_DEPTH = 100
TOO_DEEP = "[nested too deep]"

#: What others leave unescaped in a URL: nothing, a path's slash, requests' re-quoting, a browser's encodeURIComponent.
_URL_SAFE = ("", "/", "!#$%&'()*+,/:;=?@[]~", "!'()*~")


class Redactor:
    """Masks the values that were added to it. Any thread may add, discard and redact at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: Counter[str] = Counter()
        self._needles: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def add(self, *secrets: str) -> None:
        """Mask these values from now on. Values shorter than MIN_LENGTH are ignored, for the reason given there.

        A value added twice has to be discarded twice: two jobs may hold the same password.
        """
        with self._lock:
            self._secrets.update(secret for secret in secrets if len(secret.strip()) >= MIN_LENGTH)
            self._rebuild()

    def discard(self, *secrets: str) -> None:
        """Forget these values, unless somebody else has added them too. Unknown ones do no harm."""
        with self._lock:
            self._secrets.subtract(secret for secret in secrets if secret in self._secrets)
            self._secrets = +self._secrets
            self._rebuild()

    def redact(self, text: str) -> str:
        """Return the text with every occurrence of a secret masked; where occurrences overlap, all of them."""
        return _mask(text, _spans(text, self._needles))

    def redact_value(self, obj: Any) -> Any:
        """Return a copy of dicts, lists, tuples and sets in which every string, key or value, is redacted.

        Numbers are masked when they are a secret as a whole; any other object when its text would show one.
        """
        return self._value(obj, 0)

    def _rebuild(self) -> None:
        """Replace the needles in one step, so that `redact` needs no lock."""
        needles = {form for secret in self._secrets for form in _forms(secret)}
        self._needles = tuple(sorted(needles, key=lambda needle: (-len(needle), needle)))

    def _value(self, obj: Any, depth: int) -> Any:
        if not isinstance(obj, (dict, list, tuple, set, frozenset)):
            return self._scalar(obj)
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        if isinstance(obj, dict):
            return {self._value(key, depth + 1): self._value(value, depth + 1) for key, value in obj.items()}
        items = [self._value(item, depth + 1) for item in obj]
        return next(kind(items) for kind in (list, tuple, set, frozenset) if isinstance(obj, kind))

    def _scalar(self, obj: Any) -> Any:
        if isinstance(obj, str):
            return self.redact(obj)
        if obj is None or isinstance(obj, bool):
            return obj
        if isinstance(obj, (int, float)):
            return MASK if str(obj) in self._needles else obj
        if isinstance(obj, bytes):
            return self.redact(obj.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        return self._other(obj)

    def _other(self, obj: Any) -> Any:
        """Keep an object that shows no secret by `str` or `repr`; any renderer may use either."""
        for show in (str, repr):
            text = show(obj)
            if (masked := self.redact(text)) != text:
                return masked
        return obj


class StreamRedactor:
    """Redacts text that arrives in pieces, as if it had come in one: a secret may be cut anywhere.

    `feed` holds back the end of the text only while it may be the beginning of a secret; `flush` gives the rest.
    Not thread-safe: one for each stream.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is safe to show by now."""
        text = self._held + text
        needles = self._redactor._needles
        spans = _spans(text, needles)
        cut = _safe_length(text, needles)
        # A masked span that reaches into the held part may still grow: it is held as a whole.
        while spans and spans[-1][1] > cut:
            cut = min(cut, spans.pop()[0])
        self._held = text[cut:]
        return _mask(text[:cut], spans)

    def flush(self) -> str:
        """Return what was held back, redacted. The stream may go on afterwards."""
        text, self._held = self._held, ""
        return self._redactor.redact(text)


def _spans(text: str, needles: tuple[str, ...]) -> list[tuple[int, int]]:
    """Find where needles stand in the text, overlapping occurrences joined, in order."""
    found = sorted((start, start + len(needle)) for needle in needles for start in _starts(text, needle))
    spans: list[tuple[int, int]] = []
    for start, end in found:
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _starts(text: str, needle: str) -> Iterator[int]:
    """Yield where the needle starts, occurrences that overlap each other included."""
    start = text.find(needle)
    while start >= 0:
        yield start
        start = text.find(needle, start + 1)


def _mask(text: str, spans: list[tuple[int, int]]) -> str:
    if not spans:
        return text
    parts, shown_to = [], 0
    for start, end in spans:
        parts += [text[shown_to:start], MASK]
        shown_to = end
    return "".join([*parts, text[shown_to:]])


def _safe_length(text: str, needles: tuple[str, ...]) -> int:
    """How much of the text can be judged already: up to where its end may be the beginning of a needle."""
    return min((_suffix_start(text, needle) for needle in needles), default=len(text))


def _suffix_start(text: str, needle: str) -> int:
    """Where the longest end of the text starts that the needle begins with, the whole needle excluded."""
    start = text.find(needle[0], max(0, len(text) - len(needle) + 1))
    while start >= 0:
        if needle.startswith(text[start:]):
            return start
        start = text.find(needle[0], start + 1)
    return len(text)


def _forms(secret: str) -> set[str]:
    """Return every form of one secret that is long enough to be masked."""
    pieces = {secret, secret.strip()}
    forms = {form for piece in pieces for form in _encoded(piece)}
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        forms |= {form for line in lines if len(line) >= MIN_LINE_LENGTH for form in _encoded(line)}
    return {form for form in forms if len(form) >= MIN_LENGTH}


def _encoded(text: str) -> Iterator[str]:
    yield text
    yield from _escaped(text)
    yield from _url_encoded(text)
    yield from _base64(text.encode("utf-8", "surrogatepass"))


def _escaped(text: str) -> Iterator[str]:
    """JSON (also inside JSON), Python, shell, YAML and HTML."""
    once: list[Callable[[str], str]] = [_json_ascii, _json_unicode, lambda t: _json_ascii(t).replace("/", "\\/")]
    for escape in once:
        yield escape(text)
        yield escape(text).replace("'", "''")  # JSON inside YAML
    for written in {*(escape(text) for escape in once), *_quoted(text)}:
        yield written
        yield from (escape(written) for escape in once)  # what Ansible prints is JSON, whatever it quotes


def _quoted(text: str) -> Iterator[str]:
    """Python, shell, YAML and HTML."""
    yield repr(text)[1:-1]
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]
    yield shlex.quote(text).removeprefix("'").removesuffix("'")
    yield text.replace("'", "'\\''")
    yield "".join(char if char.isalnum() or char in "_-./:@%+=," else f"\\{char}" for char in text)  # printf %q
    yield text.replace("'", "''")
    yield html.escape(text)


def _json_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _json_unicode(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _url_encoded(text: str) -> Iterator[str]:
    for upper in [*(quote(text, safe=safe, errors="surrogatepass") for safe in _URL_SAFE), _plus_encoded(text)]:
        yield upper
        yield _lower_hex(upper)


def _plus_encoded(text: str) -> str:
    return quote_plus(text, errors="surrogatepass")


def _lower_hex(encoded: str) -> str:
    """Write `%2F` as `%2f`, and leave the rest as it is."""
    head, *tail = encoded.split("%")
    return head + "".join(f"%{part[:2].lower()}{part[2:]}" for part in tail)


def _base64(data: bytes) -> Iterator[str]:
    """Base64 of the value alone, of the value inside something longer, and folded into lines of 76 characters."""
    folded = base64.encodebytes(data).decode().split("\n")
    whole = [base64.b64encode(data).decode(), *_inner_base64(data)]
    for text in [*whole, *(line for line in folded if len(line) >= MIN_LINE_LENGTH)]:
        for form in (text, text.replace("+", "-").replace("/", "_")):
            yield from (form, form.rstrip("="))


def _inner_base64(data: bytes) -> Iterator[str]:
    """The characters that depend on this value alone, wherever it starts inside a group of three bytes."""
    for offset, tainted in ((0, 0), (1, 2), (2, 3)):
        whole = (offset + len(data)) * 8 // 6
        yield base64.b64encode(bytes(offset) + data).decode()[tainted:whole]


#: The one that log, runner, reporter, database and command line share.
redactor = Redactor()
