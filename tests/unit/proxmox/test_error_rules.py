"""The mapping of Proxmox's failure texts, as modules report them, to error codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import failures

from executor.shared import error_rules
from executor.shared.error_codes import ErrorCode
from executor.shared.error_patterns import RULES
from executor.shared.error_rules import (
    MAX_TEXT_LENGTH,
    classify_ansible_task_failure,
    classify_failure,
    classify_failure_keeping_code,
)
from executor.shared.reactions import TABLE, Outcome, Reaction, outcome_of, reaction_to

#: Texts of Proxmox and of modules, of old and new versions. A new text is added to this file before a rule is added.
RECORDED = Path(__file__).parents[2] / "data" / "proxmox_failures.jsonl"
ROWS = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
REPOSITORIES = sorted({row["sources"][0].partition(" ")[0] for row in ROWS})


def code_of(row: dict[str, Any]) -> str:
    """Return the code that an Ansible action plugin reports for the text of a row."""
    if row["where"] == "task":
        return failures.proxmox_task_failure(row["text"]).partition(":")[0]
    return classify_failure(row["text"]).code


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_text_of_proxmox_is_mapped_to_its_code_and_reaction(repository: str) -> None:
    rows = [row for row in ROWS if row["sources"][0].startswith(f"{repository} ")]
    wrong = [(row, code_of(row)) for row in rows if code_of(row) != row["code"]]
    assert (wrong, len(rows) > 0) == ([], True)
    assert [row for row in rows if reaction_to(row["code"]) != row["reaction"]] == []


def test_the_recorded_texts_name_their_versions_and_sources() -> None:
    assert len(ROWS) >= 250
    for row in ROWS:
        assert set(row) == {"code", "reaction", "where", "text", "versions", "sources"}
        assert row["where"] in ("answer", "task", "module")
        assert row["versions"]
        assert set(row["versions"]) <= {8, 9}
        assert row["sources"]


def test_each_rule_has_a_recorded_text() -> None:
    texts = [error_rules.without_words_before_proxmox_text(row["text"]) for row in ROWS]
    unused = [code for code, pattern in RULES if not any(re.search(pattern, text) for text in texts)]
    assert unused == []


def test_the_table_of_reactions_has_a_row_for_each_error_code_and_no_other() -> None:
    assert set(TABLE) == {code.value for code in ErrorCode}


def test_every_code_of_the_rules_is_an_error_code() -> None:
    assert {code for code, _pattern in RULES} <= {code.value for code in ErrorCode}


def test_a_code_with_an_unknown_outcome_is_not_final() -> None:
    final = [code for code, row in TABLE.items() if row.outcome is Outcome.UNKNOWN and row.reaction is Reaction.NEVER]
    assert final == []


def test_a_code_at_the_beginning_of_the_text_of_an_action_plugin_is_its_code() -> None:
    found = classify_failure_keeping_code("VM_IDENTITY_MISMATCH: VM 301 is locked with 403 Forbidden: no quorum")
    assert (found.code, found.text) == ("VM_IDENTITY_MISMATCH", "VM 301 is locked with 403 Forbidden: no quorum")


def test_classifying_a_classified_failure_again_changes_nothing() -> None:
    once = classify_failure("clone failed: No space left on device")
    again = classify_failure_keeping_code(f"{once.code}: {once.text}")
    assert again == once


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_code_at_the_beginning_of_a_text_of_proxmox_is_not_used(code: ErrorCode) -> None:
    assert classify_failure(f"{code}: x").code == "PLAYBOOK_FAILED"
    assert classify_failure(f"{code}: VM is locked (backup)").code == "VM_LOCKED"
    assert classify_ansible_task_failure({"invocation": {"module_args": {"api_host": "pve1"}}}, f"{code}: x").code == (
        "PLAYBOOK_FAILED"
    )
    assert classify_ansible_task_failure({}, f"{code}: x", "community.proxmox.proxmox_kvm").code == "PLAYBOOK_FAILED"
    assert classify_ansible_task_failure({}, f"{code}: x", "ansible.builtin.fail").code == code


def test_a_word_in_capitals_that_is_no_error_code_is_not_used_as_code() -> None:
    assert classify_failure_keeping_code("ERROR: VM is locked (backup)").code == "VM_LOCKED"
    assert classify_failure("ERROR: VM is locked (backup)").code == "VM_LOCKED"


@pytest.mark.parametrize("name", ["shrink", "no quorum", "VM is locked", "401 Unauthorized", "vmid 7: x"])
def test_the_name_of_a_vm_never_matches_a_rule(name: str) -> None:
    found = classify_failure(
        f"Unable to update vm {name} with vmid 301=500 Internal Server Error: storage 'x' is not online"
    )
    assert found.code == "STORAGE_UNAVAILABLE"


def test_only_the_innermost_text_of_a_nested_failure_is_stored() -> None:
    found = classify_failure("deletion of VM 301 failed with exception: 403 Forbidden: Permission check failed")
    assert found.text == "403 Forbidden: Permission check failed"


def test_an_empty_body_is_left_out_of_the_text() -> None:
    """Proxmox sends a response 401 with a reason and without a body; proxmoxer adds the empty body to the text."""
    found = classify_failure("401 Unauthorized: Authentication failed! - {'errors': b''}")
    assert found.text == "401 Unauthorized: Authentication failed!"


def test_a_long_text_is_truncated_and_put_on_one_line() -> None:
    found = classify_failure("500 Internal Server Error:\n" + "x" * 5000)
    assert len(found.text) == MAX_TEXT_LENGTH
    assert "\n" not in found.text


def test_examples_of_codes_have_their_reaction_and_outcome() -> None:
    assert reaction_to("VM_LOCKED") is Reaction.LATER
    assert reaction_to("PVE_TIMEOUT") is Reaction.CHECK_FIRST
    assert reaction_to("VM_ID_TAKEN") is Reaction.NEW_VMID
    assert reaction_to("TASK_FAILED") is Reaction.ONCE
    assert reaction_to("UNKNOWN_CODE") is Reaction.NEVER
    assert outcome_of("VM_LOCKED") is Outcome.KNOWN
    assert outcome_of("UNKNOWN_CODE") is Outcome.UNKNOWN


@pytest.mark.parametrize("pattern", [pattern for _code, pattern in RULES])
def test_patterns_use_nothing_that_re2_lacks(pattern: str) -> None:
    assert not re.search(r"\(\?[=!<P]|\\[1-9]|[*+?}]\+", pattern)


def test_matching_a_malicious_text_is_fast() -> None:
    """A failure text may come from an attacker: no pattern may backtrack for long."""
    for text in ("exceeds " * 20_000, "storage '" + "x" * 200_000, "vmid 1" * 50_000):
        assert classify_failure(text).code


def test_the_module_error_rules_imports_without_our_dependencies() -> None:
    """Playbooks that are run by hand use an Ansible without our dependencies."""
    folder = str(Path(error_rules.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r}); import shared.error_rules"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
