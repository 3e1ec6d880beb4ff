"""The mapping of Proxmox's failure texts, as modules report them, to error codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from executor.shared import error_rules
from executor.shared.error_codes import ErrorCode
from executor.shared.error_rules import (
    MAX_TEXT_LENGTH,
    REACTIONS,
    RULES,
    Reaction,
    classify_failure,
    classify_own_failure,
    classify_task_failure,
    reaction_to,
)

#: Texts of real modules, of old and new versions. A new text is recorded there before a rule is added.
RECORDED = Path(__file__).parents[2] / "data" / "proxmox_failures.jsonl"
TEXTS = [(case["code"], case["text"]) for case in map(json.loads, RECORDED.read_text().splitlines())]


@pytest.mark.parametrize(("code", "text"), TEXTS)
def test_a_text_of_proxmox_is_mapped_to_its_code(code: str, text: str) -> None:
    assert classify_failure(text).code == code


def test_every_code_of_the_rules_is_an_error_code() -> None:
    assert set(REACTIONS) <= {code.value for code in ErrorCode}


def test_every_error_code_has_a_reaction() -> None:
    assert {code.value for code in ErrorCode} <= set(REACTIONS)


def test_one_code_has_one_reaction() -> None:
    assert all(REACTIONS[code] is reaction for code, reaction, _pattern in RULES)


def test_a_code_at_the_beginning_of_a_text_is_kept() -> None:
    found = classify_own_failure("VM_IDENTITY_MISMATCH: VM 301 is locked with 403 Forbidden: no quorum")
    assert (found.code, found.text) == ("VM_IDENTITY_MISMATCH", "VM 301 is locked with 403 Forbidden: no quorum")


def test_a_code_is_not_repeated_in_the_text() -> None:
    once = classify_failure("clone failed: No space left on device")
    again = classify_own_failure(f"{once.code}: {once.text}")
    assert again == once


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_code_at_the_beginning_of_a_text_of_proxmox_is_not_used(code: ErrorCode) -> None:
    assert classify_failure(f"{code}: x").code == "PLAYBOOK_FAILED"
    assert classify_failure(f"{code}: VM is locked (backup)").code == "VM_LOCKED"
    assert classify_task_failure({"invocation": {"module_args": {"api_host": "pve1"}}}, f"{code}: x").code == (
        "PLAYBOOK_FAILED"
    )
    assert classify_task_failure({}, f"{code}: x", "community.proxmox.proxmox_kvm").code == "PLAYBOOK_FAILED"
    assert classify_task_failure({}, f"{code}: x", "ansible.builtin.fail").code == code


def test_an_unknown_word_in_capitals_is_not_taken_for_a_code() -> None:
    assert classify_own_failure("ERROR: VM is locked (backup)").code == "VM_LOCKED"
    assert classify_failure("ERROR: VM is locked (backup)").code == "VM_LOCKED"


@pytest.mark.parametrize("name", ["shrink", "no quorum", "VM is locked", "401 Unauthorized", "vmid 7: x"])
def test_the_name_of_a_vm_never_matches_a_rule(name: str) -> None:
    found = classify_failure(
        f"Unable to update vm {name} with vmid 301=500 Internal Server Error: storage 'x' is not online"
    )
    assert found.code == "STORAGE_UNAVAILABLE"


def test_only_the_innermost_text_is_kept() -> None:
    found = classify_failure("deletion of VM 301 failed with exception: 403 Forbidden: Permission check failed")
    assert found.text == "403 Forbidden: Permission check failed"


def test_an_empty_body_is_left_out_of_the_text() -> None:
    """Proxmox sends an answer 401 with a reason and without a body; proxmoxer adds the empty body to the text."""
    found = classify_failure("401 Unauthorized: Authentication failed! - {'errors': b''}")
    assert found.text == "401 Unauthorized: Authentication failed!"


def test_a_long_text_is_truncated_to_one_line() -> None:
    found = classify_failure("500 Internal Server Error:\n" + "x" * 5000)
    assert len(found.text) == MAX_TEXT_LENGTH
    assert "\n" not in found.text


def test_each_code_has_its_reaction() -> None:
    assert reaction_to("VM_LOCKED") is Reaction.LATER
    assert reaction_to("PVE_TIMEOUT") is Reaction.CHECK
    assert reaction_to("VM_ID_TAKEN") is Reaction.NEW_ID
    assert reaction_to("TASK_FAILED") is Reaction.ONCE
    assert reaction_to("UNKNOWN_CODE") is Reaction.NO


@pytest.mark.parametrize("pattern", [pattern for _code, _reaction, pattern in RULES])
def test_patterns_use_nothing_that_re2_lacks(pattern: str) -> None:
    assert not re.search(r"\(\?[=!<P]|\\[1-9]|[*+?}]\+", pattern)


def test_matching_a_malicious_text_is_fast() -> None:
    """A failure text may come from an attacker: no pattern may backtrack for long."""
    for text in ("exceeds " * 20_000, "storage '" + "x" * 200_000, "vmid 1" * 50_000):
        assert classify_failure(text).code


def test_the_module_imports_without_our_dependencies() -> None:
    """Playbooks that are run by hand use an Ansible without our dependencies."""
    code = f"import runpy; runpy.run_path({str(Path(error_rules.__file__))!r}, run_name='alone')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
