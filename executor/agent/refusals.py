"""Decides whether a job or service that FulcrumCore refuses with 403 is gone: deleted, or given to another agent.

FulcrumCore answers 403 for a job or service that does not exist or that belongs to another agent. While its database is
down, FulcrumCore answers some of the requests about existing jobs and services with 403, too. If the agent
abandoned a job that exists, the job would stay open in FulcrumCore and block its service. If the agent treated an
existing service as deleted, the agent would delete the service's VM. So a job or service counts as gone only after
MIN_REFUSALS refusals, of which the first and the last are at least MIN_REFUSAL_DURATION_S apart, while FulcrumCore
accepts the agent's token. In this module, an object is a job or a service.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from executor.agent.state import HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED  # HTTP status 500
from executor.errors import FulcrumAuthError, FulcrumError, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient

#: Minimum number of refusals of an object that counts as gone.
MIN_REFUSALS = 4
#: Minimum time between the first and the last refusal of an object that counts as gone.
MIN_REFUSAL_DURATION_S = 120.0
#: Minimum time between two counted refusals of an object. A refusal that follows sooner is not counted.
MIN_INTERVAL_S = 10.0
#: How long the caller waits before its next request about a refused object.
RETRY_AFTER_S = 30.0
#: Maximum age of the last refusal of an object. When it is older, the object's refusals are counted from 0 again.
MAX_REFUSAL_AGE_S = 3600.0


class NotCertainlyGone(FulcrumUnavailable):
    """FulcrumCore has refused an object, but the object does not count as gone yet (`is_gone`)."""


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """The refusals of one object. The times are monotonic."""

    count: int
    first_at: float
    last_at: float


def add_refusal(earlier_refusals: Refusals | None, now: float) -> Refusals:
    """Return the refusals of an object after one more refusal. Pure function."""
    if earlier_refusals is None or now - earlier_refusals.last_at > MAX_REFUSAL_AGE_S:
        return Refusals(count=1, first_at=now, last_at=now)
    if now - earlier_refusals.last_at < MIN_INTERVAL_S:
        return earlier_refusals
    return replace(earlier_refusals, count=earlier_refusals.count + 1, last_at=now)


def is_gone(refusals: Refusals) -> bool:
    """Return whether an object with these refusals counts as gone. Pure function."""
    return refusals.count >= MIN_REFUSALS and refusals.last_at - refusals.first_at >= MIN_REFUSAL_DURATION_S


def refusals_after_check(
    earlier_refusals: Mapping[str, Refusals],
    object_id: str,
    now: float,
    *,
    is_agent_accepted: bool,
    is_object_readable: bool,
) -> dict[str, Refusals]:
    """Return the refusals of all objects, updated after FulcrumCore refused a request about the object `object_id`.

    The keys are ids. Two further requests have shown whether FulcrumCore accepts the agent's token
    (`is_agent_accepted`), and whether FulcrumCore returns the object (`is_object_readable`). Pure function.
    """
    if not is_agent_accepted:
        return {}  # FulcrumCore refuses the token or does not answer, so earlier refusals prove nothing
    refusals = {key: value for key, value in earlier_refusals.items() if now - value.last_at <= MAX_REFUSAL_AGE_S}
    previous_refusals = refusals.pop(object_id, None)
    return refusals if is_object_readable else refusals | {object_id: add_refusal(previous_refusals, now)}


@dataclass(kw_only=True)
class Http403Counter:
    """Counts FulcrumCore's refusals of jobs and services with 403. All threads of an agent share one counter."""

    fulcrum: FulcrumClient
    clock: Callable[[], float] = time.monotonic
    _refusals: dict[str, Refusals] = field(default_factory=dict)  #: the keys are FulcrumCore's ids
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def require_job_gone(self, fulcrum_id: str, *, refused_request: str) -> None:
        """Check that the job is gone. Call this method after a request about the job was answered with 403.

        `refused_request` describes the refused request for the error text, such as "return the job". Raises
        FulcrumUnavailable if FulcrumCore does not accept the agent's token, does not answer, or now returns the job.
        Raises NotCertainlyGone, a subclass, if FulcrumCore has not refused the job often and long enough. After both
        exceptions, the caller must retry its request.
        """
        self._require_gone(fulcrum_id, self.fulcrum.get_job, refused_request)

    def require_service_gone(self, service_id: str) -> None:
        """Check that the service is gone. Raises the same exceptions as `require_job_gone`."""
        self._require_gone(service_id, self.fulcrum.get_service, "return the service")

    def _require_gone(self, object_id: str, read: Callable[[str], object], refused_request: str) -> None:
        try:
            self.fulcrum.get_own_agent()
        except FulcrumError:
            self._update_refusals(object_id, is_agent_accepted=False, is_object_readable=False)
            raise
        try:
            read(object_id)
        except FulcrumAuthError:  # FulcrumCore has answered 401 or 403
            self._require_enough_refusals(object_id, refused_request)
            return
        self._update_refusals(object_id, is_agent_accepted=True, is_object_readable=True)
        text = (
            f"FulcrumCore refused to {refused_request}, although the agent can read this job or service; "
            "the agent retries"
        )
        # With this status, the caller knows that only one request failed, and records no outage of FulcrumCore.
        raise FulcrumUnavailable(text, status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED)

    def _require_enough_refusals(self, object_id: str, refused_request: str) -> None:
        """Count a refusal. Raises NotCertainlyGone if the object does not count as gone yet."""
        refusals = self._update_refusals(object_id, is_agent_accepted=True, is_object_readable=False)[object_id]
        if is_gone(refusals):
            with self._lock:
                self._refusals.pop(object_id, None)
            return
        text = (
            f"FulcrumCore refused to {refused_request} "
            f"({refusals.count} refusals in {self.clock() - refusals.first_at:.0f} s); the agent retries"
        )
        raise NotCertainlyGone(text, status=HTTP_STATUS_IF_ONLY_ONE_REQUEST_FAILED, retry_after_s=RETRY_AFTER_S)

    def _update_refusals(
        self, object_id: str, *, is_agent_accepted: bool, is_object_readable: bool
    ) -> dict[str, Refusals]:
        """Store and return the refusals of all objects, updated as in `refusals_after_check`."""
        with self._lock:
            self._refusals = refusals_after_check(
                self._refusals,
                object_id,
                self.clock(),
                is_agent_accepted=is_agent_accepted,
                is_object_readable=is_object_readable,
            )
            return self._refusals
