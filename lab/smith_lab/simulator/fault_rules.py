"""Rules that make chosen API calls fail.

A rule is a JSON object:
  method, path   which calls: the exact method (absent: every method), and a regular expression found in the path
  skip, times    the first `skip` matching calls are not affected; then `times` calls are (absent: all)
  kind           status       answer `status` (503), with a JSON error as FulcrumCore writes it, or with `body`
                 html         answer `status` (502) with an HTML page, as a proxy does
                 empty        answer `status` (200) without a body
                 wrong_json   answer `status` (200) with valid JSON of the wrong shape, or with `body`
                 truncate     process the call, then close the connection in the middle of the answer's body
                 delay        wait `delay_s` before processing, or until the rules are deleted; `delay_s` makes every
                              other kind wait too
                 twice        process the call two times, as a proxy that repeats a request, and send the second answer
                 drop_before  close the connection without an answer, the call is not processed
                 drop_after   process the call, then close the connection without an answer
  effect         true: process the call before a wrong answer (status, html, empty, wrong_json)
  headers        added to the answer
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

KINDS = frozenset({"status", "html", "empty", "wrong_json", "truncate", "delay", "twice", "drop_before", "drop_after"})
#: The kinds whose answer is the API's own.
REAL_ANSWERS = frozenset({"truncate", "delay", "twice"})
#: The kinds that always process the call.
PROCESSED = REAL_ANSWERS | {"drop_after"}


@dataclass(kw_only=True, eq=False)
class Rule:
    """One rule; the module's docstring explains the members."""

    kind: str
    method: str | None = None
    path: str = ""
    skip: int = 0
    times: int | None = None
    status: int | None = None
    body: Any = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    effect: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}, one of {sorted(KINDS)}")
        self._pattern = re.compile(self.path)

    def applies_to(self, method: str, path: str) -> bool:
        """Return whether the rule affects this call. Counts `skip` and `times` down."""
        if self.method not in (None, method) or not self._pattern.search(path) or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True
