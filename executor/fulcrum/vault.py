"""Vault references become values: late, in memory, and only where the service type says that a secret belongs.

A text that merely looks like a reference stays text. Nothing here is stored or logged.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from executor.errors import ErrorCode, FulcrumNotFound, FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient

REFERENCE_PREFIX = "vault://"
#: How long a service type is believed: an operator may change it while services exist.
TYPE_AGE_S = 60.0
#: A vault that answers 500 this often has no key: FulcrumCore says nothing clearer.
PATIENCE_ATTEMPTS = 3
#: A password, a key, a chain of certificates. The redactor holds each of its lines in some hundred forms, so that
#: somebody's megabyte would be our memory's end.
MAX_SECRET_CHARS = 16_384

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What decides how the secrets of a job are read."""

    action: str
    service: dict[str, Any] | None = field(repr=False)  #: as FulcrumCore delivered it with the job
    params: dict[str, Any] | None = field(repr=False)
    attempt: int = 1


class SecretResolver:
    """Fills secrets into a job's properties; safe to use from many threads."""

    def __init__(self, fulcrum: FulcrumClient) -> None:
        self._fulcrum = fulcrum
        self._types: dict[str, tuple[float, frozenset[Path]]] = {}
        self._lock = threading.Lock()

    def fill_in(self, job: JobFacts, properties: dict[str, Any]) -> dict[str, Any]:
        """Return the properties with secrets as values.

        A reference that is gone from the vault is fatal only for a first create, which needs its value; elsewhere the
        setting is left out, so that it stays as it is. Raises JobError SECRET_MISSING, FulcrumUnavailable.
        """
        if not _mentions_reference(properties):
            return properties
        filled: dict[str, Any] = _copy(properties)
        for path in self._secret_paths(job):
            for holder, key in _places(filled, path):
                self._fill_one(job, holder, key)
        return filled

    def values_in(self, job: JobFacts, properties: dict[str, Any]) -> tuple[str, ...]:
        """Return the secret texts among filled properties, those inside objects too: what no artifact may show."""
        if not properties or not _mentions_reference(_delivered(job)):
            return ()
        places = (place for path in self._secret_paths(job) for place in _places(properties, path))
        return tuple(dict.fromkeys(text for holder, key in places for text in _texts(holder[key])))

    def _fill_one(self, job: JobFacts, holder: Any, key: Any) -> None:
        reference = holder[key]
        if not isinstance(reference, str) or not reference.startswith(REFERENCE_PREFIX):
            return
        if self._is_unchanged(job, reference):
            del holder[key]  # an update that does not touch it: its value may be gone from the vault already
            return
        try:
            value = self._fulcrum.get_secret(reference)
        except FulcrumNotFound:
            if job.action == "create" and (job.service or {}).get("status") == "New":
                raise JobError(ErrorCode.SECRET_MISSING, f"the vault has no value for {key} any more") from None
            del holder[key]
            return
        except FulcrumUnavailable as error:
            if error.status == 500 and job.attempt >= PATIENCE_ATTEMPTS:
                raise JobError(ErrorCode.SECRET_MISSING, "the vault cannot be read") from None
            raise
        if len(json.dumps(value, ensure_ascii=False)) > MAX_SECRET_CHARS:
            raise JobError(ErrorCode.INVALID_REQUEST, f"the secret {key} is larger than {MAX_SECRET_CHARS} characters")
        holder[key] = value

    @staticmethod
    def _is_unchanged(job: JobFacts, reference: str) -> bool:
        before = (job.service or {}).get("properties")
        return job.action == "update" and reference in _strings(before)

    def _secret_paths(self, job: JobFacts) -> frozenset[Path]:
        type_id = (job.service or {}).get("serviceTypeId")
        if not isinstance(type_id, str):
            raise JobError(ErrorCode.SECRET_MISSING, "the job does not say its service type: no secret can be read")
        with self._lock:
            known = self._types.get(type_id)
        if known is not None and time.monotonic() - known[0] < TYPE_AGE_S:
            return known[1]
        try:
            paths = frozenset(self._fulcrum.get_service_type(type_id).secret_paths())
        except FulcrumNotFound:
            raise JobError(ErrorCode.SECRET_MISSING, "the service type is gone: no secret can be read") from None
        with self._lock:
            self._types[type_id] = (time.monotonic(), paths)
        return paths


def _delivered(job: JobFacts) -> Any:
    return job.params or (job.service or {}).get("properties") or {}


def _mentions_reference(value: Any) -> bool:
    return any(text.startswith(REFERENCE_PREFIX) for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _texts(value: Any) -> Iterator[str]:
    """Yield what a secret shows wherever it is written: its strings, and its numbers as text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _places(value: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield each container and key that `path` names; `*` stands for every item of an array."""
    if not path:
        return
    head, *rest = path
    keys: list[Any] = []
    if head == "*" and isinstance(value, list):
        keys = list(reversed(range(len(value))))  # from the end: the caller may delete what it is given
    elif isinstance(value, dict) and head in value:
        keys = [head]
    for key in keys:
        if rest:
            yield from _places(value[key], tuple(rest))
        else:
            yield value, key
