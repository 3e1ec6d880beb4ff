"""Parses Go's text/template into a tree of texts, outputs and blocks; go_template renders the tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[|(),=]|\$?[A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+|\$[A-Za-z_0-9]*|\.|-?\d+(?:\.\d+)?|\w+)'
)


class TemplateError(Exception):
    """The template does not parse, or names a value that does not exist."""


@dataclass
class Text:
    text: str


@dataclass
class Output:
    tokens: list[str]


@dataclass
class Block:
    """A with, range or if: its pipeline, its body and its else."""

    kind: str
    tokens: list[str]
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


Node = Text | Output | Block


def parse(template: str) -> list[Node]:
    """Return the tree. Raises TemplateError."""
    root = Block("root", [])
    stack: list[tuple[Block, bool]] = [(root, False)]
    for item in _split(template):
        block, in_else = stack[-1]
        target = block.otherwise if in_else else block.body
        if isinstance(item, Text):
            target.append(item)
            continue
        word = item[0] if item else ""
        if word in ("with", "range", "if"):
            stack.append((Block(word, item[1:]), False))
            target.append(stack[-1][0])
        elif word == "else":
            _open_else(stack, item[1:])
        elif word == "end":
            _close(stack)
        elif item:
            target.append(Output(item))
    if len(stack) != 1:
        raise TemplateError("unexpected EOF")
    return root.body


def _split(template: str) -> list[Text | list[str]]:
    """Return texts and the tokens of each action, with white space trimmed at `{{-` and `-}}`."""
    items: list[Text | list[str]] = []
    start, trim_next = 0, False
    for match in _ACTION.finditer(template):
        text = template[start : match.start()]
        text = text.lstrip() if trim_next else text
        items.append(Text(text.rstrip() if match[1] else text))
        items.append([] if match[2].strip().startswith("/*") else _tokens(match[2]))
        start, trim_next = match.end(), bool(match[3])
    rest = template[start:]
    if "{{" in rest:
        raise TemplateError("unclosed action")
    items.append(Text(rest.lstrip() if trim_next else rest))
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


def _open_else(stack: list[tuple[Block, bool]], rest: list[str]) -> None:
    block, in_else = stack[-1]
    if block.kind == "root" or in_else:
        raise TemplateError("unexpected {{else}}")
    stack[-1] = (block, True)
    if rest:
        # `else if` is a block inside the else; one `end` closes both.
        inner = Block(f"else-{rest[0]}", rest[1:])
        block.otherwise.append(inner)
        stack.append((inner, False))


def _close(stack: list[tuple[Block, bool]]) -> None:
    while stack[-1][0].kind.startswith("else-"):
        stack.pop()
    if stack[-1][0].kind == "root":
        raise TemplateError("unexpected {{end}}")
    stack.pop()
