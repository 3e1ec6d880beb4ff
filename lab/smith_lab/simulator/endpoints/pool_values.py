"""Handles API calls that list, create and delete the values of service pools and config pools.

A service pool gives values to the properties of services. A config pool gives values to the configurations of agents.
A value that is allocated to a service or an agent cannot be deleted. Free values of a pool are allocated in the order
of their names. The owner of a value is the provider that owns the pool. Only the owner and admins may read and delete
the value. A participant in FulcrumCore is a provider or a consumer.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers.

The function `find_owners` of an endpoint returns the owners of the value that the call reads, creates or deletes. If
the caller is neither an owner nor an admin, or the function returns None, the call is answered 403.
"""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.paging import Listing, contains, equals_uuid, sort_by
from smith_lab.simulator.problems import internal_error, not_found
from smith_lab.simulator.row_checks import refuse_if_in_use
from smith_lab.simulator.rows import Pool, PoolValue
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

_SORT_KEYS = {"name": sort_by("name"), "createdAt": sort_by("created_at")}
_SERVICE_POOL_VALUE_LISTING = Listing(
    filters={
        "name": contains("name"),
        "servicePoolId": equals_uuid("pool_id"),
        "serviceId": equals_uuid("allocated_to_id"),
    },
    sort_keys=_SORT_KEYS,
)
_CONFIG_POOL_VALUE_LISTING = Listing(
    filters={
        "name": contains("name"),
        "configPoolId": equals_uuid("pool_id"),
        "agentId": equals_uuid("allocated_to_id"),
    },
    sort_keys=_SORT_KEYS,
)


def _owners_of_value(row: PoolValue) -> Owners:
    return Owners(participant_ids=(row.participant_id,))


def _new_value_row(call: Call, pool: Pool) -> PoolValue:
    if not call.body.get("name") or call.body.get("value") is None:
        raise internal_error("pool value name and value cannot be empty")
    return PoolValue(
        **call.store.new_row_fields(),
        name=call.body["name"],
        value=call.body["value"],
        pool_id=pool.id,
        participant_id=pool.participant_id,
    )


def _find_service_pool_value_owners(call: Call) -> Owners | None:
    row = call.store.service_pool_values.get(call.id)
    return _owners_of_value(row) if row else None


def _list_service_pool_values(call: Call) -> Reply:
    rows = (row for row in call.store.service_pool_values.values() if call.may_access(_owners_of_value(row)))
    return _SERVICE_POOL_VALUE_LISTING.reply(call, rows, lambda row: views.full_service_pool_value(call.store, row))


def _get_service_pool_value(call: Call) -> Reply:
    return Reply(body=views.full_service_pool_value(call.store, call.store.service_pool_values[call.id]))


def _create_service_pool_value(call: Call) -> Reply:
    """Create a value. As in FulcrumCore, a participant may create values in the service pools of all providers."""
    pool = call.store.service_pools.get(call.body.get("servicePoolId", ""))
    if pool is None:
        raise not_found()
    row = _new_value_row(call, pool)
    call.store.service_pool_values[row.id] = row
    call.record_event("service_pool_value.created", row)
    return Reply(status=201, body=views.service_pool_value(row))


def _delete_service_pool_value(call: Call) -> Reply:
    """Delete a value. Raises a 500 if the value is allocated to a service."""
    refuse_if_in_use(call.store.service_pool_values[call.id].allocated_to_id is not None)
    call.record_event("service_pool_value.deleted", call.store.service_pool_values.pop(call.id))
    return NO_CONTENT


def _find_config_pool_value_owners(call: Call) -> Owners | None:
    row = call.store.config_pool_values.get(call.id)
    return _owners_of_value(row) if row else None


def _owners_of_new_config_pool_value(call: Call) -> Owners | None:
    pool = call.store.config_pools.get(call.body.get("configPoolId", ""))
    return Owners(participant_ids=(pool.participant_id,)) if pool else None


def _list_config_pool_values(call: Call) -> Reply:
    rows = (row for row in call.store.config_pool_values.values() if call.may_access(_owners_of_value(row)))
    return _CONFIG_POOL_VALUE_LISTING.reply(call, rows, lambda row: views.full_config_pool_value(call.store, row))


def _get_config_pool_value(call: Call) -> Reply:
    return Reply(body=views.full_config_pool_value(call.store, call.store.config_pool_values[call.id]))


def _create_config_pool_value(call: Call) -> Reply:
    row = _new_value_row(call, call.store.config_pools[call.body["configPoolId"]])
    call.store.config_pool_values[row.id] = row
    call.record_event("config_pool_value.created", row)
    return Reply(status=201, body=views.config_pool_value(row))


def _delete_config_pool_value(call: Call) -> Reply:
    """Delete a value. Raises a 500 if the value is allocated to an agent."""
    refuse_if_in_use(call.store.config_pool_values[call.id].allocated_to_id is not None)
    call.record_event("config_pool_value.deleted", call.store.config_pool_values.pop(call.id))
    return NO_CONTENT


_VALUE_BODY_FIELDS = {"name": "string", "value": "any"}
_SERVICE_POOL_VALUE_PATH = "/service-pool-values/{id}"
_CONFIG_POOL_VALUE_PATH = "/config-pool-values/{id}"

ENDPOINTS = [
    Endpoint(method="GET", path="/service-pool-values", handler=_list_service_pool_values, roles=ANY_ROLE),
    Endpoint(
        method="POST",
        path="/service-pool-values",
        handler=_create_service_pool_value,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_VALUE_BODY_FIELDS, "servicePoolId": "uuid"},
    ),
    Endpoint(
        method="GET",
        path=_SERVICE_POOL_VALUE_PATH,
        handler=_get_service_pool_value,
        roles=ANY_ROLE,
        find_owners=_find_service_pool_value_owners,
    ),
    Endpoint(
        method="DELETE",
        path=_SERVICE_POOL_VALUE_PATH,
        handler=_delete_service_pool_value,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_service_pool_value_owners,
    ),
    Endpoint(method="GET", path="/config-pool-values", handler=_list_config_pool_values, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/config-pool-values",
        handler=_create_config_pool_value,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={**_VALUE_BODY_FIELDS, "configPoolId": "uuid"},
        find_owners=_owners_of_new_config_pool_value,
    ),
    Endpoint(
        method="GET",
        path=_CONFIG_POOL_VALUE_PATH,
        handler=_get_config_pool_value,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_config_pool_value_owners,
    ),
    Endpoint(
        method="DELETE",
        path=_CONFIG_POOL_VALUE_PATH,
        handler=_delete_config_pool_value,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_config_pool_value_owners,
    ),
]
