"""Each action refuses each of its requests in `impossible_requests.py` before the first change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from impossible_requests import BALLOON, CPUS, IMPOSSIBLE_REQUESTS, RAW, ImpossibleRequest
from play_bench import ACTIONS, Bench
from test_refusals import GIB, refused

#: What is impossible, the action, and the index of the request among the action's requests for it.
CASES = [
    (behaviour, action, number)
    for behaviour, row in IMPOSSIBLE_REQUESTS.items()
    for action, requests in row.items()
    if not isinstance(requests, str)
    for number in range(len(requests) if isinstance(requests, list) else 1)
]


@pytest.fixture(scope="module", autouse=True)
def cluster(session_bench: Bench) -> Iterator[None]:
    """Add what the requests name, and let the login see the CPUs of the nodes and which storages exist."""
    pve = session_bench.pve
    pve.control("add_template", vmid=BALLOON, name="balloon", node="pve1")
    pve.control("configure", vmid=BALLOON, values={"balloon": 4096})
    pve.control("add_storage", storage=RAW, type="dir", content="images,rootdir", avail=100 * GIB)
    grants = (("/nodes", "Sys.Audit"), ("/storage", "Datastore.AllocateSpace"), ("/storage", "Datastore.Audit"))
    for path, privilege in grants:
        pve.control("grant", path=path, privilege=privilege)
    yield
    for path, privilege in grants:
        pve.control("revoke", path=path, privilege=privilege)


def test_every_action_has_requests_or_a_reason_why_it_has_none() -> None:
    for behaviour, row in IMPOSSIBLE_REQUESTS.items():
        assert {*row} == {*ACTIONS}, behaviour


@pytest.mark.parametrize(
    ("behaviour", "action", "number"), CASES, ids=[f"{action}-{what}-{number}" for what, action, number in CASES]
)
def test_an_impossible_request_is_refused_before_any_change(
    bench: Bench, pve_version: str, behaviour: str, action: str, number: int
) -> None:
    requests = IMPOSSIBLE_REQUESTS[behaviour][action]
    request = requests[number] if isinstance(requests, list) else requests
    assert isinstance(request, ImpossibleRequest)
    for node in ("pve1", "pve2"):
        bench.pve.control("node", node=node, maxcpu=CPUS)
    done = refused(bench, action, request.vm(bench))
    assert done.code == request.code, (pve_version, done.message)
