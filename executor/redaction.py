"""Masks secrets in all output: logs, run artifacts, error messages, the database, the command line, the web pages.

The process has one `redactor`. It masks every secret that was added to it, in every form that `secret_forms.py` lists,
such as plain, JSON-escaped, URL-encoded or in base64. If a secret has several lines, each line is masked, too.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from executor.secret_forms import list_written_forms

#: The text that replaces a secret. It does not depend on the secret's length.
MASK = "********"
#: Minimum length of a secret that is masked, in characters. The settings refuse a shorter secret, such as "1" or "yes":
#: if it were masked, it would also be masked in unrelated texts, and a reader could infer it from the masked places.
MIN_SECRET_LENGTH = 4
#: Maximum length of a needle: a text for which the redactor searches. A needle is a whole form of a secret, or a piece
#: of a longer form. The pieces of a form overlap. If a text contains only one piece of a secret, this piece is masked,
#: too. Because of this limit, the time of a search grows linearly with the length of the text.
MAX_NEEDLE_LENGTH = 64
#: The prefix of a needle is its first MIN_SECRET_LENGTH characters. Up to this number of prefixes, `str.find` searches
#: the text for each prefix. With more prefixes, a look-up at each position of the text is faster.
MAX_PREFIXES_FOR_STR_FIND = 100
#: Maximum depth of nested values. A deeper value is replaced by TOO_DEEP. Otherwise a hostile or circular value could
#: exhaust the stack.
MAX_DEPTH = 100
TOO_DEEP = "[nested too deep]"


class Redactor:
    """Masks the secrets that were added to it. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._add_counts: Counter[str] = Counter()  # how many times each secret was added
        self._needles_by_secret: dict[str, frozenset[str]] = {}  # the forms of a secret; for a long form, its pieces
        self._finder = _NeedleFinder(())  # finds every form of every secret

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._add_counts)} secrets>"

    def add(self, *secrets: str) -> None:
        """Mask these values from now on. Values shorter than MIN_SECRET_LENGTH are ignored.

        A value that was added twice must be discarded twice, because two jobs may have the same password.
        """
        maskable_secrets = [secret for secret in secrets if len(secret.strip()) >= MIN_SECRET_LENGTH]
        # The forms are computed before the lock is taken, because the computation takes long for a long secret.
        new_needles_by_secret = {secret: _list_needles(secret) for secret in set(maskable_secrets)}
        with self._lock:
            self._add_counts.update(maskable_secrets)
            self._needles_by_secret = {**new_needles_by_secret, **self._needles_by_secret}
            self._rebuild_finder()

    def discard(self, *secrets: str) -> None:
        """Undo one `add` of each value. After every `add` of a value was undone, the value is not masked any more.

        Unknown values are ignored.
        """
        with self._lock:
            self._add_counts.subtract(secret for secret in secrets if secret in self._add_counts)
            self._add_counts = +self._add_counts  # without the secrets whose count is 0
            self._rebuild_finder()

    def redact(self, text: str) -> str:
        """Return the text with every occurrence of a secret masked. Occurrences may overlap."""
        return _mask(text, self._finder.find_spans(text))

    def redact_value(self, obj: Any) -> Any:
        """Return a copy of nested dicts, lists, tuples and sets, in which strings, bytes and dict keys are redacted.

        A number is masked if its text is a secret. Any other object is replaced by its redacted text if its text
        contains a secret.
        """
        return self._redact_nested(obj, depth=0)

    def _rebuild_finder(self) -> None:
        """Rebuild `_finder` from the secrets that are masked now. The caller holds the lock.

        `redact` needs no lock, because it reads only `_finder`, which is replaced by a single assignment.
        """
        self._needles_by_secret = {secret: self._needles_by_secret[secret] for secret in self._add_counts}
        self._finder = _NeedleFinder(chain.from_iterable(self._needles_by_secret.values()))

    def _redact_nested(self, obj: Any, *, depth: int) -> Any:
        if not isinstance(obj, (dict, list, tuple, set, frozenset)):
            return self._redact_scalar(obj)
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        if isinstance(obj, dict):
            return {
                self._redact_nested(key, depth=depth + 1): self._redact_nested(value, depth=depth + 1)
                for key, value in obj.items()
            }
        items = [self._redact_nested(item, depth=depth + 1) for item in obj]
        # An object of a subclass is copied to the base class: a named tuple becomes a tuple.
        copy_class = next(cls for cls in (list, tuple, set, frozenset) if isinstance(obj, cls))
        return copy_class(items)

    def _redact_scalar(self, obj: Any) -> Any:
        if isinstance(obj, str):
            return self.redact(obj)
        if obj is None or isinstance(obj, bool):
            return obj
        if isinstance(obj, (int, float)):
            return MASK if self.redact(str(obj)) == MASK else obj
        if isinstance(obj, bytes):
            return self.redact(obj.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        return self._redact_object(obj)

    def _redact_object(self, obj: Any) -> Any:
        """Return the object unchanged if its `str` and its `repr` contain no secret. Otherwise return a redacted text.

        Both texts are checked, because the renderer of the log may write either of them.
        """
        for convert in (str, repr):
            text = convert(obj)
            redacted_text = self.redact(text)
            if redacted_text != text:
                return redacted_text
        return obj


class _NeedleFinder:
    """Searches a text for many needles at once. A needle is one form of a secret, or a piece of a long form.

    The prefix of a needle is its first MIN_SECRET_LENGTH characters. For each prefix, an index gives the lengths of
    the needles with this prefix. So the time of a search hardly depends on the number of needles.
    """

    def __init__(self, needles: Iterable[str]) -> None:
        self._needles = frozenset(needles)
        lengths_by_prefix = defaultdict(set)
        for needle in self._needles:
            lengths_by_prefix[needle[:MIN_SECRET_LENGTH]].add(len(needle))
        # The lengths of the needles with the same prefix, longest first.
        self._lengths_by_prefix = {
            prefix: sorted(lengths, reverse=True) for prefix, lengths in lengths_by_prefix.items()
        }

    def find_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the start and end of each needle in the text, in order. Overlapping needles become one span."""
        spans: list[tuple[int, int]] = []
        for start, end in self._find_occurrences(text):
            last_start, last_end = spans[-1] if spans else (0, 0)
            if start < last_end:
                spans[-1] = (last_start, max(end, last_end))
            else:
                spans.append((start, end))
        return spans

    def _find_occurrences(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield, for each position at which a needle starts, the start and end of the longest needle there."""
        for start in self._candidate_starts(text):
            for length in self._lengths_by_prefix.get(text[start : start + MIN_SECRET_LENGTH], ()):
                needle = text[start : start + length]  # shorter than `length` at the end of the text
                if needle in self._needles:
                    yield start, start + len(needle)
                    break

    def _candidate_starts(self, text: str) -> Iterable[int]:
        """Return, in order, positions that include each position at which a needle starts."""
        prefixes = self._lengths_by_prefix
        if not prefixes:
            return ()
        if len(prefixes) > MAX_PREFIXES_FOR_STR_FIND or len(text) < len(prefixes):
            last_start = len(text) - MIN_SECRET_LENGTH
            return [start for start in range(last_start + 1) if text[start : start + MIN_SECRET_LENGTH] in prefixes]
        starts = set()
        for prefix in prefixes:
            start = text.find(prefix)
            while start >= 0:
                starts.add(start)
                start = text.find(prefix, start + 1)
        return sorted(starts)


def _list_needles(secret: str) -> frozenset[str]:
    """Return the written forms of a secret; for a long form, its pieces."""
    forms = list_written_forms(secret, min_length=MIN_SECRET_LENGTH)
    return frozenset(piece for form in forms for piece in _split_into_pieces(form))


def _split_into_pieces(form: str) -> Iterator[str]:
    """Yield texts of at most MAX_NEEDLE_LENGTH characters, each of which overlaps the next one.

    If a text contains the form, the matches of the pieces cover the form completely.
    """
    if len(form) <= MAX_NEEDLE_LENGTH:
        yield form
        return
    for start in range(0, len(form) - MAX_NEEDLE_LENGTH, MAX_NEEDLE_LENGTH - 1):
        yield form[start : start + MAX_NEEDLE_LENGTH]
    yield form[-MAX_NEEDLE_LENGTH:]


def _mask(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with each span (start, end) replaced by MASK."""
    if not spans:
        return text
    parts: list[str] = []
    uncopied_start = 0
    for start, end in spans:
        parts += [text[uncopied_start:start], MASK]
        uncopied_start = end
    return "".join([*parts, text[uncopied_start:]])


#: The only Redactor of the process: all modules use it.
redactor = Redactor()
