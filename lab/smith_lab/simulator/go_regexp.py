"""Go's regular expressions (RE2) with Python's engine: refuses what Go refuses; `$` matches only at the end."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

#: Syntax that Python knows and RE2 does not: look-around, back-references, possessive and atomic groups, conditionals.
_NOT_IN_RE2 = re.compile(r"\(\?(=|!|<=|<!|>|\(|P=|#)|\\[1-9]|\\Z|[*+?}]\+")


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern with the meaning that RE2 gives it. Raises re.error for syntax that RE2 lacks."""
    outside_classes = _without_classes(pattern)
    if _NOT_IN_RE2.search(outside_classes.replace("\\\\", "  ")):
        raise re.error("not RE2 syntax", pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(_strict_end(pattern), re.ASCII)


def matches(pattern: str, text: str) -> bool:
    """Return whether the pattern matches anywhere in the text, as Go's MatchString does."""
    return compile_pattern(pattern).search(text) is not None


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """Split into pairs (piece, whether it is inside a character class). An escape is one piece."""
    pieces: list[tuple[str, bool]] = []
    index, inside, class_start = 0, False, 0
    while index < len(pattern):
        piece = pattern[index : index + 2] if pattern[index] == "\\" else pattern[index]
        if not inside and piece == "[":
            inside, class_start = True, index
        elif inside and piece == "]" and index > class_start + 1 and pattern[class_start:index] != "[^":
            pieces.append((piece, True))
            inside, index = False, index + 1
            continue
        pieces.append((piece, inside))
        index += len(piece)
    return pieces


def _without_classes(pattern: str) -> str:
    return "".join(piece for piece, inside in _pieces(pattern) if not inside)


def _strict_end(pattern: str) -> str:
    # Python's `$` also matches before a last line break; RE2's does not unless (?m) is on.
    if re.search(r"\(\?[a-z]*m", pattern):
        return pattern
    changed = {"$": r"\Z", r"\z": r"\Z"}
    return "".join(piece if inside else changed.get(piece, piece) for piece, inside in _pieces(pattern))
