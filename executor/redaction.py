"""No secret leaves this program: one `redactor` masks every registered value, in every form that it may take.

It stands in front of logs, run artifacts, error messages, the database, the command line and the web pages. A secret is
found as it is, JSON-escaped (up to three times: Ansible prints JSON inside JSON), URL-encoded, in base64 at any
alignment, in hex, quoted for a shell, Python, Perl, YAML or HTML, and line by line when it has several lines.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
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
        self._forms: dict[str, frozenset[str]] = {}
        self._needles = _Needles(())

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def add(self, *secrets: str) -> None:
        """Mask these values from now on. Values shorter than MIN_LENGTH are ignored, for the reason given there.

        A value added twice has to be discarded twice: two jobs may hold the same password.
        """
        wanted = [secret for secret in secrets if len(secret.strip()) >= MIN_LENGTH]
        made = {
            secret: frozenset(_forms(secret)) for secret in set(wanted)
        }  # before the lock: a long one takes a while
        with self._lock:
            self._secrets.update(wanted)
            self._forms = {**made, **self._forms}
            self._rebuild()

    def discard(self, *secrets: str) -> None:
        """Forget these values, unless somebody else has added them too. Unknown ones do no harm."""
        with self._lock:
            self._secrets.subtract(secret for secret in secrets if secret in self._secrets)
            self._secrets = +self._secrets
            self._rebuild()

    def redact(self, text: str) -> str:
        """Return the text with every occurrence of a secret masked; where occurrences overlap, all of them."""
        return _mask(text, self._needles.spans(text))

    def redact_value(self, obj: Any) -> Any:
        """Return a copy of dicts, lists, tuples and sets in which every string, key or value, is redacted.

        Numbers are masked when they are a secret as a whole; any other object when its text would show one.
        """
        return self._value(obj, 0)

    def _rebuild(self) -> None:
        """Replace the needles in one step, so that `redact` needs no lock."""
        self._forms = {secret: self._forms[secret] for secret in self._secrets}
        self._needles = _Needles(form for forms in self._forms.values() for form in forms)

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
        spans = needles.spans(text)
        cut = needles.safe_length(text)
        # A masked span that reaches into the held part may still grow: it is held as a whole.
        while spans and spans[-1][1] > cut:
            cut = min(cut, spans.pop()[0])
        self._held = text[cut:]
        return _mask(text[:cut], spans)

    def flush(self) -> str:
        """Return what was held back, redacted. The stream may go on afterwards."""
        text, self._held = self._held, ""
        return self._redactor.redact(text)


class _Needles:
    """Texts to be found, looked up by how they begin: searching costs the same however many they are."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        by_start = defaultdict(list)
        for text in sorted(self._texts, key=len, reverse=True):
            by_start[text[:MIN_LENGTH]].append(text)
        self._by_start = dict(by_start)
        self._shorter = frozenset(start[:length] for start in by_start for length in range(1, MIN_LENGTH))
        self._longest = max(map(len, self._texts), default=0)

    def __contains__(self, text: str) -> bool:
        return text in self._texts

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Find where needles stand in the text, overlapping occurrences joined, in order."""
        spans: list[tuple[int, int]] = []
        for start, end in self._found(text):
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans

    def safe_length(self, text: str) -> int:
        """How much of the text can be judged already: up to where its end may be the beginning of a needle."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if self._may_go_on(text, start):
                return start
        return len(text)

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the longest needle at each place that has one."""
        if not self._by_start:
            return
        for start in range(len(text) - MIN_LENGTH + 1):
            for needle in self._by_start.get(text[start : start + MIN_LENGTH], ()):
                if text.startswith(needle, start):
                    yield start, start + len(needle)
                    break

    def _may_go_on(self, text: str, start: int) -> bool:
        """True when a needle begins with all that follows, and is longer."""
        rest_length = len(text) - start
        if rest_length < MIN_LENGTH:
            return text[start:] in self._shorter
        needles = self._by_start.get(text[start : start + MIN_LENGTH], ())
        return any(len(needle) > rest_length and needle.startswith(text[start:]) for needle in needles)


def _mask(text: str, spans: list[tuple[int, int]]) -> str:
    if not spans:
        return text
    parts, shown_to = [], 0
    for start, end in spans:
        parts += [text[shown_to:start], MASK]
        shown_to = end
    return "".join([*parts, text[shown_to:]])


def _forms(secret: str) -> set[str]:
    """Return every form of one secret that is long enough to be masked."""
    pieces = {secret, secret.strip()}
    forms = {form for piece in pieces for form in _encoded(piece)}
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        forms |= {form for line in lines if len(line) >= MIN_LINE_LENGTH for form in _encoded(line)}
    return {form for form in forms if len(form) >= MIN_LENGTH}


def _encoded(text: str) -> Iterator[str]:
    data = text.encode("utf-8", "surrogatepass")
    yield text
    yield from _escaped(text)
    yield from _url_encoded(text)
    for whole in {data, _json_ascii(text).encode(), _json_unicode(text).encode("utf-8", "surrogatepass")}:
        yield from _base64(whole)
    yield from (data.hex(), data.hex().upper())


def _escaped(text: str) -> Iterator[str]:
    """Whatever is quoted may stand in JSON, in Python's `repr`, in HTML or in a URL, and JSON in JSON once more."""
    json_forms = {escape(text) for escape in _JSON}
    for written in {*json_forms, *_quoted(text)}:
        yield written
        yield from (escape(written) for escape in (*_JSON, _repr, _repr_single, _html, _html_by_jinja))
    for written in json_forms:
        yield written.replace("'", "''")  # inside YAML
        yield from (quote(written, safe=""), quote_plus(written))
        yield from (_json_ascii(_json_ascii(written)), _json_unicode(_json_unicode(written)))


