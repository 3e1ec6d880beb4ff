"""Implements the lab endpoints, with which tests and the demo control the simulator.

Each endpoint has a lab action: a function that gets a call and the JSON in the call's body, and returns the JSON of the
answer. The caller of a lab action holds the store's lock. The docstring of `smith_lab.simulator.__main__` lists the
endpoints.

The store contains the simulator's rows and switches, and the vault, which contains the secrets. A switch that is on
makes the server behave wrongly or fail. A fault rule makes certain API requests fail, delays them or repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from starlette.requests import Request

from smith_lab.simulator import maintenance, views
from smith_lab.simulator.clock import time_from_text, time_to_text
from smith_lab.simulator.fault_rules import FaultRule
from smith_lab.simulator.history import FaultsAndHistory
from smith_lab.simulator.rows import Job, Token
from smith_lab.simulator.store import Store


@dataclass(frozen=True)
class LabCall:
    """One request to a lab endpoint, with the objects that a lab action reads and changes."""

    store: Store
    faults_and_history: FaultsAndHistory
    #: The server options (settings of the simulator) at the start of the server. `reset` restores them.
    initial_server_options: dict[str, Any]
    request: Request


LabAction = Callable[[LabCall, Any], Any]


class LabCallRefused(Exception):
    """A lab endpoint refuses the request. The answer contains the reason and has the status 400 or 404."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


# --- time -------------------------------------------------------------------------------------------------------------


def read_clock(call: LabCall, body: Any) -> Any:
    now = call.store.clock.now()
    return {"now": now, "text": time_to_text(now), "frozen": call.store.clock.is_frozen}


def set_clock(call: LabCall, body: Any) -> Any:
    clock = call.store.clock
    if "freeze" in body:
        if body["freeze"]:
            clock.freeze()
        else:
            clock.unfreeze()
    if "set" in body:
        new_time = body["set"]
        clock.set(time_from_text(new_time) if isinstance(new_time, str) else float(new_time))
    if "advance" in body:
        clock.advance(float(body["advance"]))
    return read_clock(call, body)


def do_maintenance(call: LabCall, body: Any) -> Any:
    """Do FulcrumCore's maintenance work once; return how many rows each part of the work changed.

    The work is to fail overdue jobs, to delete old jobs, and to set agents without heartbeats to Disconnected.
    """
    return maintenance.sweep(call.store)


# --- fault rules and history ------------------------------------------------------------------------------------------


def read_fault_rules(call: LabCall, body: Any) -> Any:
    return [asdict(rule) for rule in call.faults_and_history.rules]


def add_fault_rules(call: LabCall, body: Any) -> Any:
    items = body if isinstance(body, list) else [body]
    call.faults_and_history.rules.extend([FaultRule(**item) for item in items])
    return read_fault_rules(call, body)


def delete_fault_rules(call: LabCall, body: Any) -> Any:
    call.faults_and_history.rules.clear()
    return []


def read_history(call: LabCall, body: Any) -> Any:
    """Return the recorded API requests that match the query. The number (`seq`) of each is above `since`.

    An empty `method` matches every method. An empty `path_end` matches every path.
    """
    query = call.request.query_params
    return call.faults_and_history.entries(
        int(query.get("since", "0")), query.get("method", ""), query.get("path_end", "")
    )


def delete_history(call: LabCall, body: Any) -> Any:
    call.faults_and_history.history.clear()
    return []


def reset(call: LabCall, body: Any) -> Any:
    """Restore the initial state of tables, fault rules, history, switches, server options and clock."""
    call.faults_and_history.rules.clear()
    call.faults_and_history.history.clear()
    for switch in fields(call.store.switches):
        setattr(call.store.switches, switch.name, switch.default)
    _set_members(call.store.options, call.initial_server_options)
    call.store.clock.reset()
    call.store.clear()
    return {}


# --- switches and server options --------------------------------------------------------------------------------------


def read_switches(call: LabCall, body: Any) -> Any:
    return asdict(call.store.switches)


def set_switches(call: LabCall, body: Any) -> Any:
    _set_members(call.store.switches, body)
    call.store.vault.is_enabled = not call.store.switches.vault_off
    return read_switches(call, body)


def set_server_options(call: LabCall, body: Any) -> Any:
    _set_members(call.store.options, body)
    return asdict(call.store.options)


# --- tokens, jobs, secrets --------------------------------------------------------------------------------------------


