"""Renders templates of Go's package text/template. Supports only a part of its language.

FulcrumCore renders an agent's configuration file and install command from two templates of the agent's type. The data
of both templates contain the agent's configuration.

Supported are fields, variables, with, range, if, pipes, printf, index and some other functions. A field with a missing
key is an error, because FulcrumCore sets Go's option `missingkey=error`. The function `index` returns nil for a missing
key.

An action is `{{ … }}`. It contains a pipeline: commands that are separated by `|`. A command is a function with its
operands, or a single operand. An operand is a constant, a field, a variable or a pipeline in parentheses.

Many functions have these parameters: `dot` is the value of `.`, as in Go's documentation. `tokens` are the strings
into which go_template_parser splits an action. `nodes` are the parts of a template: a node is a text, a pipeline
action (an action without a keyword: it prints a value or declares variables) or a block (`with`, `range` or `if`).
`variables` are the template's variables that the action can use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from smith_lab.simulator.go_template_parser import Block, Node, PipelineAction, TemplateError, Text, parse

#: Maps the name of a template's variable to its value. The variable `$` is the data that was passed to `render`.
Variables = dict[str, Any]
#: The smallest positive float with an integer value that Go prints with an exponent.
MIN_FLOAT_WITH_EXPONENT = 1e21


def render(template: str, data: dict[str, Any]) -> str:
    """Render a template. `data` contains an agent's configuration. Raises TemplateError."""
    return _render_nodes(parse(template), data, {"$": data})


def _render_nodes(nodes: list[Node], dot: Any, variables: Variables) -> str:
    return "".join(_render_node(node, dot, variables) for node in nodes)


def _render_node(node: Node, dot: Any, variables: Variables) -> str:
    if isinstance(node, Text):
        return node.text
    if isinstance(node, PipelineAction):
        return _render_pipeline_action(node.tokens, dot, variables)
    keyword = node.kind.removeprefix("else-")  # the parser adds `else-` to the keyword of an `{{else if}}`
    if keyword == "range":
        return _render_range(node, dot, variables)
    names, tokens = _split_declaration(node.tokens)
    value = _evaluate_pipeline(tokens, dot, variables)
    if not _is_true(value):
        return _render_nodes(node.else_body, dot, variables)
    inner_dot = value if keyword == "with" else dot
    return _render_nodes(node.body, inner_dot, variables | {name: value for name in names})


def _render_pipeline_action(tokens: list[str], dot: Any, variables: Variables) -> str:
    """Return the text of an action. An action that declares variables adds them to `variables` and has no text."""
    names, tokens = _split_declaration(tokens)
    value = _evaluate_pipeline(tokens, dot, variables)
    variables.update({name: value for name in names})
    return "" if names else to_go_text(value)


def _render_range(node: Block, dot: Any, variables: Variables) -> str:
    """Render the body once for each item, or the else part if there is no item."""
    names, tokens = _split_declaration(node.tokens)
    value = _evaluate_pipeline(tokens, dot, variables)
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = sorted(value.items())
    elif isinstance(value, list) or value is None:
        pairs = list(enumerate(value or []))
    else:
        raise TemplateError("range can't iterate over a plain value")
    if not pairs:
        return _render_nodes(node.else_body, dot, variables)
    rendered_items = []
    for key, item in pairs:
        loop_values = (key, item) if len(names) == 2 else (item,)
        loop_variables = dict(zip(names, loop_values, strict=False))  # not strict, because `names` may be empty
        rendered_items.append(_render_nodes(node.body, item, variables | loop_variables))
    return "".join(rendered_items)


