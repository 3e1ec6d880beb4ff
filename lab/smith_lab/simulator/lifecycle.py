"""Checks lifecycle schemas, checks whether a state allows an action, and determines the state after an action.

A lifecycle schema belongs to a service type. It contains the states of a service and the actions that change the state.
The simulator checks and stores `runningStates` (the states in which a service's VM runs), but does not use them.
"""

from __future__ import annotations

import re
from typing import Any

from smith_lab.simulator import go_regexp
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.rows import Json


class NoTransition(Exception):
    """The action has no transition that matches the service's state and the action's success or error message."""


class UnknownAction(Exception):
    """The lifecycle schema has no action of this name, for example because it was removed after the job was created."""


def check(schema: Any) -> None:
    """Raise a 400 for a lifecycle schema that FulcrumCore refuses."""
    schema = _require_object(schema, "lifecycleSchema")
    states = [_require_name(state, "state") for state in _read_list(schema, "states")]
    _refuse_if(not states, "lifecycle must have at least one state")
    _refuse_duplicates(states, "state")
    _refuse_if(not schema.get("initialState"), "lifecycle must have an initial state")
    terminal_states, running_states = _read_list(schema, "terminalStates"), _read_list(schema, "runningStates")
    for state in [schema["initialState"], *terminal_states, *running_states]:
        _refuse_if(state not in states, f"lifecycle state {state!r} does not exist in states list")
    actions = _read_list(schema, "actions")
    _refuse_if(not actions, "lifecycle must have at least one action")
    _refuse_duplicates([_require_name(action, "action") for action in actions], "action")
    for action in actions:
        _check_transitions(action, states)


def _check_transitions(action: Json, states: list[str]) -> None:
    """Check the transitions of an action.

    A transition without `onError` applies only if the action succeeded. A transition with `onError` applies only if the
    action failed. A transition with `onError` and `onErrorRegexp` applies only if the error message matches the pattern
    `onErrorRegexp`.
    """
    transitions = _read_list(action, "transitions")
    _refuse_if(not transitions, f"lifecycle action {action['name']!r} must have at least one transition")
    for item in transitions:
        transition = _require_object(item, "transition")
        for member in ("from", "to"):
            _refuse_if(
                transition.get(member) not in states,
                f"lifecycle action {action['name']!r} transition references invalid {member} state",
            )
        _check_regexp(transition.get("onErrorRegexp") or "")


def _check_regexp(pattern: Any) -> None:
    _refuse_if(not isinstance(pattern, str), "onErrorRegexp must be a string")
    try:
        go_regexp.compile_pattern(pattern)
    except re.error as exc:
        raise bad_request(f"transition has invalid error regexp {pattern!r}") from exc


def is_terminal(schema: Json, state: str) -> bool:
    """Return whether this state is terminal: in a terminal state, no action is allowed."""
    return state in (schema.get("terminalStates") or [])


def refuse_unless_allowed(schema: Json, state: str, action: str) -> None:
    """Raise a 400 if `state` is terminal, or if the action is unknown or has no transition from `state`."""
    if is_terminal(schema, state):
        raise bad_request(f"cannot perform action on service in terminal state: {state}")
    transitions = _find_transitions(schema, action)
    if transitions is None:
        raise bad_request(f"action {action!r} not found in lifecycle schema")
    if not any(transition["from"] == state for transition in transitions):
        raise bad_request(f"action {action!r} is not allowed from state {state!r}")


def next_state(schema: Json, state: str, action: str, error: str | None = None) -> str:
    """Return the state of a service after an action. `error` is the error message, or None if the action succeeded.

    The first transition that matches `state` and `error` determines the new state. Raises NoTransition or
    UnknownAction.
    """
    transitions = _find_transitions(schema, action)
    if transitions is None:
        raise UnknownAction(f"action {action!r} not found in lifecycle schema")
    for transition in transitions:
        is_transition_for_errors = bool(transition.get("onError"))
        is_error = error is not None
        if transition["from"] != state or is_transition_for_errors != is_error:
            continue
        pattern = transition.get("onErrorRegexp") or ""
        if error is None or not pattern or go_regexp.matches(pattern, error):
            return str(transition["to"])
    raise NoTransition(f"no valid transition found for action {action!r} from state {state!r}")


def _find_transitions(schema: Json, action: str) -> list[Json] | None:
    """Return the transitions of an action, or None if the schema does not contain the action."""
    for candidate in schema.get("actions") or []:
        if candidate["name"] == action:
            return list(candidate["transitions"])
    return None


def _refuse_if(is_invalid: bool, text: str) -> None:
    if is_invalid:
        raise bad_request(text)


def _refuse_duplicates(names: list[str], label: str) -> None:
    _refuse_if(len(set(names)) != len(names), f"duplicate lifecycle {label} name")


def _require_object(value: Any, label: str) -> Json:
    if not isinstance(value, dict):
        raise bad_request(f"{label} must be an object")
    return value


def _read_list(parent: Json, name: str) -> list[Any]:
    """Return the member `name` of a schema or an action, which must be a list. Return an empty list if it is absent."""
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_request(f"{name} must be an array")
    return value


def _require_name(item: Any, label: str) -> str:
    name = _require_object(item, label).get("name")
    if not isinstance(name, str) or not name:
        raise bad_request(f"lifecycle {label} name cannot be empty")
    return name
