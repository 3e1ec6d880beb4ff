"""Renders the part of Go's text/template that agent types use.

It supports fields, variables, with, range, if, pipes, printf, index and a few more functions. A field that names a
missing key is an error, because FulcrumCore sets Go's option `missingkey=error`. The function `index` returns nil for a
missing key.

Parameters of the functions below: `dot` is the value of `.`, as in Go's documentation. `tokens` are the strings into
which go_template_parser splits an action. `scope` holds the variables that are visible at this place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from smith_lab.simulator.go_template_parser import Block, Node, Output, TemplateError, Text, parse

#: The values of the template's variables by name. The variable `$` is the data that was passed to `render`.
Scope = dict[str, Any]


def render(template: str, data: dict[str, Any]) -> str:
    """Render a template with an agent's configuration as data. Raises TemplateError."""
    return _render(parse(template), data, {"$": data})


def _render(nodes: list[Node], dot: Any, scope: Scope) -> str:
    return "".join(_render_node(node, dot, scope) for node in nodes)


def _render_node(node: Node, dot: Any, scope: Scope) -> str:
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Output):
        return _render_output(node.tokens, dot, scope)
    kind = node.kind.removeprefix("else-")
    if kind == "range":
        return _render_range(node, dot, scope)
    names, tokens = _split_declaration(node.tokens)
    value = _evaluate(tokens, dot, scope)
    if not _is_true(value):
        return _render(node.else_body, dot, scope)
    return _render(node.body, value if kind == "with" else dot, scope | {name: value for name in names})


def _render_output(tokens: list[str], dot: Any, scope: Scope) -> str:
    """Return the text of an action. An action that declares variables adds them to `scope` and has no text."""
    names, tokens = _split_declaration(tokens)
    value = _evaluate(tokens, dot, scope)
    scope.update({name: value for name in names})
    return "" if names else to_go_text(value)


def _render_range(node: Block, dot: Any, scope: Scope) -> str:
    """Render the body once for each item, or the else part if there is no item."""
    names, tokens = _split_declaration(node.tokens)
    value = _evaluate(tokens, dot, scope)
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = sorted(value.items())
    elif isinstance(value, list) or value is None:
        pairs = list(enumerate(value or []))
    else:
        raise TemplateError("range can't iterate over a plain value")
    if not pairs:
        return _render(node.else_body, dot, scope)
    parts = []
    for key, item in pairs:
        loop_variables = dict(zip(names, (key, item) if len(names) == 2 else (item,), strict=False))
        parts.append(_render(node.body, item, scope | loop_variables))
    return "".join(parts)


def _split_declaration(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Split `$a, $b := pipeline` into the names and the pipeline."""
    if ":=" not in tokens:
        return [], tokens
    index = tokens.index(":=")
    return [token for token in tokens[:index] if token != ","], tokens[index + 1 :]


def _evaluate(tokens: list[str], dot: Any, scope: Scope) -> Any:
    """Return the value of a pipeline. The value of each command is the last argument of the command after it."""
    value: list[Any] = []
    for command in _split_commands(tokens):
        value = [_run_command(command, dot, scope, value)]
    if not value:
        raise TemplateError("missing value for command")
    return value[0]


def _split_commands(tokens: list[str]) -> list[list[str]]:
    """Split a pipeline at each `|` outside parentheses."""
    commands: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _run_command(tokens: list[str], dot: Any, scope: Scope, piped: list[Any]) -> Any:
    """Call a function, or return the value of a single operand.

    `piped` holds the value of the command before `|`, or nothing if this command is the first.
    """
    operands = _split_operands(tokens)
    if not operands:
        raise TemplateError("missing value for command")
    first, *rest = operands
    name = first[0]
    if len(first) == 1 and re.fullmatch(r"[A-Za-z_]\w*", name) and name not in ("true", "false", "nil"):
        if name not in _FUNCTIONS:
            raise TemplateError(f"function {name!r} not defined")
        arguments = [_evaluate_operand(operand, dot, scope) for operand in rest]
        return _call(name, [*arguments, *piped])
    if rest or piped:
        raise TemplateError(f"can't give argument to non-function {name}")
    return _evaluate_operand(first, dot, scope)


def _split_operands(tokens: list[str]) -> list[list[str]]:
    """Group the tokens into operands: one token, or `(` with the tokens up to the closing `)`."""
    operands: list[list[str]] = []
    depth = 0
    for token in tokens:
        if token == "(":
            operands.append(["("]) if depth == 0 else operands[-1].append(token)
            depth += 1
        elif token == ")":
            depth -= 1
            if depth:
                operands[-1].append(token)
        elif depth:
            operands[-1].append(token)
        else:
            operands.append([token])
    if depth:
        raise TemplateError("unclosed left paren")
    return operands


def _evaluate_operand(tokens: list[str], dot: Any, scope: Scope) -> Any:
    text = tokens[0]
    if text == "(":
        return _evaluate(tokens[1:], dot, scope)
    if text in ("true", "false", "nil"):
        return {"true": True, "false": False}.get(text)
    if text[0] in '"`':
        return json.loads(text) if text[0] == '"' else text[1:-1]
    if text[0].isdigit() or text[0] == "-":
        return float(text) if "." in text else int(text)
    return _evaluate_field(text, dot, scope)


def _evaluate_field(text: str, dot: Any, scope: Scope) -> Any:
    """Return the value of a path such as `.a.b` or `$name.a`."""
    head, *path = text.split(".")
    value = dot
    if head:
        if head not in scope:
            raise TemplateError(f"undefined variable {head!r}")
        value = scope[head]
    for name in (part for part in path if part):
        if not isinstance(value, dict):
            raise TemplateError(f"can't evaluate field {name}")
        if name not in value:
            raise TemplateError(f'map has no entry for key "{name}"')
        value = value[name]
    return value


def _is_true(value: Any) -> bool:
    """Return whether a Go template counts the value as true: every value except nil, false, zero and empty values."""
    return bool(value)


def to_go_text(value: Any) -> str:
    """Return the value as Go prints it with %v."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e21:
        return str(int(value))
    if isinstance(value, list):
        return "[" + " ".join(to_go_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{to_go_text(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def _printf(template: Any, *values: Any) -> str:
    """Format values as Go's printf does. Every verb except %q is treated as %v."""
    unused = list(values)

    def replace(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if not unused:
            return f"%!{match[1]}(MISSING)"
        value = unused.pop(0)
        return json.dumps(to_go_text(value), ensure_ascii=False) if match[1] == "q" else to_go_text(value)

    return re.sub(r"%%|%([a-z])", replace, str(template))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateError("error calling index")
    return value


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


def _call(name: str, arguments: list[Any]) -> Any:
    try:
        return _FUNCTIONS[name](*arguments)
    except (TypeError, IndexError) as exc:
        raise TemplateError(f"error calling {name}") from exc
