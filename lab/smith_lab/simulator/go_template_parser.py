"""Parses a template of Go's text/template into a tree of texts, pipeline actions and blocks.

An action of a template is `{{ … }}`. It contains a keyword such as `if`, a pipeline (an expression), or both.
`go_template` renders the tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Matches an action: `{{ … }}`. Group 2 is its content. Groups 1 and 3 are its trim markers `-`, if there are any.
_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
#: Matches one token in an action: a string, a punctuation mark, a field, a variable, a number or a word.
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
class PipelineAction:
    """An action without a keyword: it prints the value of a pipeline or declares variables."""

    tokens: list[str]


@dataclass
class Block:
    """A `with`, `range` or `if` action, with the tokens of its pipeline, its body and its else part.

    `kind` is the action's keyword. It starts with `else-` if `{{else if}}` or `{{else with}}` opened the block. It is
    `root` for the block that contains the whole template.
    """

    kind: str
    tokens: list[str]
    body: list[Node] = field(default_factory=list)
    else_body: list[Node] = field(default_factory=list)


Node = Text | PipelineAction | Block


def parse(template: str) -> list[Node]:
    """Return the tree of a template. Raises TemplateError."""
    root = Block("root", [])
    # The open blocks, outermost first. The bool after a block is true if the else part of the block has begun.
    stack: list[tuple[Block, bool]] = [(root, False)]
    for text_or_tokens in _split_template(template):
        block, is_in_else = stack[-1]
        target_nodes = block.else_body if is_in_else else block.body
        if isinstance(text_or_tokens, Text):
            target_nodes.append(text_or_tokens)
            continue
        tokens = text_or_tokens
        keyword = tokens[0] if tokens else ""
        if keyword in ("with", "range", "if"):
            new_block = Block(keyword, tokens[1:])
            target_nodes.append(new_block)
            stack.append((new_block, False))
        elif keyword == "else":
            _open_else(stack, tokens[1:])
        elif keyword == "end":
            _close_block(stack)
        elif tokens:
            target_nodes.append(PipelineAction(tokens))
    if len(stack) != 1:
        raise TemplateError("unexpected EOF")
    return root.body


def _split_template(template: str) -> list[Text | list[str]]:
    """Split a template into its texts and the token lists of its actions.

    White space before `{{-` and after `-}}` is removed. A comment has no tokens.
    """
    items: list[Text | list[str]] = []
    start, is_next_text_trimmed = 0, False
    for match in _ACTION.finditer(template):
        left_trim_marker, content, right_trim_marker = match.groups()
        text = template[start : match.start()]
        text = text.lstrip() if is_next_text_trimmed else text
        text = text.rstrip() if left_trim_marker else text
        items.append(Text(text))
        is_comment = content.strip().startswith("/*")
        items.append([] if is_comment else _split_tokens(content))
        start, is_next_text_trimmed = match.end(), bool(right_trim_marker)
    tail = template[start:]
    if "{{" in tail:
        raise TemplateError("unclosed action")
    items.append(Text(tail.lstrip() if is_next_text_trimmed else tail))
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


def _open_else(stack: list[tuple[Block, bool]], tokens: list[str]) -> None:
    """Begin the else part of the innermost block. `tokens` are the tokens after `else`, such as `if` and `.name`."""
    block, is_in_else = stack[-1]
    if block.kind == "root" or is_in_else:
        raise TemplateError("unexpected {{else}}")
    stack[-1] = (block, True)
    if tokens:
        # `{{else if}}` opens a new block in the else part. One `{{end}}` closes both blocks.
        inner_block = Block(f"else-{tokens[0]}", tokens[1:])
        block.else_body.append(inner_block)
        stack.append((inner_block, False))


def _close_block(stack: list[tuple[Block, bool]]) -> None:
    """Close the blocks that one `{{end}}` closes.

    These are the innermost block without `else-` in its kind, and the `else-` blocks inside that block.
    """
    while stack[-1][0].kind.startswith("else-"):
        stack.pop()
    if stack[-1][0].kind == "root":
        raise TemplateError("unexpected {{end}}")
    stack.pop()
