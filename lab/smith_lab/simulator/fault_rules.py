"""Defines the fault rules. A rule makes chosen API calls fail, delays them or repeats them.

Tests add rules by POST /lab/faults. A rule is a JSON object with these members. Only `kind` is required.
  method         the HTTP method of the calls that match; if absent, calls with every method match
  path           a regular expression that is searched in the path of a call; if absent, every path matches
  skip, times    the rule ignores the first `skip` matching calls (default 0), then affects `times` calls (default: all)
  kind           what the rule does to a call that it affects:
                 status       answer with the HTTP status `status` (default 503) and with `body` (default: a JSON error
                              as FulcrumCore writes it)
                 html         answer with `status` (default 502) and an HTML page, as a proxy does
                 empty        answer with `status` (default 200) and without a body
                 wrong_json   answer with `status` (default 200) and with `body` (default: JSON that the caller does
                              not expect)
                 truncate     process the call, then close the connection in the middle of the answer's body
                 delay        wait `delay_s` seconds, then process the call
                 twice        process the call two times, as if a proxy repeated the request; send the second answer
                 drop_before  do not process the call; close the connection without an answer
                 drop_after   process the call, then close the connection without an answer
  status         the HTTP status of the answer; only the kinds status, html, empty and wrong_json use it
  body           the body of the answer; only the kinds status and wrong_json use it
  delay_s        the seconds that a rule of any kind waits before it acts (default 0); if the rule is deleted during
                 the wait, the wait ends at once, and the rule still acts on the waiting call
  effect         for the kinds status, html, empty and wrong_json: if true, the API processes the call before the rule's
                 answer is sent; if false (the default), the API does not process the call
  headers        a JSON object with headers that are added to the answer of the rule or of the API
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

KINDS = frozenset({"status", "html", "empty", "wrong_json", "truncate", "delay", "twice", "drop_before", "drop_after"})
#: The kinds of rules that send the API's answer, or a part of it, to the caller.
KINDS_THAT_SEND_API_ANSWER = frozenset({"truncate", "delay", "twice"})
#: The kinds for which the API always processes the call.
KINDS_THAT_CALL_API = KINDS_THAT_SEND_API_ANSWER | {"drop_after"}


@dataclass(kw_only=True, eq=False)
class FaultRule:
    """One fault rule. The docstring of the module explains the rule's members."""

    kind: str
    method: str | None = None
    path: str = ""
    skip: int = 0
    times: int | None = None
    status: int | None = None
    body: Any = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    effect: bool = False  #: whether the API processes the call before the rule's answer is sent

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}, expected one of {sorted(KINDS)}")
        self._pattern = re.compile(self.path)

    def count_call_and_check_if_affected(self, method: str, path: str) -> bool:
        """Count this API call if it matches, and return whether the rule affects it.

        A matching call reduces `skip` by one, or `times` if `skip` is 0.
        """
        is_match = self.method in (None, method) and self._pattern.search(path) is not None
        if not is_match or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True
