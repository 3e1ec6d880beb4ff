"""Replaces references to FulcrumCore's vault with secrets, in the properties that the service type marks as secret.

In any other property, a text that looks like a reference is not changed. The secrets are kept in memory only. They are
never stored or logged.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from executor.errors import FulcrumNotFound, FulcrumRefused, FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import UUID_PATTERN, VAULT_PREFIX
from executor.log import get_logger
from executor.shared.error_codes import ErrorCode

log = get_logger(__name__)

#: How long the agent caches which properties a service type marks as secret. The time is short, because an
#: administrator may change the type at any time.
SERVICE_TYPE_CACHE_S = 60.0
#: The number of attempts after which a job fails if FulcrumCore answers 500 for a secret. FulcrumCore answers 500 after
#: a temporary failure, but also if its vault has no encryption key. So the agent first retries the job. After this
#: number of attempts, the agent assumes that the key is missing.
MAX_VAULT_ATTEMPTS = 3
#: Maximum length of a secret. It suffices for a password, a key, or a chain of certificates. A longer secret would cost
#: the redactor too much memory: it masks secrets in texts, and for this it stores every line of a secret in about one
#: hundred written forms (JSON-escaped, URL-encoded, in base64, …).
MAX_SECRET_CHARS = 16_384

#: The keys that lead to a nested property. `*` stands for every item of an array.
PropertyPath = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JobForSecretResolver:
    """The values of a job that `SecretResolver` needs."""

    action: str
    service: dict[str, Any] | None = field(repr=False)  #: the job's service, as FulcrumCore sent it with the job
    #: the params that FulcrumCore sent with the job; None or empty: the job uses the properties in `service`
    params: dict[str, Any] | None = field(repr=False)
    attempt: int = 1  #: the number of this attempt to run the job; the first is 1


@dataclass(frozen=True, kw_only=True)
class ReferenceUse:
    """One use of a reference in a secret property."""

    property_name: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class _CachedPaths:
    """The paths of the secrets of a service type."""

    read_at: float  #: when the service type was read: a value of `time.monotonic()`
    paths: frozenset[PropertyPath]


class SecretResolver:
    """Replaces the references in the properties of jobs with secrets. It is thread-safe."""

    def __init__(self, fulcrum: FulcrumClient) -> None:
        self._fulcrum = fulcrum
        self._cached_paths: dict[str, _CachedPaths] = {}  # the keys are ids of service types
        self._lock = threading.Lock()

    def reference_uses_to_resolve(self, job: JobForSecretResolver, properties: dict[str, Any]) -> list[ReferenceUse]:
        """Return the uses of references whose secrets `resolve` reads. In an update, these are only new references.

        Raises the same errors as `reference_uses_in`.
        """
        uses = self.reference_uses_in(job, properties)
        return [use for use in uses if not self._is_reference_unchanged(job, use.reference)]

    def reference_uses_in(self, job: JobForSecretResolver, properties: dict[str, Any]) -> list[ReferenceUse]:
        """Return the uses of references in the secret properties. Raises JobError SECRET_MISSING, FulcrumUnavailable.

        A reference whose id is not a UUID is left out, because no secret has such an id.
        """
        if not _has_reference(properties):
            return []
        return [
            ReferenceUse(property_name=str(key), reference=container[key])
            for path in self._secret_paths(job)
            for container, key in _find_locations(properties, path)
            if _is_reference(container[key]) and UUID_PATTERN.fullmatch(container[key].removeprefix(VAULT_PREFIX))
        ]

    def resolve(
        self,
        job: JobForSecretResolver,
        properties: dict[str, Any],
        *,
        on_property_left_out: Callable[[str], None] = lambda _name: None,
    ) -> dict[str, Any]:
        """Return a copy of the properties in which secrets replace the references.

        If an update does not change the reference of a property, the property is removed from the copy. The update does
        not need this secret, and the vault may no longer have it.

        If the vault no longer has a secret, the first create job of a service (the service's status is New) fails. In
        any other job, the property is removed from the copy, and `on_property_left_out` is called with its name.

        Raises JobError SECRET_MISSING and FulcrumUnavailable. Raises JobError INVALID_REQUEST if a secret is too long.
        """
        if not _has_reference(properties):
            return properties
        resolved_properties: dict[str, Any] = _deep_copy(properties)
        for path in self._secret_paths(job):
            for container, key in _find_locations(resolved_properties, path):
                self._replace_reference(job, container, key, on_property_left_out)
        return resolved_properties

    def secret_values(self, job: JobForSecretResolver, properties: dict[str, Any]) -> tuple[str, ...]:
        """Return all texts in `properties` that are secrets and must be masked in the artifacts of a run.

        `properties` must be a result of `resolve`.
        """
        if not properties or not _has_reference(_original_properties(job)):
            return ()
        secret_texts: list[str] = []
        for path in self._secret_paths(job):
            for container, key in _find_locations(properties, path):
                secret_texts += _strings_and_numbers(container[key])
        return tuple(dict.fromkeys(secret_texts))  # without duplicates

    def _replace_reference(
        self, job: JobForSecretResolver, container: Any, key: Any, on_property_left_out: Callable[[str], None]
    ) -> None:
        """Replace the reference `container[key]` with its secret, or delete it. Other values do not change."""
        reference = container[key]
        if not _is_reference(reference):
            return
        if self._is_reference_unchanged(job, reference):
            del container[key]  # the update does not change this property, and the vault may no longer have the secret
            return
        try:
            secret = self._fulcrum.get_secret(reference)
        except FulcrumNotFound:
            is_first_create = job.action == "create" and (job.service or {}).get("status") == "New"
            if is_first_create:
                raise JobError(ErrorCode.SECRET_MISSING, f"the vault no longer has a secret for {key}") from None
            # FulcrumCore may delete the secrets of a create job that fails. If a later create job of the service then
            # creates the VM, the VM lacks the secret. Only this log line and the service's `agentInstanceData`, which
            # the agent sends to FulcrumCore, show this.
            log.warning("secret_left_out", property=str(key), action=job.action)
            on_property_left_out(str(key))
            del container[key]
            return
        except FulcrumRefused as refusal:
            log.warning("secret_refused", property=str(key), reason=str(refusal))
            raise JobError(ErrorCode.SECRET_MISSING, f"FulcrumCore refuses to return the secret {key}") from None
        except FulcrumUnavailable as error:
            if error.status == 500 and job.attempt >= MAX_VAULT_ATTEMPTS:
                text = (
                    "FulcrumCore's vault cannot be read: "
                    "FulcrumCore's administrator must check whether the vault has an encryption key"
                )
                raise JobError(ErrorCode.SECRET_MISSING, text) from None
            raise
        if len(json.dumps(secret, ensure_ascii=False)) > MAX_SECRET_CHARS:
            raise JobError(ErrorCode.INVALID_REQUEST, f"the secret {key} is longer than {MAX_SECRET_CHARS} characters")
        container[key] = secret

    @staticmethod
    def _is_reference_unchanged(job: JobForSecretResolver, reference: str) -> bool:
        """Return whether the job is an update and the service already had this reference before the update."""
        previous_properties = (job.service or {}).get("properties")
        return job.action == "update" and reference in _strings(previous_properties)

    def _secret_paths(self, job: JobForSecretResolver) -> frozenset[PropertyPath]:
        """Return the paths of the properties that the job's service type marks as secret.

        Raises JobError SECRET_MISSING if the job has no service type, or if the type does not exist.
        """
        type_id = (job.service or {}).get("serviceTypeId")
        if not isinstance(type_id, str):
            raise JobError(ErrorCode.SECRET_MISSING, "the job names no service type, so its secrets are unknown")
        with self._lock:
            cached_paths = self._cached_paths.get(type_id)
        if cached_paths is not None and time.monotonic() - cached_paths.read_at < SERVICE_TYPE_CACHE_S:
            return cached_paths.paths
        try:
            paths = frozenset(self._fulcrum.get_service_type(type_id).secret_paths())
        except FulcrumNotFound:
            text = "the job's service type does not exist, so its secrets are unknown"
            raise JobError(ErrorCode.SECRET_MISSING, text) from None
        except FulcrumRefused as refusal:
            log.warning("service_type_refused", service_type_id=type_id, reason=str(refusal))
            text = "FulcrumCore refuses to return the job's service type, so its secrets are unknown"
            raise JobError(ErrorCode.SECRET_MISSING, text) from None
        with self._lock:
            self._cached_paths[type_id] = _CachedPaths(read_at=time.monotonic(), paths=paths)
        return paths


def _original_properties(job: JobForSecretResolver) -> Any:
    """Return the job's `params`. If they are None or empty, return the properties of the job's service."""
    return job.params or (job.service or {}).get("properties") or {}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(VAULT_PREFIX)


def _has_reference(value: Any) -> bool:
    """Return whether a nested value contains a reference to the vault."""
    return any(_is_reference(text) for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a nested value, except the keys of dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _strings_and_numbers(value: Any) -> Iterator[str]:
    """Yield the strings of a secret, and its numbers as text. The secret may be an object or an array."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _strings_and_numbers(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _deep_copy(value: Any) -> Any:
    """Return a deep copy of a nested value."""
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list) else value


def _find_locations(value: Any, path: PropertyPath) -> Iterator[tuple[Any, Any]]:
    """Yield the location of each property that `path` leads to in a nested value.

    A location is the dict or list that contains the property, and the property's key or index.
    """
    if not path:
        return
    first_key, *remaining_keys = path
    keys: list[Any] = []
    if first_key == "*" and isinstance(value, list):
        keys = list(reversed(range(len(value))))  # the last index comes first, because the caller may delete items
    elif isinstance(value, dict) and first_key in value:
        keys = [first_key]
    for key in keys:
        if remaining_keys:
            yield from _find_locations(value[key], tuple(remaining_keys))
        else:
            yield value, key
