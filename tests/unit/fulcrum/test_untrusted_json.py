"""Lists of FulcrumCore that are parsed item by item, so that one item cannot hide the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.fulcrum import untrusted_json
from executor.fulcrum.untrusted_json import MAX_ITEM_VALUES, MAX_JSON_VALUES, parse_json, parse_json_list

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(['"', "\\", "[{,]}", '\\"']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every list be parsed item by item, even a small one."""
    monkeypatch.setattr(untrusted_json, "MAX_ITEM_BYTES", 0)


def items_or_refused(content: bytes, max_items: int = 100) -> list[Any]:
    return ["refused" if isinstance(item, ValueError) else item for item in parse_json_list(content, max_items)[0]]


@given(values=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
def test_a_list_that_is_parsed_item_by_item_has_the_same_items(
    values: list[Any], indent: int | None, is_ascii: bool
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrusted_json, "_may_have_too_many_values", lambda _content: True)
        for text in (content, b"\xef\xbb\xbf " + content + b"\n"):
            assert parse_json_list(text, 100) == (values, 0)
    assert parse_json_list(content, 2) == (values[:2], max(len(values) - 2, 0))


@pytest.mark.usefixtures("item_by_item")
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"7", b"null", b"[", b"[1", b'["a', b"[[1]", b"[1]]", b"[1] 2", b"[1}}", b'{"a": [1]}']
)
def test_a_text_that_is_not_a_list_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json.loads(content) if content == b"[1}}" else parse_json_list(content, 10)


@pytest.mark.usefixtures("item_by_item")
def test_items_that_are_no_json_are_refused_and_the_others_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_json, "MAX_ITEM_BYTES", 20)
    monkeypatch.setattr(untrusted_json, "_may_have_too_many_values", lambda _content: True)
    content = b'[1, {"a": nope}, \xff, "' + b"x" * 30 + b'", [1}, , 2]'
    assert items_or_refused(content) == [1, "refused", "refused", "refused", "refused", "refused", 2]


def test_an_item_with_too_many_values_does_not_hide_the_others() -> None:
    hostile = b"[" + b"{}," * MAX_JSON_VALUES + b"{}]"
    assert items_or_refused(b'[{"id": 1},' + hostile + b',{"id": 2}]') == [{"id": 1}, "refused", {"id": 2}]
    large = json.dumps(list(range(MAX_ITEM_VALUES - 10))).encode()
    assert items_or_refused(b"[" + b",".join([large] * 40) + b"]", 2) == [list(range(MAX_ITEM_VALUES - 10))] * 2


def test_text_with_many_commas_has_few_values() -> None:
    text = "," * (MAX_JSON_VALUES + 1)
    assert parse_json(json.dumps([text]).encode()) == [text]
    with pytest.raises(ValueError, match="more than"):
        parse_json(b"[" + b"0," * MAX_JSON_VALUES + b"0,0]")
