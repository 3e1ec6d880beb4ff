"""Renders the part of Go's text/template that agent types use.

It knows fields, variables, with, range, if, pipes, printf, index and a few more functions. A missing key is an error
(FulcrumCore sets `missingkey=error`); `index` of a missing key is nil.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from smith_lab.simulator.go_template_parser import Block, Node, Output, TemplateError, Text, parse

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
        return _output(node.tokens, dot, scope)
    kind = node.kind.removeprefix("else-")
    if kind == "range":
        return _render_range(node, dot, scope)
    names, tokens = _declared(node.tokens)
    value = _evaluate(tokens, dot, scope)
    if not _truth(value):
        return _render(node.otherwise, dot, scope)
    return _render(node.body, value if kind == "with" else dot, scope | {name: value for name in names})


def _output(tokens: list[str], dot: Any, scope: Scope) -> str:
    names, tokens = _declared(tokens)
    value = _evaluate(tokens, dot, scope)
    scope.update({name: value for name in names})
    return "" if names else show(value)


def _render_range(node: Block, dot: Any, scope: Scope) -> str:
    names, tokens = _declared(node.tokens)
    value = _evaluate(tokens, dot, scope)
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = sorted(value.items())
    elif isinstance(value, list) or value is None:
        pairs = list(enumerate(value or []))
    else:
        raise TemplateError("range can't iterate over a plain value")
    if not pairs:
        return _render(node.otherwise, dot, scope)
    parts = []
    for key, item in pairs:
        bound = dict(zip(names, (key, item) if len(names) == 2 else (item,), strict=False))
        parts.append(_render(node.body, item, scope | bound))
    return "".join(parts)


def _declared(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Split `$a, $b := pipeline` into the names and the pipeline."""
    if ":=" not in tokens:
        return [], tokens
    index = tokens.index(":=")
    return [token for token in tokens[:index] if token != ","], tokens[index + 1 :]


def _evaluate(tokens: list[str], dot: Any, scope: Scope) -> Any:
    """Evaluate a pipeline: the value of each command is the last argument of the next one."""
    value: list[Any] = []
    for command in _commands(tokens):
        value = [_command(command, dot, scope, value)]
    if not value:
        raise TemplateError("missing value for command")
    return value[0]


def _commands(tokens: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _command(tokens: list[str], dot: Any, scope: Scope, piped: list[Any]) -> Any:
    operands = _operands(tokens)
    if not operands:
        raise TemplateError("missing value for command")
    first, *rest = operands
    name = first[0]
    if len(first) == 1 and re.fullmatch(r"[A-Za-z_]\w*", name) and name not in ("true", "false", "nil"):
        if name not in _FUNCTIONS:
            raise TemplateError(f"function {name!r} not defined")
        arguments = [_operand(operand, dot, scope) for operand in rest]
        return _call(name, [*arguments, *piped])
    if rest or piped:
        raise TemplateError(f"can't give argument to non-function {name}")
    return _operand(first, dot, scope)


def _operands(tokens: list[str]) -> list[list[str]]:
    """Group the tokens: an operand is one token, or `(` and the tokens up to its `)`."""
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


def _operand(tokens: list[str], dot: Any, scope: Scope) -> Any:
    text = tokens[0]
    if text == "(":
        return _evaluate(tokens[1:], dot, scope)
    if text in ("true", "false", "nil"):
        return {"true": True, "false": False}.get(text)
    if text[0] in '"`':
        return json.loads(text) if text[0] == '"' else text[1:-1]
    if text[0].isdigit() or text[0] == "-":
        return float(text) if "." in text else int(text)
    return _field(text, dot, scope)


def _field(text: str, dot: Any, scope: Scope) -> Any:
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


def _truth(value: Any) -> bool:
    return bool(value)


def show(value: Any) -> str:
    """Return the value as Go prints it with %v."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e21:
        return str(int(value))
    if isinstance(value, list):
        return "[" + " ".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def _printf(form: Any, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if not left:
            return f"%!{match[1]}(MISSING)"
        value = left.pop(0)
        return json.dumps(show(value), ensure_ascii=False) if match[1] == "q" else show(value)

    return re.sub(r"%%|%([a-z])", one, str(form))


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
    "print": lambda *values: "".join(map(show, values)),
    "println": lambda *values: " ".join(map(show, values)) + "\n",
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
