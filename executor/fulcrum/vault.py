"""Replaces references to FulcrumCore's vault with their values, only in properties that the service type marks secret.

In any other property, a text that looks like a reference is not changed. The values are kept in memory only. They are
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

#: How long a service type is cached. The time is short, because an administrator may change the type at any time.
SERVICE_TYPE_CACHE_S = 60.0
#: FulcrumCore answers 500 if its vault was configured without an encryption key, but also for temporary failures. From
#: this attempt of a job on, the agent assumes that the key is missing, and fails the job.
MAX_VAULT_ATTEMPTS = 3
#: Maximum length of a secret. It suffices for a password, a key, or a chain of certificates. The redactor stores
#: about a hundred forms of each line of a secret, so a secret of a megabyte would exhaust the memory.
MAX_SECRET_CHARS = 16_384

PropertyPath = tuple[str, ...]  #: the keys that lead to a nested property; `*` stands for every item of an array


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The members of a job that determine how its references are replaced."""

    action: str
    service: dict[str, Any] | None = field(repr=False)  #: the job's service, as FulcrumCore sent it with the job
    params: dict[str, Any] | None = field(repr=False)
    attempt: int = 1  #: number of this attempt to run the job; the first is 1


class SecretResolver:
    """Replaces references in the properties of jobs with secrets. It is thread-safe."""

    def __init__(self, fulcrum: FulcrumClient) -> None:
        self._fulcrum = fulcrum
        # By the id of a service type: the time of its request, and the paths of its secrets.
        self._types: dict[str, tuple[float, frozenset[PropertyPath]]] = {}
        self._lock = threading.Lock()

    def resolve(self, job: JobFacts, properties: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the properties in which secrets replace their references.

        The vault may no longer have the value of a reference. Then the job that creates a new service fails, because a
        new VM needs the value. In any other job the property is left out, so that the VM keeps its present value.
        Raises JobError SECRET_MISSING, FulcrumUnavailable.
        """
        if not _has_reference(properties):
            return properties
        resolved: dict[str, Any] = _copy(properties)
        for path in self._secret_paths(job):
            for container, key in _locations(resolved, path):
                self._replace_reference(job, container, key)
        return resolved

    def secret_values(self, job: JobFacts, properties: dict[str, Any]) -> tuple[str, ...]:
        """Return all secret texts in `properties`, which `resolve` returned. No artifact of a run may show them."""
        if not properties or not _has_reference(_original_properties(job)):
            return ()
        locations = (location for path in self._secret_paths(job) for location in _locations(properties, path))
        return tuple(dict.fromkeys(text for container, key in locations for text in _texts(container[key])))

    def _replace_reference(self, job: JobFacts, container: Any, key: Any) -> None:
        """Replace the reference `container[key]` with its value, or delete it. A value without reference is kept."""
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
        """Return whether the job is an update, and the service had the same reference before the update."""
        previous_properties = (job.service or {}).get("properties")
        return job.action == "update" and reference in _strings(previous_properties)

    def _secret_paths(self, job: JobFacts) -> frozenset[PropertyPath]:
        """Return the paths of the properties that the type of the job's service marks secret."""
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
    """Return the properties as FulcrumCore sent them: of the job, or of its service if the job has none."""
    return job.params or (job.service or {}).get("properties") or {}


def _has_reference(value: Any) -> bool:
    """Return whether a string in a nested value is a reference to the vault."""
    return any(text.startswith(VAULT_PREFIX) for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a nested value, without the keys of dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a secret, which may be an object or an array: its strings, and its numbers as text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _copy(value: Any) -> Any:
    """Return a copy of nested dicts and lists."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _locations(value: Any, path: PropertyPath) -> Iterator[tuple[Any, Any]]:
    """Yield each place at `path` in a nested value. In the path, `*` stands for every item of a list.

    A place is given by the dict or list that contains the value, and by the key or index of the value.
    """
    if not path:
        return
    head, *rest = path
    keys: list[Any] = []
    if head == "*" and isinstance(value, list):
        keys = list(reversed(range(len(value))))  # the last index comes first, because the caller may delete items
    elif isinstance(value, dict) and head in value:
        keys = [head]
    for key in keys:
        if rest:
            yield from _locations(value[key], tuple(rest))
        else:
            yield value, key
