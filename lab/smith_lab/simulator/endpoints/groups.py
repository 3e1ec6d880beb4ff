"""Handles API calls that manage service groups.

A service group contains services of one consumer: the participant (organisation) that orders the services. The consumer
is the owner of the group. Only the owner and admins may access the group.

A job of a group is a job of a service in the group. An agent's list of pending jobs contains at most one job of each
group. While the agent processes a job of a group, the list contains no job of this group.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers, here
the consumer.
"""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals_uuid, sort_by
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.row_checks import refuse_if_in_use
from smith_lab.simulator.rows import Group
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, NO_CONTENT, Call, Endpoint, Owners, Reply

_LISTING = Listing(
    filters={"name": contains("name"), "consumerId": equals_uuid("consumer_id")}, sort_keys={"name": sort_by("name")}
)


def _owners_of_group(row: Group) -> Owners:
    return Owners(participant_ids=(row.consumer_id,))


def _find_group_owners(call: Call) -> Owners | None:
    """Return the owner of the group with the id in the call's path, or None if there is no such group."""
    group = call.store.groups.get(call.id)
    return _owners_of_group(group) if group else None


def _owners_of_new_group(call: Call) -> Owners:
    """Return the owner of the new group: the consumer in the request."""
    return Owners(participant_ids=(call.body.get("consumerId"),))


def _list_groups(call: Call) -> Reply:
    rows = (group for group in call.store.groups.values() if call.may_access(_owners_of_group(group)))
    return _LISTING.reply(call, rows, lambda group: views.full_group(call.store, group))


def _create_group(call: Call) -> Reply:
    store, body = call.store, call.body
    if not body.get("name"):
        raise bad_request("service group name cannot be empty")
    if body.get("consumerId") not in store.participants:
        raise bad_request("participant does not exist")
    group = Group(**store.new_row_fields(), name=body["name"], consumer_id=body["consumerId"])
    store.groups[group.id] = group
    call.record_event("service_group.created", group)
    return Reply(status=201, body=views.group(group))


def _get_group(call: Call) -> Reply:
    return Reply(body=views.full_group(call.store, call.store.groups[call.id]))


def _patch_group(call: Call) -> Reply:
    group = call.store.groups[call.id]
    if call.body.get("name", group.name) == "":
        raise bad_request("service group name cannot be empty")
    json_before = json_for_events(group)
    group.name = call.body.get("name", group.name)
    call.store.mark_updated(group)
    call.record_change("service_group.updated", json_before, group)
    return Reply(body=views.full_group(call.store, group))


def _delete_group(call: Call) -> Reply:
    """Delete a group. If the group contains services, the answer is HTTP 500."""
    refuse_if_in_use(any(service.group_id == call.id for service in call.store.services.values()))
    call.record_event("service_group.deleted", call.store.groups.pop(call.id))
    return NO_CONTENT


_GROUP_BODY_FIELDS = {"name": "string", "consumerId": "uuid"}

ENDPOINTS = [
    Endpoint(method="GET", path="/service-groups", handler=_list_groups, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/service-groups",
        handler=_create_group,
        roles=ADMINS_AND_PARTICIPANTS,
        fields=_GROUP_BODY_FIELDS,
        find_owners=_owners_of_new_group,
    ),
    Endpoint(
        method="GET",
        path="/service-groups/{id}",
        handler=_get_group,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_group_owners,
    ),
    Endpoint(
        method="PATCH",
        path="/service-groups/{id}",
        handler=_patch_group,
        roles=ADMINS_AND_PARTICIPANTS,
        fields={"name": "string"},
        find_owners=_find_group_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/service-groups/{id}",
        handler=_delete_group,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_group_owners,
    ),
]
