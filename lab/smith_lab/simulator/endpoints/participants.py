"""Handles API calls that manage participants, which are providers or consumers of services."""

from __future__ import annotations

from dataclasses import replace

from smith_lab.simulator import views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.paging import Listing, contains, equals_enum, sort_by
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.row_checks import refuse_if_in_use
from smith_lab.simulator.rows import Participant
from smith_lab.simulator.web import ADMINS, ADMINS_AND_PARTICIPANTS, NO_CONTENT, Call, Endpoint, Owners, Reply

PARTICIPANT_STATUSES = ("Enabled", "Disabled")

_LISTING = Listing(
    filters={"name": contains("name"), "status": equals_enum("status", PARTICIPANT_STATUSES)},
    sort_keys={"name": sort_by("name")},
)


def _find_participant_owners(call: Call) -> Owners | None:
    """Return the participant as its own owner. Only the participant and admins may access its row.

    If there is no such participant, return None: the server then answers 403.
    """
    return Owners(participant_ids=(call.id,)) if call.id in call.store.participants else None


def _list_participants(call: Call) -> Reply:
    rows = (row for row in call.store.participants.values() if call.may_access(Owners(participant_ids=(row.id,))))
    return _LISTING.reply(call, rows, views.participant)


def _create_participant(call: Call) -> Reply:
    row = Participant(**call.store.new_row_fields(), name=call.body.get("name", ""), status=call.body.get("status", ""))
    _check_participant(row)
    call.store.participants[row.id] = row
    call.record_event("participant.created", row)
    return Reply(status=201, body=views.participant(row))


def _check_participant(row: Participant) -> None:
    if not row.name:
        raise bad_request("participant name cannot be empty")
    if row.status not in PARTICIPANT_STATUSES:
        raise bad_request(f"invalid participant status: {row.status}")


def _get_participant(call: Call) -> Reply:
    return Reply(body=views.participant(call.store.participants[call.id]))


def _patch_participant(call: Call) -> Reply:
    row = call.store.participants[call.id]
    changed_row = replace(row, **call.body)  # the body contains only `name` and `status`
    _check_participant(changed_row)
    call.store.participants[row.id] = changed_row
    call.store.mark_updated(changed_row)
    # `json_for_events(row)` is the JSON of the participant before the change.
    call.record_change("participant.updated", json_for_events(row), changed_row)
    return Reply(body=views.participant(changed_row))


def _delete_participant(call: Call) -> Reply:
    """Delete a participant and its tokens. As in FulcrumCore, its service groups, services and jobs stay.

    If the participant has agents, it is not deleted, and the simulator answers 500.
    """
    store = call.store
    refuse_if_in_use(any(agent.provider_id == call.id for agent in store.agents.values()))
    call.record_event("participant.deleted", store.participants.pop(call.id))
    for token in [token for token in store.tokens.values() if token.participant_id == call.id]:
        store.delete_token(token)
    return NO_CONTENT


_PARTICIPANT_BODY_FIELDS = {"name": "string", "status": "string"}

ENDPOINTS = [
    Endpoint(method="GET", path="/participants", handler=_list_participants, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST", path="/participants", handler=_create_participant, roles=ADMINS, fields=_PARTICIPANT_BODY_FIELDS
    ),
    Endpoint(
        method="GET",
        path="/participants/{id}",
        handler=_get_participant,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=_find_participant_owners,
    ),
    Endpoint(
        method="PATCH",
        path="/participants/{id}",
        handler=_patch_participant,
        roles=ADMINS_AND_PARTICIPANTS,
        fields=_PARTICIPANT_BODY_FIELDS,
        find_owners=_find_participant_owners,
    ),
    Endpoint(
        method="DELETE",
        path="/participants/{id}",
        handler=_delete_participant,
        roles=ADMINS,
        find_owners=_find_participant_owners,
    ),
]
