"""Pools are not simulated: every list is empty, every write answers 400."""

from __future__ import annotations

from smith_lab.simulator.paging import Listing
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.web import ANY_ROLE, USERS, Call, Endpoint, Reply

_EMPTY = Listing()
_READERS = {
    "/service-pools": ANY_ROLE,
    "/service-pool-values": ANY_ROLE,
    "/service-pool-sets": USERS,
    "/config-pools": USERS,
    "/config-pool-values": USERS,
}


def _list_nothing(call: Call) -> Reply:
    return _EMPTY.reply(call, (), dict)


def _refuse(call: Call) -> Reply:
    raise bad_request("pools are not simulated")


ENDPOINTS = [
    *(Endpoint(method="GET", path=path, handler=_list_nothing, roles=roles) for path, roles in _READERS.items()),
    *(Endpoint(method="POST", path=path, handler=_refuse, roles=USERS) for path in _READERS),
]
