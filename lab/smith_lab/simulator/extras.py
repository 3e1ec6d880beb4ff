"""Secrets for agents, events for people, and pools, which are refused."""

from __future__ import annotations

from smith_lab.simulator import views
from smith_lab.simulator.paging import Listing, by, equals, is_uuid
from smith_lab.simulator.problems import bad_request, not_found, panic
from smith_lab.simulator.web import AGENTS, EVERYBODY, PEOPLE, Call, Endpoint, Reply, Scope

_EVENTS = Listing(
    filters={"type": equals("type"), "initiatorType": equals("initiator_type"), "initiatorId": is_uuid("initiator_id")},
    sorts={"createdAt": by("sequence_number")},
)
_NOTHING = Listing()


def _read_secret(call: Call) -> Reply:
    """Any agent reads any secret. Without a vault key the real server panics."""
    if call.store.switches.vault_off:
        raise panic()
    if call.path["reference"] not in call.store.vault.secrets:
        raise not_found()
    return Reply(body={"value": call.store.vault.secrets[call.path["reference"]]})


def _list_events(call: Call) -> Reply:
    rows = (
        event
        for event in call.store.events
        if call.may_touch(Scope(participants=(event.provider_id, event.consumer_id), agent_id=event.agent_id))
    )
    return _EVENTS.reply(call, rows, views.event)


def _list_nothing(call: Call) -> Reply:
    return _NOTHING.reply(call, (), dict)


def _refuse_pools(call: Call) -> Reply:
    raise bad_request("pools are not simulated")


ENDPOINTS = [
    Endpoint(method="GET", path="/vault/secrets/{reference}", handler=_read_secret, roles=AGENTS),
    Endpoint(method="GET", path="/events", handler=_list_events, roles=PEOPLE),
    *(
        Endpoint(method="GET", path=path, handler=_list_nothing, roles=roles)
        for path, roles in (
            ("/service-pools", EVERYBODY),
            ("/service-pool-values", EVERYBODY),
            ("/service-pool-sets", PEOPLE),
            ("/config-pools", PEOPLE),
            ("/config-pool-values", PEOPLE),
        )
    ),
    *(
        Endpoint(method="POST", path=path, handler=_refuse_pools, roles=PEOPLE)
        for path in (
            "/service-pools",
            "/service-pool-values",
            "/service-pool-sets",
            "/config-pools",
            "/config-pool-values",
        )
    ),
]
