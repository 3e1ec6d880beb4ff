"""Answers the calls for pools, which are not simulated: every list is empty, and a creation is answered 400."""

from __future__ import annotations

from smith_lab.simulator.paging import Listing
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.web import ANY_ROLE, USERS, Call, Endpoint, Reply

_LISTING = Listing()
#: Maps the path of each collection to the roles that may list it.
_ROLES_BY_PATH = {
    "/service-pools": ANY_ROLE,
    "/service-pool-values": ANY_ROLE,
    "/service-pool-sets": USERS,
    "/config-pools": USERS,
    "/config-pool-values": USERS,
}


def _list_empty(call: Call) -> Reply:
    return _LISTING.reply(call, rows=[], render_row=dict)  # `dict` is never called, because there are no rows


def _refuse(call: Call) -> Reply:
    raise bad_request("pools are not simulated")


ENDPOINTS = [
    *(Endpoint(method="GET", path=path, handler=_list_empty, roles=roles) for path, roles in _ROLES_BY_PATH.items()),
    *(Endpoint(method="POST", path=path, handler=_refuse, roles=USERS) for path in _ROLES_BY_PATH),
]
