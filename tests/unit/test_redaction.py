"""Secrets are masked in every form, and wherever a stream is split."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import markupsafe
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from executor.redaction import MASK, TOO_DEEP, Redactor

# Secrets have no character of the mask (a secret "****" would be in every masked text), and at least four characters
# without the white space at their ends.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="*\ue000")
SECRETS = st.text(CHARACTERS, min_size=4, max_size=40).filter(lambda secret: len(secret.strip()) >= 4)
TEXTS = st.text(CHARACTERS, max_size=60)
#: Few letters, so that secrets often overlap each other and themselves.
TIGHT_SECRETS = st.lists(st.text("ab", min_size=4, max_size=6), min_size=1, max_size=4)
TIGHT_TEXTS = st.text("ab", min_size=8, max_size=60)


def make_redactor(*secrets: str) -> Redactor:
    redactor = Redactor()
    redactor.add(*secrets)
    return redactor


def json_text(secret: str, *, ensure_ascii: bool = True) -> str:
    return json.dumps(secret, ensure_ascii=ensure_ascii)[1:-1]


def yaml_text(secret: str, *, allow_unicode: bool) -> str:
    return yaml.safe_dump(secret, default_style='"', allow_unicode=allow_unicode, width=math.inf).rstrip("\n")[1:-1]


def between_single_quotes(secret: str, show: Callable[[str], str]) -> str:
    """Return the form in a text with a double quote: Python then uses single quotes."""
    return show(f'"{secret}')[2:-1]


#: The forms, without the quotes around them.
ENCODERS: dict[str, Callable[[str], str]] = {
    "as it is": lambda secret: secret,
    "JSON": json_text,
    "JSON with unicode": lambda secret: json_text(secret, ensure_ascii=False),
    "JSON inside JSON": lambda secret: json_text(json_text(secret)),
    "JSON with unicode inside JSON": lambda secret: json_text(json_text(secret, ensure_ascii=False)),
    "JSON inside JSON inside JSON": lambda secret: json_text(json_text(json_text(secret))),
    "JSON by FulcrumCore": lambda secret: json_text(secret, ensure_ascii=False).translate(
        {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
    ),
    "repr of JSON": lambda secret: repr(json.dumps({"password": secret}))[15:-3],
    "JSON with escaped slashes": lambda secret: json_text(secret).replace("/", "\\/"),
    "repr": lambda secret: repr(secret)[1:-1],
    "repr, in a longer text": lambda secret: between_single_quotes(secret, repr),
    "ascii": lambda secret: ascii(secret)[1:-1],
    "ascii, in a longer text": lambda secret: between_single_quotes(secret, ascii),
    "backslashes for what is not ASCII": lambda secret: secret.encode("ascii", "backslashreplace").decode(),
    "repr inside JSON": lambda secret: json_text(between_single_quotes(secret, repr)),
    "repr of bytes": lambda secret: repr(secret.encode())[2:-1],
    "shell": lambda secret: quoted[1:-1] if (quoted := shlex.quote(secret)) != secret else secret,
    "shell, backslash before the quote": lambda secret: secret.replace("'", "'\\''"),
    "Perl": lambda secret: secret.replace("\\", "\\\\").replace("'", "\\'"),
    "YAML, single quotes": lambda secret: secret.replace("'", "''"),
    "YAML, double quotes": lambda secret: yaml_text(secret, allow_unicode=True),
    "YAML, double quotes, ASCII": lambda secret: yaml_text(secret, allow_unicode=False),
    "YAML inside JSON": lambda secret: json_text(yaml_text(secret, allow_unicode=True)),
    "HTML": html.escape,
    "HTML, text": lambda secret: html.escape(secret, quote=False),
    "HTML by Jinja": lambda secret: str(markupsafe.escape(secret)),
    "JSON inside HTML": lambda secret: str(markupsafe.escape(json_text(secret))),
    "URL": lambda secret: quote(secret, safe=""),
    "URL path": quote,
    "URL form": quote_plus,
    "URL, lower-case hex": lambda secret: re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
    "URL inside a URL": lambda secret: quote(quote(secret, safe=""), safe=""),
    "JSON inside a URL": lambda secret: quote(json_text(secret), safe=""),
    "hex": lambda secret: secret.encode().hex(),
    "hex, capitals": lambda secret: secret.encode().hex().upper(),
    "base64 of JSON": lambda secret: base64.b64encode(json_text(secret).encode()).decode(),
    "base64 inside a URL": lambda secret: quote(base64.b64encode(secret.encode()).decode(), safe=""),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64, URL-safe": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "base64, no padding": lambda secret: base64.b64encode(secret.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
@settings(max_examples=40)
@given(secret=SECRETS, before=TEXTS, after=TEXTS)
def test_a_secret_is_masked_in_every_form(encode: Callable[[str], str], secret: str, before: str, after: str) -> None:
    shown = make_redactor(secret).redact(before + encode(secret) + after)
    assert MASK in shown
    assert encode(secret) not in shown
    redacted_form = make_redactor(secret).redact(f"\ue000{encode(secret)}\ue000")
    assert redacted_form == f"\ue000{MASK}\ue000", "not the whole form was masked"


#: Texts with unpaired surrogates: Python reads bytes that are not UTF-8 as such characters, for example from variables.
SURROGATES = st.characters(categories=["Cs"])
SECRETS_WITH_SURROGATES = st.text(SURROGATES | CHARACTERS, min_size=4, max_size=20).filter(
    lambda secret: len(secret.strip()) >= 4
)


@given(secret=SECRETS_WITH_SURROGATES, before=TEXTS, after=TEXTS)
@example(secret="pass\udcffword", before="", after="")
@example(secret="line of \ud800\na second line", before="", after="")
def test_a_secret_with_unpaired_surrogates_is_masked(secret: str, before: str, after: str) -> None:
    redactor = make_redactor(secret)
    for written in (secret, json_text(secret), json_text(secret, ensure_ascii=False), repr(secret)[1:-1]):
        shown = redactor.redact(before + written + after)
        assert MASK in shown
        assert written not in shown


@given(secret=SECRETS, user=st.text(st.characters(codec="ascii"), max_size=5))
def test_a_secret_inside_a_basic_authorization_header_is_masked(secret: str, user: str) -> None:
    header = base64.b64encode(f"{user}:{secret}!".encode()).decode()
    certain_part = base64.b64encode(secret.encode())[: len(secret.encode()) * 8 // 6].decode()
    shown = make_redactor(secret).redact(f"Authorization: Basic {header}")
    if len(certain_part) > 5:  # a secret of four bytes leaves less than four certain characters at some alignments
        assert MASK in shown
        assert certain_part not in shown


@given(secrets=st.lists(SECRETS, min_size=1, max_size=4), text=TEXTS, data=st.data())
def test_no_secret_is_left_in_a_redacted_text(secrets: list[str], text: str, data: st.DataObject) -> None:
    for secret in secrets:
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + secret + text[cut:]
    shown = make_redactor(*secrets).redact(text)
    assert [secret for secret in secrets if secret in shown] == []


@given(secrets=TIGHT_SECRETS, text=TIGHT_TEXTS)
@example(secrets=["abab"], text="-ababab-")
def test_every_character_of_overlapping_secrets_is_masked(secrets: list[str], text: str) -> None:
    covered = {
        index
        for secret in secrets
        for start in range(len(text))
        if text.startswith(secret, start)
        for index in range(start, start + len(secret))
    }
    shown = make_redactor(*secrets).redact(text)
    assert shown.replace(MASK, "") == "".join(char for index, char in enumerate(text) if index not in covered)


#: Longer than a piece, so that the pieces of such a secret must cover it.
LONG_SECRETS = st.builds(lambda unit, length: (unit * 200)[:length], st.text("ab\n", min_size=1), st.integers(65, 200))


@given(
    secret=LONG_SECRETS.filter(lambda secret: len(secret.strip()) >= 4),
    before=st.text("ab\n"),
    after=st.text("ab\n"),
)
def test_a_long_secret_is_masked_completely(secret: str, before: str, after: str) -> None:
    redactor, text = make_redactor(secret), before + secret + after
    shown = redactor.redact(text)
    assert MASK in shown
    assert len(shown.replace(MASK, "")) <= len(before) + len(after)
    assert make_redactor(secret).redact(f"<{secret}>") == f"<{MASK}>"


@given(text=TEXTS, secret=SECRETS)
def test_a_text_without_the_secret_is_not_changed(text: str, secret: str) -> None:
    """Plain letters are equal in every form, so no other part of the text can match."""
    assert make_redactor("Zq7xKw9pLm2v").redact(text) == text
    assert Redactor().redact(text + secret) == text + secret


def test_of_two_secrets_at_one_position_the_longer_is_masked() -> None:
    assert make_redactor("abcd", "abcdefgh").redact("<abcdefgh>") == f"<{MASK}>"


def test_each_long_line_of_a_secret_with_several_lines_is_masked() -> None:
    key = "-----BEGIN KEY-----\r\n  c2VjcmV0LWxpbmUtb25l\nshort\nc2VjcmV0LWxpbmUtdHdv\n-----END KEY-----\n"
    redactor = make_redactor(key)
    assert redactor.redact("ok: c2VjcmV0LWxpbmUtdHdv, short") == f"ok: {MASK}, short"
    assert redactor.redact(f"[{key}]") == f"[{MASK}]"
    assert redactor.redact(f"[{key.strip()}]") == f"[{MASK}]"


def test_base64_folded_into_lines_is_masked_line_by_line() -> None:
    secret = "correct horse battery staple " * 8
    shown = make_redactor(secret).redact(base64.encodebytes(secret.encode()).decode())
    assert shown.replace(MASK, "").split() == []


def test_secrets_under_four_characters_are_not_masked() -> None:
    redactor = make_redactor("", "yes", "  1  ")
    assert redactor.redact("yes, 1  of 1  ") == "yes, 1  of 1  "


def test_a_secret_added_twice_is_masked_until_it_is_discarded_twice() -> None:
    redactor = make_redactor("hunter22", "hunter22")
    redactor.discard("hunter22", "never-added")
    assert redactor.redact("hunter22") == MASK
    redactor.discard("hunter22")
    redactor.discard("hunter22")
    assert redactor.redact("hunter22") == "hunter22"
    redactor.add("hunter22")
    assert redactor.redact("hunter22") == MASK


def test_values_are_redacted_in_keys_and_at_every_depth() -> None:
    redactor = make_redactor("hunter22", "123456")
    given_value = {
        "hunter22": ["x hunter22", ("hunter22", 7, None, True)],
        "n": [123456, 1234567, b"hunter22"],
        "path": Path("/home/hunter22"),
        "kept": Path("/home"),
        "error": ValueError("hunter22"),
        "set": {"hunter22"},
    }
    assert redactor.redact_value(given_value) == {
        MASK: [f"x {MASK}", (MASK, 7, None, True)],
        "n": [MASK, 1234567, MASK.encode()],
        "path": f"/home/{MASK}",
        "kept": Path("/home"),
        "error": MASK,
        "set": {MASK},
    }


def test_redact_value_does_not_change_its_argument() -> None:
    value = {"a": ["hunter22"]}
    make_redactor("hunter22").redact_value(value)
    assert value == {"a": ["hunter22"]}


def test_the_deepest_part_of_a_value_that_is_nested_too_deep_is_replaced() -> None:
    list_that_contains_itself: list[object] = ["hunter22"]
    list_that_contains_itself.append(list_that_contains_itself)
    shown = str(make_redactor("hunter22").redact_value(list_that_contains_itself))
    assert TOO_DEEP in shown
    assert "hunter22" not in shown


def test_the_repr_of_a_redactor_does_not_contain_its_secrets() -> None:
    assert repr(make_redactor("hunter22")) == "<Redactor of 1 secrets>"


def test_a_secret_stays_masked_while_others_are_added_and_discarded() -> None:
    """Other threads add and discard secrets while this thread redacts."""
    redactor = make_redactor("hunter22")
    stop = threading.Event()

    def add_and_discard_secrets(number: int) -> None:
        while not stop.is_set():
            redactor.add(f"password-{number}", "shared-secret")
            redactor.discard(f"password-{number}", "shared-secret")

    threads = [threading.Thread(target=add_and_discard_secrets, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert {redactor.redact("say hunter22") for _ in range(500)} == {f"say {MASK}"}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert redactor.redact("shared-secret password-1") == "shared-secret password-1"


@pytest.mark.parametrize("padding", [0, 1, 5000])
def test_overlapping_and_repeated_secrets_are_masked_in_short_and_long_texts(padding: int) -> None:
    """Long texts are searched with another algorithm than short texts."""
    redactor = Redactor()
    redactor.add("aaaab", "abaaaa", "zzzz", "zzzzzzy")
    text = "-" * padding + "aaaabaaaa.zzzzzzzy.zzz.aaaab" + "-" * padding
    expected = "-" * padding + f"{MASK}.{MASK}.zzz.{MASK}" + "-" * padding
    assert redactor.redact(text) == expected


def characters_compared(redactor: Redactor, text: str) -> int:
    """Return how many characters a redaction of the text may compare: those of each occurrence and of its edges."""
    finder = redactor._finder
    return sum(
        length
        for start in finder._candidate_starts(text)
        for length in finder._lengths_by_prefix.get(text[start : start + 4], ())
    )


@pytest.mark.parametrize("line", ["a" * 8, "ab" * 16, "-" * 63, "key: value"])
def test_the_work_grows_linearly_with_a_text_and_a_secret_of_equal_lines(line: str) -> None:
    """Every line of the text may be the beginning of the secret."""
    secret = f"{line}\n" * 400
    redactor, text = make_redactor(secret), (f"{line}\n" * 399 + "x") * 2
    small, large = (characters_compared(redactor, text * factor) for factor in (1, 8))
    assert large <= 8.5 * small
    assert small <= 64 * 64 * len(text)
    assert redactor.redact(f"<{secret}>") == f"<{MASK}>"
