# SPDX-License-Identifier: Apache-2.0
"""Ends the requests of an action at the action's deadline, and repeats a request whose API token Proxmox refuses.

Without the deadline, ansible-runner would kill the playbook while a request waits for its answer, and the cause of the
failure would be lost. `shared/login_repeats.py` explains why a refused request is repeated.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

from .shared.login_repeats import LOGIN_NOT_REPEATED, REPEAT_PAUSES_S, repeat_while_refused

#: How long a request may wait for its answer.
REQUEST_TIMEOUT_S = 30.0
#: How long the requests of the last look-up may continue after the action's deadline. ansible-runner waits
#: a little longer than this before it kills the playbook.
MAX_AFTER_DEADLINE_S = 2.0
#: Minimum time that a request waits for its answer, even after the deadline.
MIN_REQUEST_TIMEOUT_S = 1.0
#: How long Proxmox delays an answer 401.
REFUSAL_DELAY_S = 3.0


class BoundedSession:
    """Gives the HTTP session of a proxmoxer client a deadline, by replacing the method `request` of the session."""

    def __init__(self, session: Any, *, repeats_refused_logins: bool) -> None:
        """Replace the session's method `request`.

        `repeats_refused_logins` is false for a login with a password, because repeated logins may lock the account.
        """
        self.deadline_monotonic_s = float("inf")
        self._send = session.request
        self._repeats_refused_logins = repeats_refused_logins
        session.request = self.request

    def request(self, *arguments: Any, **options: Any) -> Any:
        """Send a request and return the answer.

        If refused logins are repeated, an answer 401 is returned only after all repetitions. Raises
        TooLittleTimeToRepeat if Proxmox refused the login and the deadline was too near for all repetitions.
        """
        remaining_s = self.deadline_monotonic_s - time.monotonic()
        options["timeout"] = max(MIN_REQUEST_TIMEOUT_S, min(REQUEST_TIMEOUT_S, remaining_s + MAX_AFTER_DEADLINE_S))
        if not self._repeats_refused_logins:
            return self._send(*arguments, **options)

        def send() -> Any:
            answer = self._send(*arguments, **options)
            if answer.status_code == 401:
                raise _LoginRefused(answer)
            return answer

        pauses_s = _pauses_that_fit_s(remaining_s)
        try:
            return repeat_while_refused(send, lambda exc: isinstance(exc, _LoginRefused), pauses_s)
        except _LoginRefused as refusal:
            if pauses_s != REPEAT_PAUSES_S:  # without all repetitions, the refusal may be temporary
                raise TooLittleTimeToRepeat(
                    f"{LOGIN_NOT_REPEATED} ({len(pauses_s) + 1} of {len(REPEAT_PAUSES_S) + 1})"
                ) from refusal
            return refusal.args[0]


def _pauses_that_fit_s(remaining_s: float) -> tuple[float, ...]:
    """Return the pauses before those repetitions whose answers can arrive within `remaining_s`.

    Proxmox delays each refusal by REFUSAL_DELAY_S.
    """
    durations_s = accumulate((pause_s + REFUSAL_DELAY_S for pause_s in REPEAT_PAUSES_S), initial=REFUSAL_DELAY_S)
    count = sum(duration_s <= remaining_s for duration_s in durations_s) - 1
    return REPEAT_PAUSES_S[: max(count, 0)]


class TooLittleTimeToRepeat(OSError):
    """Proxmox refused the login, and too little time was left for all repetitions, so the refusal may be temporary."""


class _LoginRefused(Exception):
    """Proxmox answered 401. The argument is the answer."""