def _split_declaration(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Split `$a, $b := pipeline` into the names and the pipeline."""
    if ":=" not in tokens:
        return [], tokens
    index = tokens.index(":=")
    return [token for token in tokens[:index] if token != ","], tokens[index + 1 :]


def _evaluate_pipeline(tokens: list[str], dot: Any, variables: Variables) -> Any:
    """Return the value of a pipeline. The value of each command becomes the last argument of the next command."""
    piped_values: list[Any] = []  # empty before the first command; then one item: the value of the latest command
    for command in _split_commands(tokens):
        piped_values = [_run_command(command, dot, variables, piped_values)]
    if not piped_values:
        raise TemplateError("missing value for command")
    return piped_values[0]


def _split_commands(tokens: list[str]) -> list[list[str]]:
    """Split a pipeline at each `|` outside parentheses."""
    commands: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        if token == "|" and depth == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _run_command(tokens: list[str], dot: Any, variables: Variables, piped_values: list[Any]) -> Any:
    """Call a function, or return the value of a single operand.

    `piped_values` contains the value of the command before `|`. It is empty if this command is the first.
    """
    operands = _split_operands(tokens)
    if not operands:
        raise TemplateError("missing value for command")
    first_operand, *argument_operands = operands
    first_token = first_operand[0]
    is_word = len(first_operand) == 1 and re.fullmatch(r"[A-Za-z_]\w*", first_token) is not None
    if is_word and first_token not in _CONSTANTS:
        if first_token not in _FUNCTIONS:
            raise TemplateError(f"function {first_token!r} not defined")
        arguments = [_evaluate_operand(operand, dot, variables) for operand in argument_operands]
        return _call_function(first_token, [*arguments, *piped_values])
    if argument_operands or piped_values:
        raise TemplateError(f"can't give argument to non-function {first_token}")
    return _evaluate_operand(first_operand, dot, variables)


def _split_operands(tokens: list[str]) -> list[list[str]]:
    """Group the tokens into operands. An operand is one token, or `(` with the tokens before the closing `)`."""
    operands: list[list[str]] = []
    depth = 0  # number of open parentheses
    for token in tokens:
        if token == ")":
            depth -= 1
            if depth == 0:
                continue  # the operand does not contain its closing parenthesis
        if depth == 0:
            operands.append([token])
        else:
            operands[-1].append(token)
        if token == "(":
            depth += 1
    if depth:
        raise TemplateError("unclosed left paren")
    return operands


def _evaluate_operand(tokens: list[str], dot: Any, variables: Variables) -> Any:
    text = tokens[0]
    if text == "(":
        return _evaluate_pipeline(tokens[1:], dot, variables)
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] == '"':
        return json.loads(text)
    if text[0] == "`":
        return text[1:-1]
    if text[0].isdigit() or text[0] == "-":
        return float(text) if "." in text else int(text)
    return _evaluate_field(text, dot, variables)


def _evaluate_field(text: str, dot: Any, variables: Variables) -> Any:
    """Return the value of a path such as `.a.b` or `$name.a`."""
    head, *path = text.split(".")
    value = dot
    if head:
        if head not in variables:
            raise TemplateError(f"undefined variable {head!r}")
        value = variables[head]
    for name in filter(None, path):  # skips the empty name in the path `.`
        if not isinstance(value, dict):
            raise TemplateError(f"can't evaluate field {name}")
        if name not in value:
            raise TemplateError(f'map has no entry for key "{name}"')
        value = value[name]
    return value


def _is_true(value: Any) -> bool:
    """Return whether a Go template treats the value as true: every value except nil, false, zero and empty values."""
    return bool(value)


def to_go_text(value: Any) -> str:
    """Return the value as Go prints it with %v."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == int(value) and abs(value) < MIN_FLOAT_WITH_EXPONENT:
        return str(int(value))
    if isinstance(value, list):
        return "[" + " ".join(to_go_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{to_go_text(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def _printf(format_text: Any, *values: Any) -> str:
    """Format values as Go's printf does. Every verb except %q is treated as %v."""
    unused_values = list(values)

    def replace(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        verb = match[1]
        if not unused_values:
            return f"%!{verb}(MISSING)"
        text = to_go_text(unused_values.pop(0))
        return json.dumps(text, ensure_ascii=False) if verb == "q" else text

    return re.sub(r"%%|%([a-z])", replace, str(format_text))  # matches `%%` or a verb such as `%s`


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateError("error calling index")
    return value


_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "nil": None}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "printf": _printf,
    "print": lambda *values: "".join(map(to_go_text, values)),
    "println": lambda *values: " ".join(map(to_go_text, values)) + "\n",
    "index": _index,
    "len": len,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, other: first != other,
}


def _call_function(name: str, arguments: list[Any]) -> Any:
    try:
        return _FUNCTIONS[name](*arguments)
    except (TypeError, IndexError) as exc:
        raise TemplateError(f"error calling {name}") from exc
