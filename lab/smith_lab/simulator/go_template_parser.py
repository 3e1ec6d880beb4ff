"""Parses a template of Go's text/template into a tree of texts, outputs and blocks, which go_template renders."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: An action: `{{ … }}`. Group 2 is its content; groups 1 and 3 are the trim markers `-`, if there are any.
_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
#: One token in an action. A token is a string, a punctuation mark, a field, a variable, a number or a word.
_TOKEN = re.compile(
    r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[|(),=]|\$?[A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+|\$[A-Za-z_0-9]*|\.|-?\d+(?:\.\d+)?|\w+)'
)


class TemplateError(Exception):
    """The template has a syntax error, or it cannot be rendered, for example because a value does not exist."""


@dataclass
class Text:
    """The literal text before, between or after actions."""

    text: str


@dataclass
class Output:
    """An action that prints the value of a pipeline or declares variables."""

    tokens: list[str]


@dataclass
class Block:
    """A `with`, `range` or `if` action, with the tokens of its pipeline, its body and its else part.

    The kind is the action's keyword, or `else-` and the keyword if `{{else if}}` or `{{else with}}` opened the block.
    """

    kind: str
    tokens: list[str]
    body: list[Node] = field(default_factory=list)
    else_body: list[Node] = field(default_factory=list)


Node = Text | Output | Block


def parse(template: str) -> list[Node]:
    """Return the tree of a template. Raises TemplateError."""
    root = Block("root", [])
    stack: list[tuple[Block, bool]] = [(root, False)]  # the open blocks, and whether their else part has begun
    for item in _split(template):
        block, in_else = stack[-1]
        target = block.else_body if in_else else block.body
        if isinstance(item, Text):
            target.append(item)
            continue
        keyword = item[0] if item else ""
        if keyword in ("with", "range", "if"):
            stack.append((Block(keyword, item[1:]), False))
            target.append(stack[-1][0])
        elif keyword == "else":
            _open_else(stack, item[1:])
        elif keyword == "end":
            _close_block(stack)
        elif item:
            target.append(Output(item))
    if len(stack) != 1:
        raise TemplateError("unexpected EOF")
    return root.body


def _split(template: str) -> list[Text | list[str]]:
    """Split a template into its texts and the token lists of its actions.

    White space before `{{-` and after `-}}` is removed. A comment has no tokens.
    """
    items: list[Text | list[str]] = []
    start, trim_next = 0, False
    for match in _ACTION.finditer(template):
        text = template[start : match.start()]
        text = text.lstrip() if trim_next else text
        items.append(Text(text.rstrip() if match[1] else text))
        items.append([] if match[2].strip().startswith("/*") else _split_tokens(match[2]))
        start, trim_next = match.end(), bool(match[3])
    tail = template[start:]
    if "{{" in tail:
        raise TemplateError("unclosed action")
    items.append(Text(tail.lstrip() if trim_next else tail))
    return items


def _split_tokens(text: str) -> list[str]:
    """Split the text of an action into tokens."""
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


def _open_else(stack: list[tuple[Block, bool]], condition: list[str]) -> None:
    """Begin the else part of the innermost block. `condition` holds the tokens after `else`, such as `if .name`."""
    block, in_else = stack[-1]
    if block.kind == "root" or in_else:
        raise TemplateError("unexpected {{else}}")
    stack[-1] = (block, True)
    if condition:
        # `{{else if}}` opens a new block in the else part. One `{{end}}` closes both blocks.
        inner = Block(f"else-{condition[0]}", condition[1:])
        block.else_body.append(inner)
        stack.append((inner, False))


def _close_block(stack: list[tuple[Block, bool]]) -> None:
    """Close the innermost block, and the blocks that `{{else if}}` opened in it."""
    while stack[-1][0].kind.startswith("else-"):
        stack.pop()
    if stack[-1][0].kind == "root":
        raise TemplateError("unexpected {{end}}")
    stack.pop()
