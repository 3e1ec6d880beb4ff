"""Matches Go's regular expressions (RE2) by Python's module re, and refuses syntax that only Python accepts."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

#: Syntax that Python has and RE2 lacks: look-around, back-references, possessive and atomic groups, conditionals.
_NOT_IN_RE2 = re.compile(r"\(\?(=|!|<=|<!|>|\(|P=|#)|\\[1-9]|\\Z|[*+?}]\+")


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern with the meaning that RE2 gives it. Raises re.error for syntax that RE2 lacks."""
    outside_classes = _without_classes(pattern)
    if _NOT_IN_RE2.search(outside_classes.replace("\\\\", "  ")):
        raise re.error("not RE2 syntax", pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Python warns about `[` in a character class, which RE2 accepts
        return re.compile(_with_strict_end(pattern), re.ASCII)


def matches(pattern: str, text: str) -> bool:
    """Return whether the pattern matches anywhere in the text, as Go's MatchString does."""
    return compile_pattern(pattern).search(text) is not None


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """Split a pattern into characters and escapes, each with a bool that says whether it is in a character class."""
    pieces: list[tuple[str, bool]] = []
    index, in_class, class_start = 0, False, 0
    while index < len(pattern):
        piece = pattern[index : index + 2] if pattern[index] == "\\" else pattern[index]
        if not in_class and piece == "[":
            in_class, class_start = True, index
        elif in_class and piece == "]" and index > class_start + 1 and pattern[class_start:index] != "[^":
            pieces.append((piece, True))
            in_class, index = False, index + 1
            continue
        pieces.append((piece, in_class))
        index += len(piece)
    return pieces


def _without_classes(pattern: str) -> str:
    """Return the pattern without its character classes."""
    return "".join(piece for piece, in_class in _pieces(pattern) if not in_class)


def _with_strict_end(pattern: str) -> str:
    """Make `$` match only at the end of the text, as in RE2. Python's `$` also matches before a final line break."""
    if re.search(r"\(\?[a-z]*m", pattern):  # with (?m), `$` matches before every line break in both engines
        return pattern
    replacements = {"$": r"\Z", r"\z": r"\Z"}
    return "".join(piece if in_class else replacements.get(piece, piece) for piece, in_class in _pieces(pattern))
