"""Replaces references to FulcrumCore's vault with their values, only in properties that the service type marks secret.

In other properties a text that looks like a reference is not changed. The values are kept in memory only: they are
never stored or logged.
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
from executor.fulcrum.types import VAULT_PREFIX

#: How long a service type is cached: an administrator may change it while services exist.
SERVICE_TYPE_CACHE_S = 60.0
#: FulcrumCore answers 500 if its vault has no key, and also for temporary failures. From this attempt of the job on,
#: the agent assumes that the vault has no key.
MAX_VAULT_ATTEMPTS = 3
#: Enough for a password, a key, or a chain of certificates. The redactor keeps about a hundred forms of each line of a
#: secret, so a secret of a megabyte would exhaust the memory.
MAX_SECRET_CHARS = 16_384

PropertyPath = tuple[str, ...]  #: keys into nested properties; `*` stands for every item of an array


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The facts about a job that decide how its references are resolved."""

    action: str
    service: dict[str, Any] | None = field(repr=False)  #: as FulcrumCore sent it with the job
    params: dict[str, Any] | None = field(repr=False)
    attempt: int = 1


class SecretResolver:
    """Replaces references in the properties of jobs with secrets. Thread-safe."""

    def __init__(self, fulcrum: FulcrumClient) -> None:
        self._fulcrum = fulcrum
        self._types: dict[str, tuple[float, frozenset[PropertyPath]]] = {}
        self._lock = threading.Lock()

    def resolve(self, job: JobFacts, properties: dict[str, Any]) -> dict[str, Any]:
        """Return the properties with secrets in place of their references.

        If the vault no longer has the value of a reference, the service's first create fails, because it needs the
        value. In any other job the property is left out, so that the VM keeps the value that it has. Raises JobError
        SECRET_MISSING, FulcrumUnavailable.
        """
        if not _has_reference(properties):
            return properties
        resolved: dict[str, Any] = _copy(properties)
        for path in self._secret_paths(job):
            for container, key in _locations(resolved, path):
                self._replace_reference(job, container, key)
        return resolved

    def secret_values(self, job: JobFacts, properties: dict[str, Any]) -> tuple[str, ...]:
        """Return the secret texts in resolved properties, also inside objects. No artifact of a run may show them."""
        if not properties or not _has_reference(_original_properties(job)):
            return ()
        locations = (location for path in self._secret_paths(job) for location in _locations(properties, path))
        return tuple(dict.fromkeys(text for container, key in locations for text in _texts(container[key])))

    def _replace_reference(self, job: JobFacts, container: Any, key: Any) -> None:
        reference = container[key]
        if not isinstance(reference, str) or not reference.startswith(VAULT_PREFIX):
            return
        if self._is_unchanged(job, reference):
            del container[key]  # the update does not change this property, and the vault may no longer have its value
            return
        try:
            value = self._fulcrum.get_secret(reference)
        except FulcrumNotFound:
            if job.action == "create" and (job.service or {}).get("status") == "New":
                raise JobError(ErrorCode.SECRET_MISSING, f"the vault no longer has a value for {key}") from None
            del container[key]
            return
        except FulcrumUnavailable as error:
            if error.status == 500 and job.attempt >= MAX_VAULT_ATTEMPTS:
                raise JobError(ErrorCode.SECRET_MISSING, "the vault cannot be read") from None
            raise
        if len(json.dumps(value, ensure_ascii=False)) > MAX_SECRET_CHARS:
            raise JobError(ErrorCode.INVALID_REQUEST, f"the secret {key} is larger than {MAX_SECRET_CHARS} characters")
        container[key] = value

    @staticmethod
    def _is_unchanged(job: JobFacts, reference: str) -> bool:
        previous_properties = (job.service or {}).get("properties")
        return job.action == "update" and reference in _strings(previous_properties)

    def _secret_paths(self, job: JobFacts) -> frozenset[PropertyPath]:
        type_id = (job.service or {}).get("serviceTypeId")
        if not isinstance(type_id, str):
            raise JobError(ErrorCode.SECRET_MISSING, "the job names no service type: no secret can be read")
        with self._lock:
            cached = self._types.get(type_id)
        if cached is not None and time.monotonic() - cached[0] < SERVICE_TYPE_CACHE_S:
            return cached[1]
        try:
            paths = frozenset(self._fulcrum.get_service_type(type_id).secret_paths())
        except FulcrumNotFound:
            raise JobError(ErrorCode.SECRET_MISSING, "the service type does not exist: no secret can be read") from None
        with self._lock:
            self._types[type_id] = (time.monotonic(), paths)
        return paths


def _original_properties(job: JobFacts) -> Any:
    return job.params or (job.service or {}).get("properties") or {}


def _has_reference(value: Any) -> bool:
    return any(text.startswith(VAULT_PREFIX) for text in _strings(value))


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
    """Yield the texts that a secret consists of: its strings, and its numbers as text."""
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


def _locations(value: Any, path: PropertyPath) -> Iterator[tuple[Any, Any]]:
    """Yield the container and key of each value at `path`; `*` stands for every item of an array."""
    if not path:
        return
    head, *rest = path
    keys: list[Any] = []
    if head == "*" and isinstance(value, list):
        keys = list(reversed(range(len(value))))  # last index first, because the caller may delete items
    elif isinstance(value, dict) and head in value:
        keys = [head]
    for key in keys:
        if rest:
            yield from _locations(value[key], tuple(rest))
        else:
            yield value, key
