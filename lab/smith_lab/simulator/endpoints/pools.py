"""Handles API calls that manage pools and pool sets. A pool gives values to properties that a request does not set.

Each value of a pool belongs to at most one property at a time. A service pool gives values to the properties of
services. It belongs to a pool set. An agent can have one pool set. A config pool gives values to the configurations of
agents. The owner of a pool set or of a pool is a provider; a config pool for the agents of all providers has no owner.
The attribute with the owner's id is `provider_id` in a pool set and `participant_id` in a pool. A participant of
FulcrumCore is a provider or a consumer of services. Only the owner and admins may read, change and delete a pool set or
pool. An agent may read the service pools of its provider.

The schema of a service's properties or of an agent's configuration refers to a pool by the pool's `type`. The
`property_type` of a pool is the type of its values, such as `string`. The `generator_type` of a pool is `list` (clients
add each value by an API call) or, in a service pool only, `subnet` (the values are the addresses of the subnet in
`generator_config`). As in FulcrumCore, the server answers 500 to an empty `name` or `type`, and to an unknown
`property_type` or `generator_type`.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers.
"""

from __future__ import annotations

from collections.abc import Callable

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals, equals_uuid, sort_by
from smith_lab.simulator.problems import bad_request, internal_error, not_found
from smith_lab.simulator.row_checks import refuse_if_in_use
from smith_lab.simulator.rows import ConfigPool, Json, Pool, ServicePool, ServicePoolSet
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

#: The allowed values of a pool's `property_type`.
PROPERTY_TYPES = ("string", "integer", "number", "boolean", "json")
_SORT_KEYS = {"name": sort_by("name"), "createdAt": sort_by("created_at")}
_POOL_SET_LISTING = Listing(
    filters={"name": contains("name"), "providerId": equals_uuid("provider_id")}, sort_keys=_SORT_KEYS
)
_POOL_FILTERS = {"name": contains("name"), "type": equals("type"), "generatorType": equals("generator_type")}
_POOL_SORT_KEYS = {**_SORT_KEYS, "type": sort_by("type")}
_SERVICE_POOL_LISTING = Listing(
    filters={**_POOL_FILTERS, "servicePoolSetId": equals_uuid("service_pool_set_id")}, sort_keys=_POOL_SORT_KEYS
)
_CONFIG_POOL_LISTING = Listing(
    filters={**_POOL_FILTERS, "participantId": equals_uuid("participant_id")}, sort_keys=_POOL_SORT_KEYS
)


def _raise_500_if(is_invalid: bool, text: str) -> None:
    if is_invalid:
        raise internal_error(text)


# Pool sets


def _owners_of_pool_set(row: ServicePoolSet) -> Owners:
    return Owners(participant_ids=(row.provider_id,))


def _find_pool_set_owners(call: Call) -> Owners | None:
    row = call.store.service_pool_sets.get(call.id)
    return _owners_of_pool_set(row) if row else None


def _list_pool_sets(call: Call) -> Reply:
    rows = (row for row in call.store.service_pool_sets.values() if call.may_access(_owners_of_pool_set(row)))
    return _POOL_SET_LISTING.reply(call, rows, lambda row: views.full_service_pool_set(call.store, row))


def _get_pool_set(call: Call) -> Reply:
    return Reply(body=views.full_service_pool_set(call.store, call.store.service_pool_sets[call.id]))


def _create_pool_set(call: Call) -> Reply:
    store, body = call.store, call.body
    if body.get("providerId") not in store.participants:
        raise not_found()
    _raise_500_if(not body.get("name"), "pool set name cannot be empty")
    row = ServicePoolSet(**store.new_row_fields(), name=body["name"], provider_id=body["providerId"])
    store.service_pool_sets[row.id] = row
    call.record_event("service_pool_set.created", row)
    return Reply(status=201, body=views.service_pool_set(row))


def _patch_pool_set(call: Call) -> Reply:
    row = call.store.service_pool_sets[call.id]
    json_before = json_for_events(row)
    name = call.body.get("name", row.name)
    _raise_500_if(not name, "pool set name cannot be empty")
    row.name = name
    call.store.mark_updated(row)
    call.record_change("service_pool_set.updated", json_before, row)
    return _get_pool_set(call)


