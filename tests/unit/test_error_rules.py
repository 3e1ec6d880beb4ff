"""Proxmox's words, as modules hand them on, and the code that each must become."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from executor.errors import ErrorCode
from executor.proxmox import error_rules
from executor.proxmox.error_rules import MAX_TEXT_LENGTH, REACTIONS, RULES, Reaction, classify, reaction_to

#: As seen with real modules, old and new wording; every new text that we meet is recorded there first.
RECORDED = Path(__file__).parents[1] / "data" / "proxmox_failures.jsonl"
TEXTS = [(case["code"], case["text"]) for case in map(json.loads, RECORDED.read_text().splitlines())]


@pytest.mark.parametrize(("code", "text"), TEXTS)
def test_proxmoxs_words_become_the_code(code: str, text: str) -> None:
    assert classify(text).code == code


def test_every_code_is_one_that_fulcrum_may_see() -> None:
    assert set(REACTIONS) <= {code.value for code in ErrorCode}


def test_every_code_that_fulcrum_may_see_has_a_reaction() -> None:
    assert {code.value for code in ErrorCode} <= set(REACTIONS)


def test_one_code_has_one_reaction() -> None:
    assert all(REACTIONS[code] is reaction for code, reaction, _pattern in RULES)


def test_a_text_that_has_a_code_keeps_it() -> None:
    found = classify("VM_IDENTITY_MISMATCH: VM 301 is locked with 403 Forbidden: no quorum")
    assert (found.code, found.text) == ("VM_IDENTITY_MISMATCH", "VM 301 is locked with 403 Forbidden: no quorum")


def test_a_code_is_not_said_twice() -> None:
    once = classify("clone failed: No space left on device")
    again = classify(f"{once.code}: {once.text}")
    assert again == once


def test_a_word_in_capitals_that_is_no_code_of_ours_is_classified() -> None:
    assert classify("ERROR: VM is locked (backup)").code == "VM_LOCKED"


@pytest.mark.parametrize("name", ["shrink", "no quorum", "VM is locked", "401 Unauthorized", "vmid 7: x"])
def test_a_vms_name_never_decides(name: str) -> None:
    found = classify(f"Unable to update vm {name} with vmid 301=500 Internal Server Error: storage 'x' is not online")
    assert found.code == "STORAGE_UNAVAILABLE"


def test_only_the_innermost_words_are_passed_on() -> None:
    found = classify("deletion of VM 301 failed with exception: 403 Forbidden: Permission check failed")
    assert found.text == "403 Forbidden: Permission check failed"


def test_a_long_text_is_cut_and_fits_one_line() -> None:
    found = classify("500 Internal Server Error:\n" + "x" * 5000)
    assert len(found.text) == MAX_TEXT_LENGTH
    assert "\n" not in found.text


def test_reactions_follow_the_code() -> None:
    assert reaction_to("VM_LOCKED") is Reaction.LATER
    assert reaction_to("PVE_TIMEOUT") is Reaction.LOOK
    assert reaction_to("VM_ID_TAKEN") is Reaction.NEW_ID
    assert reaction_to("TASK_FAILED") is Reaction.ONCE
    assert reaction_to("NEVER_HEARD_OF") is Reaction.NO


@pytest.mark.parametrize("pattern", [pattern for _code, _reaction, pattern in RULES])
def test_patterns_use_nothing_that_re2_lacks(pattern: str) -> None:
    assert not re.search(r"\(\?[=!<P]|\\[1-9]|[*+?}]\+", pattern)


def test_a_hostile_text_does_not_take_long() -> None:
    """A failure text is outside text: no pattern may backtrack without end."""
    for text in ("exceeds " * 20_000, "storage '" + "x" * 200_000, "vmid 1" * 50_000):
        assert classify(text).code


def test_the_file_stands_alone() -> None:
    """Playbooks by hand run with an ansible that has none of our dependencies."""
    code = f"import runpy; runpy.run_path({str(Path(error_rules.__file__))!r}, run_name='alone')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
