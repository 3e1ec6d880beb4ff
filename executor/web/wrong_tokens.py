"""Counts the wrong tokens from each address: after too many, the server answers further wrong tokens with 429."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

#: After MAX_WRONG_TOKENS wrong tokens within WRONG_TOKEN_WINDOW_S, an address must wait until the first of these tokens
#: is older than WRONG_TOKEN_WINDOW_S. During the wait, the server answers each wrong token from the address with 429,
#: and does not count it.
MAX_WRONG_TOKENS = 10
WRONG_TOKEN_WINDOW_S = 60.0
#: Maximum number of addresses whose wrong tokens are counted.
MAX_COUNTED_ADDRESSES = 1024


class WrongTokenCounter:
    """Counts the wrong tokens from each address. Not thread-safe: only the thread of the event loop may use it."""

    def __init__(self) -> None:
        # The times of the last wrong tokens from each address. The address that sent the newest wrong token is last.
        self._times_by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def register_wrong_token(self, address: str) -> int:
        """Count a wrong token from this address, unless the address must wait. Return the wait in seconds.

        Return 0 if the token was counted: the server then answers with 401. Otherwise the server answers this wrong
        token, and all further wrong tokens from the address during the wait, with 429.
        """
        wait_s = self.remaining_wait_s(address)
        if wait_s > 0:
            return int(wait_s) + 1
        self._count_wrong_token(address)
        return 0

    def _count_wrong_token(self, address: str) -> None:
        """Count a wrong token from this address."""
        times = self._times_by_address.pop(address, None) or deque(maxlen=MAX_WRONG_TOKENS)
        times.append(time.monotonic())
        self._times_by_address[address] = times
        if len(self._times_by_address) > MAX_COUNTED_ADDRESSES:
            self._times_by_address.popitem(last=False)  # the address whose last wrong token is the oldest

    def remaining_wait_s(self, address: str) -> float:
        """Return for how many seconds the server answers wrong tokens of this address with 429; 0 if it does not."""
        times = self._times_by_address.get(address)
        if times is None or len(times) < MAX_WRONG_TOKENS:
            return 0.0
        return max(times[0] + WRONG_TOKEN_WINDOW_S - time.monotonic(), 0.0)