def _delete_pool_set(call: Call) -> Reply:
    """Delete a pool set. As in FulcrumCore, its pools stay, and agents keep the id of the pool set."""
    call.record_event("service_pool_set.deleted", call.store.service_pool_sets.pop(call.id))
    return NO_CONTENT


# Pools


def _owners_of_pool(row: Pool) -> Owners:
    return Owners(participant_ids=(row.participant_id,))


def _find_service_pool_owners(call: Call) -> Owners | None:
    row = call.store.service_pools.get(call.id)
    return _owners_of_pool(row) if row else None


def _find_config_pool_owners(call: Call) -> Owners | None:
    row = call.store.config_pools.get(call.id)
    return _owners_of_pool(row) if row else None


def _owners_of_new_config_pool(call: Call) -> Owners:
    return Owners(participant_ids=(call.body.get("participantId"),))  # None: only admins may create the pool


def _requested_members(body: Json) -> Json:
    """Return the values from the request's body for the members of a new pool."""
    return {
        "name": body.get("name", ""),
        "type": body.get("type", ""),
        "property_type": body.get("propertyType", ""),
        "generator_type": body.get("generatorType", ""),
        "generator_config": body.get("generatorConfig"),
    }


def _check_pool(row: Pool) -> None:
    allowed_generator_types = ("list", "subnet") if isinstance(row, ServicePool) else ("list",)
    _raise_500_if(not row.name or not row.type, "pool name and type cannot be empty")
    _raise_500_if(row.property_type not in PROPERTY_TYPES, f"invalid property type: {row.property_type}")
    _raise_500_if(row.generator_type not in allowed_generator_types, f"invalid generator type: {row.generator_type}")


def _list_service_pools(call: Call) -> Reply:
    rows = (row for row in call.store.service_pools.values() if call.may_access(_owners_of_pool(row)))
    return _SERVICE_POOL_LISTING.reply(call, rows, lambda row: views.full_service_pool(call.store, row))


def _get_service_pool(call: Call) -> Reply:
    return Reply(body=views.full_service_pool(call.store, call.store.service_pools[call.id]))


def _create_service_pool(call: Call) -> Reply:
    store = call.store
    pool_set = store.service_pool_sets.get(call.body.get("servicePoolSetId", ""))
    if pool_set is None:
        raise not_found()
    row = ServicePool(
        **store.new_row_fields(),
        **_requested_members(call.body),
        participant_id=pool_set.provider_id,
        service_pool_set_id=pool_set.id,
    )
    _check_pool(row)
    if any((pool.type, pool.participant_id) == (row.type, row.participant_id) for pool in store.service_pools.values()):
        raise bad_request(f"service pool with type {row.type!r} already exists for this provider")
    store.service_pools[row.id] = row
    call.record_event("service_pool.created", row)
    return Reply(status=201, body=views.service_pool(row))


def _patch_service_pool(call: Call) -> Reply:
    _change_pool(call, call.store.service_pools[call.id], "service_pool.updated")
    return _get_service_pool(call)


def _change_pool(call: Call, row: Pool, event_type: str) -> None:
    json_before = json_for_events(row)
    _raise_500_if(call.body.get("name", row.name) == "", "pool name cannot be empty")
    row.name = call.body.get("name", row.name)
    row.generator_config = call.body.get("generatorConfig", row.generator_config)
    call.store.mark_updated(row)
    call.record_change(event_type, json_before, row)


def _delete_service_pool(call: Call) -> Reply:
    """Delete a service pool. Raises a 500 if the pool has values."""
    refuse_if_in_use(any(value.pool_id == call.id for value in call.store.service_pool_values.values()))
    call.record_event("service_pool.deleted", call.store.service_pools.pop(call.id))
    return NO_CONTENT


def _list_config_pools(call: Call) -> Reply:
    rows = (row for row in call.store.config_pools.values() if call.may_access(_owners_of_pool(row)))
    return _CONFIG_POOL_LISTING.reply(call, rows, lambda row: views.full_config_pool(call.store, row))


