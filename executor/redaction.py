"""Masks secrets in all output: logs, run artifacts, error messages, the database, the command line, the web pages.

The process has one `redactor`. It masks every value that was added to it, in every form that `secret_forms.py` lists:
plain; JSON-escaped up to three times, because Ansible prints JSON inside JSON; URL-encoded; in base64 at any alignment;
in hex; quoted for a shell, Python, Perl, YAML or HTML. Each line of a secret with several lines is masked, too.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from executor.secret_forms import forms_of

#: The text that replaces a secret. It does not depend on the secret's length.
MASK = "********"
#: Minimum length of a secret that is masked. A shorter secret, such as "1" or "yes", would mask many unrelated texts,
#: and a reader could infer the secret from the masked places. The settings refuse such secrets.
MIN_LENGTH = 4
#: A value that is nested deeper than this is replaced by TOO_DEEP, because a hostile or circular value must not exhaust
#: the stack.
MAX_DEPTH = 100
TOO_DEEP = "[nested too deep]"


class Redactor:
    """Masks the secrets that were added to it. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: Counter[str] = Counter()  # how many times each secret was added
        self._forms: dict[str, frozenset[str]] = {}
        self._needles = _Needles(())

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def add(self, *secrets: str) -> None:
        """Mask these values from now on. Values shorter than MIN_LENGTH are ignored.

        A value that was added twice must be discarded twice: two jobs may have the same password.
        """
        long_enough = [secret for secret in secrets if len(secret.strip()) >= MIN_LENGTH]
        # The forms are computed before the lock is taken, because this takes long for a long secret.
        new_forms = {secret: frozenset(forms_of(secret, MIN_LENGTH)) for secret in set(long_enough)}
        with self._lock:
            self._secrets.update(long_enough)
            self._forms = {**new_forms, **self._forms}
            self._rebuild()

    def discard(self, *secrets: str) -> None:
        """Stop masking those values that were now discarded as often as they were added. Unknown values are ignored."""
        with self._lock:
            self._secrets.subtract(secret for secret in secrets if secret in self._secrets)
            self._secrets = +self._secrets
            self._rebuild()

    def redact(self, text: str) -> str:
        """Return the text with every occurrence of a secret masked, also if occurrences overlap."""
        return _mask(text, self._needles.spans(text))

    def redact_value(self, obj: Any) -> Any:
        """Return a copy of nested dicts, lists, tuples and sets in which every string (value or key) is redacted.

        A number is masked if its text is a secret. Any other object is replaced by its redacted text if the text
        contains a secret.
        """
        return self._value(obj, 0)

    def _rebuild(self) -> None:
        """Rebuild the texts to search for. One assignment replaces the old ones, so that `redact` needs no lock."""
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
        """Return the object if neither its `str` nor its `repr` contains a secret, otherwise the redacted text.

        Both are checked, because the renderer of a log may write either of them.
        """
        for render in (str, repr):
            text = render(obj)
            if (masked := self.redact(text)) != text:
                return masked
        return obj


class StreamRedactor:
    """Redacts text that arrives in pieces. A secret may be split between two pieces.

    `feed` does not return the end of the text while this end may be the start of a secret. `flush` returns the kept
    end. The class is not thread-safe, and each stream needs its own object.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._kept = ""

    def feed(self, text: str) -> str:
        """Add the next piece. Return the redacted text up to the place where a secret may have started."""
        text = self._kept + text
        needles = self._redactor._needles
        spans = needles.spans(text)
        cut = needles.safe_length(text)
        # A found secret may reach into the kept part, or may be the start of a longer secret. In both cases the text is
        # kept from the start of the found secret.
        while spans and spans[-1][1] > cut:
            cut = min(cut, spans.pop()[0])
        self._kept = text[cut:]
        return _mask(text[:cut], spans)

    def flush(self) -> str:
        """Return the kept text, redacted. The caller may feed more pieces afterwards."""
        text, self._kept = self._kept, ""
        return self._redactor.redact(text)


class _Needles:
    """Searches a text for many needles at once. A needle is one form of a secret.

    The needles are indexed by their first MIN_LENGTH characters, so the cost of a search hardly depends on the number
    of needles.
    """

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
        """Return the start and end of each needle in the text, in order. Overlapping needles give one span together."""
        spans: list[tuple[int, int]] = []
        for start, end in self._found(text):
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans

    def safe_length(self, text: str) -> int:
        """Return the length of the text without those characters at its end that may be the start of a needle."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if self._may_continue(text, start):
                return start
        return len(text)

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield, for each position at which a needle starts, the start and end of the longest needle there."""
        if not self._by_start:
            return
        for start in range(len(text) - MIN_LENGTH + 1):
            for needle in self._by_start.get(text[start : start + MIN_LENGTH], ()):
                if text.startswith(needle, start):
                    yield start, start + len(needle)
                    break

    def _may_continue(self, text: str, start: int) -> bool:
        """True when the text from `start` on is the beginning of a longer needle."""
        remaining_length = len(text) - start
        if remaining_length < MIN_LENGTH:
            return text[start:] in self._shorter
        needles = self._by_start.get(text[start : start + MIN_LENGTH], ())
        return any(len(needle) > remaining_length and needle.startswith(text[start:]) for needle in needles)


def _mask(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with each span, given by its start and end, replaced by MASK."""
    if not spans:
        return text
    parts, copied_to = [], 0
    for start, end in spans:
        parts += [text[copied_to:start], MASK]
        copied_to = end
    return "".join([*parts, text[copied_to:]])


#: The only Redactor of the process: all modules use it.
redactor = Redactor()