def _quoted(text: str) -> Iterator[str]:
    """Python, Perl, shell, YAML and HTML."""
    yield from (_repr(text), _repr_single(text), _ascii(text), _single(_ascii(text)))
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]
    yield text.encode("ascii", "backslashreplace").decode()  # an error that Python prints where there is no UTF-8
    yield _single(text.replace("\\", "\\\\"))  # Perl and libpq, between single quotes
    yield shlex.quote(text).removeprefix("'").removesuffix("'")
    yield text.replace("'", "'\\''")
    yield "".join(char if char.isalnum() or char in "_-./:@%+=," else f"\\{char}" for char in text)  # printf %q
    yield text.replace("'", "''")
    yield from (_yaml(text, shown) for shown in (_YAML_ASCII, _YAML_UNICODE))
    yield from (_html(text), html.escape(text, quote=False), _html_by_jinja(text))


def _repr(text: str) -> str:
    """Write it as between double quotes in Python."""
    return "".join(char if char in "'\"" else repr(char)[1:-1] for char in text)


def _repr_single(text: str) -> str:
    return _single(_repr(text))


def _single(text: str) -> str:
    """Write it as between single quotes: which ones Python takes depends on all that is between them."""
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
    """As FulcrumCore writes it."""
    return _json_unicode(text).translate(_GO)


_JSON: tuple[Callable[[str], str], ...] = (_json_ascii, _json_unicode, _json_slashes, _json_go)
_GO = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
_YAML_NAMES = {
    **{"\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e"},
    **{'"': '"', "\\": "\\", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P"},
}
#: What PyYAML leaves as it is between double quotes, told to allow Unicode or not.
_YAML_ASCII = re.compile(r"[ -~]")
_YAML_UNICODE = re.compile(r"[ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]")


def _yaml(text: str, shown: re.Pattern[str]) -> str:
    """Write it as between double quotes in YAML."""
    return "".join(char if shown.match(char) and char not in '"\\' else _yaml_escape(char) for char in text)


def _yaml_escape(char: str) -> str:
    code = ord(char)
    number = f"x{code:02X}" if code <= 0xFF else f"u{code:04X}" if code <= 0xFFFF else f"U{code:08X}"
    return "\\" + _YAML_NAMES.get(char, number)


def _url_encoded(text: str) -> Iterator[str]:
    for upper in [*(quote(text, safe=safe, errors="surrogatepass") for safe in _URL_SAFE), _plus_encoded(text)]:
        yield from (upper, _lower_hex(upper))
        yield from (quote(upper, safe=""), quote(upper))  # an address inside an address


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
        for form in (text, text.replace("+", "-").replace("/", "_"), text.replace("/", "\\/"), quote(text, safe="")):
            yield from (form, form.rstrip("=").removesuffix("%3D%3D").removesuffix("%3D"))


def _inner_base64(data: bytes) -> Iterator[str]:
    """The characters that depend on this value alone, wherever it starts inside a group of three bytes."""
    for offset, tainted in ((0, 0), (1, 2), (2, 3)):
        whole = (offset + len(data)) * 8 // 6
        yield base64.b64encode(bytes(offset) + data).decode()[tainted:whole]


#: The one that log, runner, reporter, database and command line share.
redactor = Redactor()