def _get_config_pool(call: Call) -> Reply:
    return Reply(body=views.full_config_pool(call.store, call.store.config_pools[call.id]))


def _create_config_pool(call: Call) -> Reply:
    """Create a pool for the agents of one provider, or, without `participantId`, for the agents of all providers."""
    store = call.store
    participant_id = call.body.get("participantId")
    row = ConfigPool(**store.new_row_fields(), **_requested_members(call.body), participant_id=participant_id)
    _check_pool(row)
    if any(
        pool.type == row.type and pool.participant_id in (None, participant_id) for pool in store.config_pools.values()
    ):
        raise bad_request(f"config pool with type {row.type!r} already exists")
    store.config_pools[row.id] = row
    call.record_event("config_pool.created", row)
    return Reply(status=201, body=views.config_pool(row))


def _patch_config_pool(call: Call) -> Reply:
    _change_pool(call, call.store.config_pools[call.id], "config_pool.updated")
    return _get_config_pool(call)


def _delete_config_pool(call: Call) -> Reply:
    """Delete a config pool. Raises a 500 if the pool has values."""
    refuse_if_in_use(any(value.pool_id == call.id for value in call.store.config_pool_values.values()))
    call.record_event("config_pool.deleted", call.store.config_pools.pop(call.id))
    return NO_CONTENT


_POOL_SET_BODY_FIELDS = {"name": "string", "providerId": "uuid"}
_POOL_BODY_FIELDS = {
    "name": "string",
    "type": "string",
    "propertyType": "string",
    "generatorType": "string",
    "generatorConfig": "object",
}
_PATCH_POOL_BODY_FIELDS = {"name": "string", "generatorConfig": "object"}
_FindOwners = Callable[[Call], Owners | None]


def _item_endpoints(
    path: str,
    find_owners: _FindOwners,
    handlers: dict[str, Callable[[Call], Reply]],
    roles_for_get: frozenset[str],
    patch_fields: dict[str, str],
) -> list[Endpoint]:
    """Return the endpoints of a path that names one object. `handlers` maps an HTTP method to its handler."""
    return [
        Endpoint(
            method=method,
            path=path,
            handler=handler,
            roles=roles_for_get if method == "GET" else ADMINS_AND_PARTICIPANTS,
            fields=patch_fields if method == "PATCH" else None,  # None: the call's body is ignored
            find_owners=find_owners,
        )
        for method, handler in handlers.items()
    ]


ENDPOINTS = [
    Endpoint(method="GET", path="/service-pool-sets", handler=_list_pool_sets, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/service-pool-sets",
        handler=_create_pool_set,
        roles=ADMINS_AND_PARTICIPANTS,
        fields=_POOL_SET_BODY_FIELDS,
    ),
    *_item_endpoints(
        "/service-pool-sets/{id}",
        _find_pool_set_owners,
        {"GET": _get_pool_set, "PATCH": _patch_pool_set, "DELETE": _delete_pool_set},
        ADMINS_AND_PARTICIPANTS,
        {"name": "string"},
    ),
    Endpoint(method="GET", path="/service-pools", handler=_list_service_pools, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/service-pools",
        handler=_create_service_pool,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_POOL_BODY_FIELDS, "servicePoolSetId": "uuid"},
    ),
    *_item_endpoints(
        "/service-pools/{id}",
        _find_service_pool_owners,
        {"GET": _get_service_pool, "PATCH": _patch_service_pool, "DELETE": _delete_service_pool},
        ANY_ROLE,
        _PATCH_POOL_BODY_FIELDS,
    ),
    Endpoint(method="GET", path="/config-pools", handler=_list_config_pools, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/config-pools",
        handler=_create_config_pool,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_POOL_BODY_FIELDS, "participantId": "uuid"},
        find_owners=_owners_of_new_config_pool,
    ),
    *_item_endpoints(
        "/config-pools/{id}",
        _find_config_pool_owners,
        {"GET": _get_config_pool, "PATCH": _patch_config_pool, "DELETE": _delete_config_pool},
        ADMINS_AND_PARTICIPANTS,
        _PATCH_POOL_BODY_FIELDS,
    ),
]
