"""Serves the event log to admins and participants."""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.paging import Listing, equals, equals_uuid, sort_by
from smith_lab.simulator.web import USERS, Call, Endpoint, Reply, Scope

_LISTING = Listing(
    filters={
        "type": equals("type"),
        "initiatorType": equals("initiator_type"),
        "initiatorId": equals_uuid("initiator_id"),
    },
    # Events are numbered in the order of their creation. Several events may have the same time.
    sort_keys={"createdAt": sort_by("sequence_number")},
)


def _list_events(call: Call) -> Reply:
    rows = (
        event
        for event in call.store.events
        if call.may_access(Scope(participant_ids=(event.provider_id, event.consumer_id), agent_id=event.agent_id))
    )
    return _LISTING.reply(call, rows, views.event)


ENDPOINTS = [Endpoint(method="GET", path="/events", handler=_list_events, roles=USERS)]