def revoke_tokens(call: LabCall, body: Any) -> Any:
    """Revoke every token that has all the values in the body.

    The body may contain name, id, value, role and agent_id.
    """
    if not body:
        raise LabCallRefused("the body must contain at least one of name, id, value, role and agent_id")
    tokens = [token for token in call.store.tokens.values() if _has_all_values(token, body)]
    if not tokens:
        raise LabCallRefused("no token has all of these values", 404)
    for token in tokens:
        call.store.delete_token(token)
    return {"revoked": [token.name for token in tokens]}


def _find_job(call: LabCall) -> Job:
    job = call.store.jobs.get(call.request.path_params["id"])
    if job is None:
        raise LabCallRefused("no job has this id", 404)
    return job


def expire_job(call: LabCall, body: Any) -> Any:
    """Make the job fail by timeout now, even if it is younger than the job timeout. Return the job's JSON."""
    job = _find_job(call)
    if job.status not in ("Pending", "Processing"):
        raise LabCallRefused(f"only a Pending or Processing job can expire; this job is {job.status}")
    maintenance.fail_jobs_by_timeout(call.store, [job])
    return views.job(call.store, job)


def override_job(call: LabCall, body: Any) -> Any:
    """Replace (`set`) and remove (`remove`) members of the job's JSON in the API's answers.

    The status and the other values of the stored job do not change.
    """
    job = _find_job(call)
    job.override = dict(body.get("set", {}))
    job.hidden_members = list(body.get("remove", []))
    return views.job(call.store, job)


def delete_job(call: LabCall, body: Any) -> Any:
    call.store.delete_job(_find_job(call))
    return {}


def read_vault(call: LabCall, body: Any) -> Any:
    """Return the ids of all secrets."""
    return sorted(call.store.vault.secrets)


def add_secret(call: LabCall, body: Any) -> Any:
    """Store a secret; return its reference: `vault://` and the secret's id."""
    return {"reference": call.store.vault.save(body["value"])}


def delete_secrets(call: LabCall, body: Any) -> Any:
    call.store.vault.secrets.clear()
    return []


def delete_secret(call: LabCall, body: Any) -> Any:
    """Delete one secret. `reference` in the path is the secret's id, without `vault://`."""
    if call.store.vault.secrets.pop(call.request.path_params["reference"], None) is None:
        raise LabCallRefused("no secret has this id", 404)
    return {}


# --- raw pending items, and the state ---------------------------------------------------------------------------------


def read_raw_pending_items(call: LabCall, body: Any) -> Any:
    """Return the raw pending items: JSON that tests added to the list of pending jobs of every agent."""
    return call.store.raw_pending_items


def add_raw_pending_items(call: LabCall, body: Any) -> Any:
    """Add items to the list of pending jobs of every agent, until DELETE /lab/pending removes them.

    An item may be any JSON, also JSON that is not a job.
    """
    call.store.raw_pending_items.extend(body if isinstance(body, list) else [body])
    return call.store.raw_pending_items


def delete_raw_pending_items(call: LabCall, body: Any) -> Any:
    call.store.raw_pending_items.clear()
    return []


def read_state(call: LabCall, body: Any) -> Any:
    """Return the rows of the tables that are named below, without token values, and the ids of the secrets."""
    store = call.store
    tables: dict[str, dict[str, Any]] = {
        "participants": store.participants,
        "serviceTypes": store.service_types,
        "agentTypes": store.agent_types,
        "agents": store.agents,
        "groups": store.groups,
        "services": store.services,
        "jobs": store.jobs,
        "metricTypes": store.metric_types,
        "optionTypes": store.option_types,
        "options": store.service_options,  # FulcrumCore's API calls them options; they are not the server options
    }
    rows: dict[str, Any] = {name: [views.all_members(row) for row in table.values()] for name, table in tables.items()}
    rows["tokens"] = [views.token(token) for token in store.tokens.values()]
    rows["metricEntries"] = [views.all_members(entry) for entry in store.metric_entries]
    rows["vault"] = sorted(store.vault.secrets)
    return rows


def _has_all_values(token: Token, members: dict[str, str]) -> bool:
    """Return whether the token has these values. `members` maps the name of a member to the expected value."""
    return all(getattr(token, name) == value for name, value in members.items())


def _set_members(target: Any, members: dict[str, Any]) -> None:
    """Set members of the dataclass object `target` to these values. Raises LabCallRefused for an unknown member."""
    known_names = {item.name for item in fields(target)}
    unknown_names = set(members) - known_names
    if unknown_names:
        raise LabCallRefused(f"unknown members {sorted(unknown_names)}; known members: {sorted(known_names)}")
    for name, value in members.items():
        setattr(target, name, value)
