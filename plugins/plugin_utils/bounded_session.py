# SPDX-License-Identifier: Apache-2.0
"""Ends an action plugin's HTTP requests at the plugin's deadline, and repeats a request whose token Proxmox refuses.

If a request waited longer for its answer, ansible-runner would kill the playbook, and the cause of the failure would be
lost. `shared/login_repeats.py` explains why a refused request is repeated.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

from .shared.login_repeats import LOGIN_NOT_REPEATED, REPEAT_PAUSES_S, repeat_while_refused

#: The maximum time that a request waits for its answer.
REQUEST_TIMEOUT_S = 30.0
#: The maximum time for which the requests of the last look-up continue after the action plugin's deadline.
#: ansible-runner waits a little longer before it kills the playbook.
MAX_AFTER_DEADLINE_S = 2.0
#: The minimum time that a request waits for its answer, even after the deadline.
MIN_REQUEST_TIMEOUT_S = 1.0
#: The time for which Proxmox delays each answer 401.
REFUSAL_DELAY_S = 3.0


class BoundedSession:
    """Replaces the method `request` of a proxmoxer client's HTTP session, so that requests end at a deadline."""

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

        If refused requests are repeated, an answer 401 is returned only if each repetition was refused, too. Raises
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

        pauses_s = _pauses_before_deadline_s(remaining_s)
        try:
            return repeat_while_refused(send, lambda exc: isinstance(exc, _LoginRefused), pauses_s)
        except _LoginRefused as refusal:
            if pauses_s != REPEAT_PAUSES_S:  # without all repetitions, the refusal may be temporary
                raise TooLittleTimeToRepeat(
                    f"{LOGIN_NOT_REPEATED} (attempt {len(pauses_s) + 1} of {len(REPEAT_PAUSES_S) + 1})"
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
    """Proxmox refused the login, and too little time was left for all repetitions, so the refusal may be temporary."""


class _LoginRefused(Exception):
    """Proxmox answered 401. The argument is the answer."""
