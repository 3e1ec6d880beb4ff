"""Serves the lab endpoints, with which tests and the demo control the simulator.

Lab endpoints are below /lab, need no token and answer only clients on loopback. `smith_lab.simulator.__main__`
documents each endpoint.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from smith_lab.simulator import lab_actions as actions
from smith_lab.simulator.history import FaultsAndHistory
from smith_lab.simulator.lab_actions import LabAction, LabCall, LabCallRefused
from smith_lab.simulator.store import Store

_LAB_ACTIONS: list[tuple[str, str, LabAction]] = [
    ("GET", "/lab/clock", actions.read_clock),
    ("POST", "/lab/clock", actions.set_clock),
    # FulcrumCore's periodic maintenance: fail overdue jobs, delete old jobs, disconnect agents without heartbeats.
    ("POST", "/lab/sweep", actions.do_maintenance),
    # A fault rule makes chosen API requests fail, delays them or processes them twice.
    ("GET", "/lab/faults", actions.read_fault_rules),
    ("POST", "/lab/faults", actions.add_fault_rules),
    ("DELETE", "/lab/faults", actions.delete_fault_rules),
    # The history contains the API requests that the simulator has received.
    ("GET", "/lab/history", actions.read_history),
    ("DELETE", "/lab/history", actions.delete_history),
    ("POST", "/lab/reset", actions.reset),
    # A switch that is on makes the server behave wrongly or fail.
    ("GET", "/lab/switches", actions.read_switches),
    ("POST", "/lab/switches", actions.set_switches),
    # A server option is a setting of the simulator.
    ("POST", "/lab/options", actions.set_server_options),
    # The body of the request selects the tokens to revoke.
    ("POST", "/lab/tokens/revoke", actions.revoke_tokens),
    # The job fails at once, as after FulcrumCore's job timeout.
    ("POST", "/lab/jobs/{id}/expire", actions.expire_job),
    # An override changes the job's JSON in answers, but not the stored job.
    ("POST", "/lab/jobs/{id}/override", actions.override_job),
    ("DELETE", "/lab/jobs/{id}", actions.delete_job),
    # The vault stores secrets. A property of a service contains the reference of a secret, not the secret.
    ("GET", "/lab/vault", actions.read_vault),
    ("POST", "/lab/vault", actions.add_secret),
    ("DELETE", "/lab/vault", actions.delete_secrets),
    ("DELETE", "/lab/vault/{reference}", actions.delete_secret),
    # A raw pending item is JSON that a test adds to the list of pending jobs of every agent.
    ("GET", "/lab/pending", actions.read_raw_pending_items),
    ("POST", "/lab/pending", actions.add_raw_pending_items),
    ("DELETE", "/lab/pending", actions.delete_raw_pending_items),
    ("GET", "/lab/state", actions.read_state),
]


def lab_routes(store: Store, faults_and_history: FaultsAndHistory) -> list[Route]:
    """Return a route for each lab endpoint."""
    initial_server_options = asdict(store.options)  # `/lab/reset` restores them

    def route(method: str, path: str, action: LabAction) -> Route:
        async def respond(request: Request) -> Response:
            if not _is_loopback(request):
                return JSONResponse({"error": "the lab endpoints answer only clients on loopback"}, 403)
            raw_body = await request.body()
            return _run_lab_action(
                action, LabCall(store, faults_and_history, initial_server_options, request), raw_body
            )

        return Route(path, respond, methods=[method])

    return [route(method, path, action) for method, path, action in _LAB_ACTIONS]


def _run_lab_action(action: LabAction, call: LabCall, raw_body: bytes) -> Response:
    """Run the lab action under the store's lock and return its result as a JSON response."""
    try:
        with call.store.lock:
            result: Any = action(call, json.loads(raw_body) if raw_body else None)
            # Response instead of JSONResponse, which refuses NaN and Infinity. Tests may store and read these values.
            return Response(json.dumps(result), media_type="application/json")
    except LabCallRefused as error:
        return JSONResponse({"error": str(error)}, error.status)
    except (AttributeError, TypeError, ValueError, KeyError) as exc:  # the body does not have the expected form
        return JSONResponse({"error": f"{type(exc).__name__}: {exc}"}, 400)


def _is_loopback(request: Request) -> bool:
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
