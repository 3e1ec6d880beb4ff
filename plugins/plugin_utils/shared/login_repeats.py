# SPDX-License-Identifier: Apache-2.0
"""Repeats a request that Proxmox has answered with 401, before this answer counts as final.

Proxmox also answers 401 if it cannot check a login: while its cluster file system restarts, for example during an
upgrade, the list of users and tokens is missing for some seconds. An answer 401 changes nothing, so any request may be
repeated. The callers repeat only requests with an API token: repeated logins with a password may lock the account.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

#: The pause before each repetition. In addition, Proxmox delays each answer 401 by 3 s.
REPEAT_PAUSES_S = (1.0, 2.0, 4.0)
#: The beginning of the caller's error text if too little time was left for all repetitions.
LOGIN_NOT_REPEATED_TEXT = "Proxmox refused the login, and too little time was left to ask again"

_Answer = TypeVar("_Answer")


def repeat_while_refused(
    send: Callable[[], _Answer], is_refusal: Callable[[Exception], bool], pauses_s: tuple[float, ...] = REPEAT_PAUSES_S
) -> _Answer:
    """Call `send` and return its answer. If it raises a refusal (`is_refusal`), call it again after the next pause."""
    for pause_s in pauses_s:
        try:
            return send()
        except Exception as exc:
            if not is_refusal(exc):
                raise
        time.sleep(pause_s)
    return send()
