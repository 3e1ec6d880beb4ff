"""Serves the event log to admins and participants.

An event records that an object was created, changed or deleted. A subscriber is a program that processes every event.
Several instances of it may run. An instance must acquire the subscriber's lease to receive events and to acknowledge
them. While one instance has the lease, no other instance can acquire the lease. The class Subscription contains the
lease of a subscriber and the number of the last event that it acknowledged.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers.
"""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.clock import time_to_text
from smith_lab.simulator.paging import Listing, contains, equals, equals_uuid, sort_by
from smith_lab.simulator.problems import ErrorAnswer, bad_request, not_found
from smith_lab.simulator.rows import Subscription
from smith_lab.simulator.web import ADMINS, ADMINS_AND_PARTICIPANTS, Call, Endpoint, Owners, Reply

#: The default and the bounds of a request's `leaseDurationSeconds`.
DEFAULT_LEASE_S, MIN_LEASE_S, MAX_LEASE_S = 300, 30, 3600
#: The default and the bounds of a request's `limit`, which is the greatest number of events in the answer.
DEFAULT_EVENT_LIMIT, MIN_EVENT_LIMIT, MAX_EVENT_LIMIT = 100, 1, 1000

_LISTING = Listing(
    filters={
        "type": contains("type"),
        # The initiator is the caller that caused the event. `initiatorType` is always `user`, and `initiatorId` is the
        # id of the caller's token.
        "initiatorType": equals("initiator_type"),
        "initiatorId": equals_uuid("initiator_id"),
    },
    # Each event has a greater number than the events before it. So the order by number is the order by time.
    sort_keys={"createdAt": sort_by("sequence_number"), "sequenceNumber": sort_by("sequence_number")},
)


def _list_events(call: Call) -> Reply:
    """List the events that the caller may access.

    An admin may access all events. A participant may access the events of objects whose provider or consumer it is.
    """
    # `agent_id` has no effect here, because agents may not call this endpoint.
    rows = (
        event
        for event in call.store.events
        if call.may_access(Owners(participant_ids=(event.provider_id, event.consumer_id), agent_id=event.agent_id))
    )
    return _LISTING.reply(call, rows, lambda event: views.full_event(call.store, event))


def _acquire_lease(call: Call) -> Reply:
    """Give the lease to the calling instance, and return the oldest events that the subscriber has not acknowledged."""
    store, body = call.store, call.body
    _require(body.get("subscriberId"), "subscriberId")
    instance_id = _require(body.get("instanceId"), "instanceId")
    subscription = store.subscriptions.setdefault(body["subscriberId"], Subscription(**store.new_row_fields()))
    if _is_lease_valid(call, subscription) and subscription.instance_id != instance_id:
        raise _conflict("Lease Conflict", "another instance has the lease")
    duration_s = min(max(body.get("leaseDurationSeconds", DEFAULT_LEASE_S), MIN_LEASE_S), MAX_LEASE_S)
    event_limit = min(max(body.get("limit", DEFAULT_EVENT_LIMIT), MIN_EVENT_LIMIT), MAX_EVENT_LIMIT)
    subscription.instance_id = instance_id
    subscription.lease_expires_at = store.clock.now() + duration_s
    unacknowledged_events = [
        event for event in store.events if event.sequence_number > subscription.last_sequence_number
    ]
    return Reply(
        body={
            "events": [views.event(event) for event in unacknowledged_events[:event_limit]],
            "leaseExpiresAt": time_to_text(subscription.lease_expires_at),
            "lastEventSequenceProcessed": subscription.last_sequence_number,
        }
    )


def _acknowledge_events(call: Call) -> Reply:
    """Store the number of the last event that the subscriber has processed. The caller must have the lease."""
    body = call.body
    _require(body.get("subscriberId"), "subscriberId")
    _require(body.get("instanceId"), "instanceId")
    last_processed_number = body.get("lastEventSequenceProcessed", 0)
    if last_processed_number <= 0:
        raise bad_request("lastEventSequenceProcessed must be greater than 0")
    subscription = call.store.subscriptions.get(body["subscriberId"])
    if subscription is None:
        raise not_found()
    has_lease = _is_lease_valid(call, subscription) and subscription.instance_id == body["instanceId"]
    if not has_lease or last_processed_number <= subscription.last_sequence_number:
        raise _conflict(
            "Acknowledgement Conflict",
            "the instance does not have the lease, or lastEventSequenceProcessed is already acknowledged",
        )
    subscription.last_sequence_number = last_processed_number
    return Reply(body={"lastEventSequenceProcessed": last_processed_number})


def _is_lease_valid(call: Call, subscription: Subscription) -> bool:
    return subscription.lease_expires_at > call.store.clock.now()


def _require(value: str | None, name: str) -> str:
    if not value:
        raise bad_request(f"{name} is required")
    return value


def _conflict(status_text: str, error: str) -> ErrorAnswer:
    return ErrorAnswer(409, {"status": status_text, "error": error})


_LEASE_BODY_FIELDS = {
    "subscriberId": "string",
    "instanceId": "string",
    "leaseDurationSeconds": "integer",
    "limit": "integer",
}
_ACKNOWLEDGE_BODY_FIELDS = {"subscriberId": "string", "instanceId": "string", "lastEventSequenceProcessed": "integer"}

ENDPOINTS = [
    Endpoint(method="GET", path="/events", handler=_list_events, roles=ADMINS_AND_PARTICIPANTS),
    Endpoint(
        method="POST",
        path="/events/lease",
        handler=_acquire_lease,
        roles=ADMINS,
        fields=_LEASE_BODY_FIELDS,
        checks_role_before_body=True,  # as in FulcrumCore, which checks the body first for most other paths
    ),
    Endpoint(
        method="POST",
        path="/events/ack",
        handler=_acknowledge_events,
        roles=ADMINS,
        fields=_ACKNOWLEDGE_BODY_FIELDS,
        checks_role_before_body=True,
    ),
]
