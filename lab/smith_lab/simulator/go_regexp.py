"""Matches texts with Go's regular expressions (RE2). Uses Python's module `re`, but refuses syntax that RE2 lacks."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

#: Matches syntax that Python has and RE2 lacks: look-around, back-references, possessive quantifiers, atomic groups,
#: conditionals, comments and `\Z`.
_NOT_IN_RE2 = re.compile(r"\(\?(=|!|<=|<!|>|\(|P=|#)|\\[1-9]|\\Z|[*+?}]\+")


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern with the meaning that RE2 gives it. Raises re.error for syntax that RE2 lacks."""
    # Character classes and escaped backslashes are removed before the check, because they can look like syntax that RE2
    # lacks: `[(?=]` is a class, and `\\Z` is a backslash and a Z.
    checked_text = _remove_classes(pattern).replace("\\\\", "  ")
    if _NOT_IN_RE2.search(checked_text):
        raise re.error("not RE2 syntax", pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Python warns about `[` in a character class, which RE2 accepts
        return re.compile(_replace_end_anchors(pattern), re.ASCII)


def matches(pattern: str, text: str) -> bool:
    """Return whether the pattern matches anywhere in the text, as Go's MatchString does."""
    return compile_pattern(pattern).search(text) is not None


def _split_pattern(pattern: str) -> list[tuple[str, bool]]:
    """Split a pattern into characters and escapes, each with a bool that says whether it is in a character class."""
    pieces: list[tuple[str, bool]] = []
    index, is_in_class, class_start = 0, False, 0
    while index < len(pattern):
        piece = pattern[index : index + 2] if pattern[index] == "\\" else pattern[index]
        if not is_in_class and piece == "[":
            is_in_class, class_start = True, index
        pieces.append((piece, is_in_class))
        # A `]` directly after `[` or `[^` is a member of the class and does not close it.
        is_first_member = pattern[class_start:index] in ("[", "[^")
        if is_in_class and piece == "]" and not is_first_member:
            is_in_class = False
        index += len(piece)
    return pieces


def _remove_classes(pattern: str) -> str:
    """Return the pattern without its character classes."""
    return "".join(piece for piece, is_in_class in _split_pattern(pattern) if not is_in_class)


def _replace_end_anchors(pattern: str) -> str:
    """Replace RE2's `$` and `\\z`, which match only at the end of the text, by Python's `\\Z`, which does the same.

    Python has no `\\z`, and its `$` also matches before a final line break.
    """
    has_multiline_flag = re.search(r"\(\?[a-z]*m", pattern) is not None  # such as `(?m)` or `(?im)`
    replacements = {r"\z": r"\Z"}
    if not has_multiline_flag:  # with the flag, `$` matches before every line break, in RE2 and in Python
        replacements["$"] = r"\Z"
    pieces = _split_pattern(pattern)
    return "".join(piece if is_in_class else replacements.get(piece, piece) for piece, is_in_class in pieces)
