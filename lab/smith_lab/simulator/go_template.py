"""As much of Go's text/template as agent types use: fields, variables, with, range, if, index, printf, pipes.

A missing key is an error (`missingkey=error`), as FulcrumCore sets it; `index` on a missing key is nil.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[|(),=]|\$?[A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+|\$[A-Za-z_0-9]*|\.|-?\d+(?:\.\d+)?|\w+)'
)
Scope = dict[str, Any]


class TemplateError(Exception):
    """The template does not parse, or reaches for something that is not there."""


@dataclass
class _Text:
    text: str


@dataclass
class _Output:
    tokens: list[str]


@dataclass
class _Block:
    """with, range or if: what it is over, its body and its else."""

    kind: str
    tokens: list[str]
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


_Node = _Text | _Output | _Block


def render(template: str, data: dict[str, Any]) -> str:
    """Render a template over an agent's configuration. Raises TemplateError."""
    return _render(_parse(template), data, {"$": data})


def _parse(template: str) -> list[_Node]:
    root = _Block("root", [])
    stack: list[tuple[_Block, bool]] = [(root, False)]
    for item in _split(template):
        block, in_else = stack[-1]
        target = block.otherwise if in_else else block.body
        if isinstance(item, _Text):
            target.append(item)
            continue
        word = item[0] if item else ""
        if word in ("with", "range", "if"):
            stack.append((_Block(word, item[1:]), False))
            target.append(stack[-1][0])
        elif word == "else":
            _open_else(stack, item[1:])
        elif word == "end":
            _close(stack)
        elif item:
            target.append(_Output(item))
    if len(stack) != 1:
        raise TemplateError("unexpected EOF")
    return root.body


def _split(template: str) -> list[_Text | list[str]]:
    """Texts and the tokens of actions, white space already trimmed where `{{-` and `-}}` say so."""
    items: list[_Text | list[str]] = []
    start, trim_next = 0, False
    for match in _ACTION.finditer(template):
        text = template[start : match.start()]
        text = text.lstrip() if trim_next else text
        items.append(_Text(text.rstrip() if match[1] else text))
        items.append([] if match[2].strip().startswith("/*") else _tokens(match[2]))
        start, trim_next = match.end(), bool(match[3])
    rest = template[start:]
    if "{{" in rest:
        raise TemplateError("unclosed action")
    items.append(_Text(rest.lstrip() if trim_next else rest))
    return items


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.strip()
    if not text:
        raise TemplateError("missing value for command")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise TemplateError(f"unexpected {text[position:]!r} in command")
        tokens.append(match[1])
        position = match.end()
    return tokens


def _open_else(stack: list[tuple[_Block, bool]], rest: list[str]) -> None:
    block, in_else = stack[-1]
    if block.kind == "root" or in_else:
        raise TemplateError("unexpected {{else}}")
    stack[-1] = (block, True)
    if rest:
        # `else if` is a block of its own that shares the outer end.
        inner = _Block(f"else-{rest[0]}", rest[1:])
        block.otherwise.append(inner)
        stack.append((inner, False))


def _close(stack: list[tuple[_Block, bool]]) -> None:
    while stack[-1][0].kind.startswith("else-"):
        stack.pop()
    if stack[-1][0].kind == "root":
        raise TemplateError("unexpected {{end}}")
    stack.pop()


def _render(nodes: list[_Node], dot: Any, scope: Scope) -> str:
    return "".join(_render_node(node, dot, scope) for node in nodes)


def _render_node(node: _Node, dot: Any, scope: Scope) -> str:
    if isinstance(node, _Text):
        return node.text
    if isinstance(node, _Output):
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


def _render_range(node: _Block, dot: Any, scope: Scope) -> str:
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
    """A pipeline: each command's value is the next one's last argument."""
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
    """Group parentheses: each operand is one token, or the tokens inside a pair."""
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
    """A value as Go prints it with %v."""
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
