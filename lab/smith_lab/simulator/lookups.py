"""Looks up the options and services to which the properties of a service refer.

A service option is a value that a provider offers, such as an image.
The validators `serviceOption` and `serviceReference` in a service type's property schema need these look-ups.
"""

from __future__ import annotations

from smith_lab.simulator.rows import Json, Service
from smith_lab.simulator.store import Store


class ServiceLookups:
    """Checks the references in the properties of one service. Each method returns the text of a problem, or None."""

    def __init__(self, store: Store, service: Service) -> None:
        self._store, self._service = store, service

    def option_problem(self, option_type: str, value: object) -> str | None:
        """Return a problem unless the service's provider has an enabled option with this type and value."""
        type_ids = {row.id for row in self._store.option_types.values() if row.type == option_type}
        for option in self._store.service_options.values():
            has_provider_and_type = (
                option.provider_id == self._service.provider_id and option.service_option_type_id in type_ids
            )
            if has_provider_and_type and option.enabled and option.value == value:
                return None
        return f"value is not an enabled option of type {option_type}"

    def reference_problem(self, config: Json, value: object) -> str | None:
        """Return a problem unless the value is the id of a service that the validator's `config` allows.

        In `config`, `types` contains the names of the allowed service types. If `origin` is `consumer`, the referenced
        service and the referring service must have the same consumer (the customer who ordered them). If `origin` is
        `group`, both services must be in the same group of services.
        """
        referenced_service = self._store.services.get(value) if isinstance(value, str) else None
        if referenced_service is None:
            return "referenced service does not exist"
        allowed_type_names = config.get("types")
        type_name = self._store.service_types[referenced_service.service_type_id].name
        if allowed_type_names and type_name not in allowed_type_names:
            return "referenced service has another type"
        has_same_consumer = referenced_service.consumer_id == self._service.consumer_id
        is_in_same_group = referenced_service.group_id == self._service.group_id
        origin = config.get("origin")
        if (origin == "consumer" and not has_same_consumer) or (origin == "group" and not is_in_same_group):
            return f"referenced service is not of the same {origin}"
        return None
