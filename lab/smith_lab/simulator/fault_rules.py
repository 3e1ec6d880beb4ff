"""Defines the fault rules, which make chosen API calls fail.

Tests add rules by POST /lab/faults. A rule is a JSON object with these members, of which only `kind` is required:
  method         the HTTP method of the calls that match; if absent, calls with every method match
  path           a regular expression that is searched in the path of a call; if absent, every path matches
  skip, times    the rule ignores the first `skip` matching calls (default 0), then affects `times` calls (default: all)
  kind           what the rule does to a call that it affects:
                 status       answer `status` (default 503) with a JSON error as FulcrumCore writes it, or with `body`
                 html         answer `status` (default 502) with an HTML page, as a proxy does
                 empty        answer `status` (default 200) without a body
                 wrong_json   answer `status` (default 200) with JSON that the caller does not expect, or with `body`
                 truncate     process the call, then close the connection in the middle of the answer's body
                 delay        wait `delay_s` seconds, or until the rule is deleted, then process the call; a rule of
                              any other kind waits, too, if it has `delay_s`
                 twice        process the call two times, as when a proxy repeats a request; send the second answer
                 drop_before  do not process the call; close the connection without an answer
                 drop_after   process the call, then close the connection without an answer
  effect         if true, the call is processed before the rule's answer is sent; this matters for the kinds status,
                 html, empty and wrong_json, which otherwise do not process the call
  headers        a JSON object with headers that are added to the answer
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

KINDS = frozenset({"status", "html", "empty", "wrong_json", "truncate", "delay", "twice", "drop_before", "drop_after"})
#: The kinds after which the caller gets the API's answer, or a part of it.
KINDS_WITH_API_ANSWER = frozenset({"truncate", "delay", "twice"})
#: The kinds that always process the call.
PROCESSED_KINDS = KINDS_WITH_API_ANSWER | {"drop_after"}


@dataclass(kw_only=True, eq=False)
class Rule:
    """One fault rule. The module's docstring explains its members."""

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
        """Return whether the rule affects this call. Each matching call reduces `skip`, or `times` if `skip` is 0."""
        if self.method not in (None, method) or not self._pattern.search(path) or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True
