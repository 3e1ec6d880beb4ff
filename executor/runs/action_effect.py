"""Determines the effect of an action: whether it reads, changes or destroys a VM.

`smith play` asks the operator to confirm an action that changes or destroys a VM. The agent does not use the effect.

The provider, which is the organisation that operates the agent, can add actions to the actions of Agent Smith. The JSON
Schema of such an action may name the effect with the keyword `x-smith-effect`.
"""

from __future__ import annotations

from executor.errors import JobError
from executor.model import ActionEffect
from executor.runs.action_schema import EFFECT_KEYWORD, UnusableSchemaError, read_validator
from executor.runs.actions import Action
from executor.shared.error_codes import ErrorCode

#: The actions that destroy data: a VM with its disks, or all data written since a snapshot. A provider's action with
#: one of these names has the effect DESTROYS, even if its schema names another effect.
DESTROYING_ACTIONS = ("delete", "rollback")


def find_effect(action: Action) -> ActionEffect:
    """Return the effect of the action. It is CHANGES if the action has no schema, or if the schema names no effect.

    Raises JobError UNSUPPORTED_ACTION if the schema cannot be used.
    """
    if action.name in DESTROYING_ACTIONS:
        return ActionEffect.DESTROYS
    schema_file = action.schema
    if schema_file is None:
        return ActionEffect.CHANGES
    try:
        schema = dict(read_validator(schema_file).schema)
    except UnusableSchemaError as error:
        raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {action.name} is refused: {error}") from error
    return ActionEffect(schema.get(EFFECT_KEYWORD, ActionEffect.CHANGES))
