"""Looks up service options and services for the validators `serviceOption` and `serviceReference`."""

from __future__ import annotations

from smith_lab.simulator.rows import Json, Service
from smith_lab.simulator.store import Store


class ServiceLookups:
    """Checks values of one service's properties. Each method returns the text of a problem, or None."""

    def __init__(self, store: Store, service: Service) -> None:
        self._store, self._service = store, service

    def option_problem(self, option_type: str, value: object) -> str | None:
        """Return a problem unless the service's provider has an enabled option with this type and value."""
        type_ids = {row.id for row in self._store.option_types.values() if row.type == option_type}
        for option in self._store.service_options.values():
            is_offered = option.provider_id == self._service.provider_id and option.service_option_type_id in type_ids
            if is_offered and option.enabled and option.value == value:
                return None
        return f"value is not an enabled option of type {option_type}"

    def reference_problem(self, config: Json, value: object) -> str | None:
        """Return a problem unless the value is the id of a service that the validator's configuration allows.

        In the configuration, `types` contains the allowed names of service types. `origin` says whether the referenced
        service must have the same consumer or be in the same group.
        """
        other = self._store.services.get(value) if isinstance(value, str) else None
        if other is None:
            return "referenced service does not exist"
        names = config.get("types")
        if names and self._store.service_types[other.service_type_id].name not in names:
            return "referenced service has another type"
        same_consumer = other.consumer_id == self._service.consumer_id
        same_group = other.group_id == self._service.group_id
        origin = config.get("origin")
        if (origin == "consumer" and not same_consumer) or (origin == "group" and not same_group):
            return f"referenced service is not of the same {origin}"
        return None
