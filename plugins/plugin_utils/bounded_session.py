# SPDX-License-Identifier: Apache-2.0
"""Ends an action plugin's HTTP requests soon after the plugin's deadline, and repeats requests that got the answer 401.

If a request waited long after the deadline, ansible-runner would kill the playbook, and the cause of the failure would
be lost. A request is "refused" if its answer is 401. A refusal may be temporary: Proxmox also answers 401 for some
seconds while it cannot read its list of users and tokens.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

from .shared.login_repeats import LOGIN_NOT_REPEATED_TEXT, REPEAT_PAUSES_S, repeat_while_refused

#: The maximum time that a request waits for its answer.
REQUEST_TIMEOUT_S = 30.0
#: How long after the action plugin's deadline a request may still wait for its answer. ansible-runner kills the
#: playbook a little later.
MAX_AFTER_DEADLINE_S = 2.0
#: The minimum time that a request waits for its answer, also if it is sent after the deadline.
MIN_REQUEST_TIMEOUT_S = 1.0
#: The time for which Proxmox delays each answer 401.
REFUSAL_DELAY_S = 3.0


class BoundedSession:
    """Replaces the method `request` of a proxmoxer client's HTTP session, so that requests end at a deadline."""

    def __init__(self, session: Any, *, repeats_refused_requests: bool) -> None:
        """Replace the session's method `request`.

        `repeats_refused_requests` is false for a login with a password, because repeated logins may lock the account.
        """
        self.deadline_monotonic_s = float("inf")  #: infinity until an action plugin sets its deadline
        self._send = session.request
        self._repeats_refused_requests = repeats_refused_requests
        session.request = self.request

    def request(self, *arguments: Any, **options: Any) -> Any:
        """Send a request and return the answer.

        If refused requests are repeated, the first answer that is not 401 is returned. If all repetitions are made and
        refused, the last answer 401 is returned. If the deadline leaves too little time for all repetitions, fewer or
        none are made. Then TooLittleTimeToRepeat is raised if all answers are 401.
        """
        remaining_s = self.deadline_monotonic_s - time.monotonic()
        options["timeout"] = max(MIN_REQUEST_TIMEOUT_S, min(REQUEST_TIMEOUT_S, remaining_s + MAX_AFTER_DEADLINE_S))
        if not self._repeats_refused_requests:
            return self._send(*arguments, **options)

        def send() -> Any:
            answer = self._send(*arguments, **options)
            if answer.status_code == 401:
                raise _RequestRefused(answer)
            return answer

        pauses_s = _pauses_before_deadline_s(remaining_s)
        try:
            return repeat_while_refused(send, lambda exc: isinstance(exc, _RequestRefused), pauses_s)
        except _RequestRefused as refusal:
            # A refusal counts as permanent only after all repetitions.
            if pauses_s != REPEAT_PAUSES_S:
                # The error text says that Proxmox refused the login, and that too little time was left to ask again.
                raise TooLittleTimeToRepeat(
                    f"{LOGIN_NOT_REPEATED_TEXT} (attempt {len(pauses_s) + 1} of {len(REPEAT_PAUSES_S) + 1})"
                ) from refusal
            return refusal.args[0]


def _pauses_before_deadline_s(remaining_s: float) -> tuple[float, ...]:
    """Return the pauses before the repetitions that can be answered within `remaining_s`.

    Proxmox delays each refusal by REFUSAL_DELAY_S.
    """
    durations_s = accumulate((pause_s + REFUSAL_DELAY_S for pause_s in REPEAT_PAUSES_S), initial=REFUSAL_DELAY_S)
    repetition_count = sum(duration_s <= remaining_s for duration_s in durations_s) - 1
    return REPEAT_PAUSES_S[: max(repetition_count, 0)]


class TooLittleTimeToRepeat(OSError):
    """The request was refused, and too little time was left for all repetitions. The refusal may be temporary."""


class _RequestRefused(Exception):
    """Proxmox answered 401. The argument is the answer."""
