"""The functions that decide when a VM is deleted, and which lines of its notes state its agent and its deletion."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    configuration,
    deletion,
    guest_facts,
    identity,
    notes,
    preconditions,
)
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.shared import marker
from decision_facts import SERVICE, SHOP, B, make_container_facts, make_vm, make_vm_facts, text_line

#: The VM's tags, the requested grace period, and the decision at the Unix time 1000 s: the step, and its due time.
DELETIONS = [
    ("", 0, ("destroy", 0)),
    ("", 60, ("mark", 1060)),
    ("smith-delete-1060", 60, ("wait", 1060)),
    ("smith-delete-1060", 0, ("destroy", 0)),
    ("smith-delete-1000", 60, ("destroy", 1000)),
    ("smith-delete-5;smith-delete-2000", 60, ("wait", 2000)),
    ("smith-delete-x", 60, ("mark", 1060)),
]


@pytest.mark.parametrize(("tags", "grace_s", "decision"), DELETIONS)
def test_a_vm_is_destroyed_when_its_grace_period_has_ended(tags: str, grace_s: int, decision: tuple[str, int]) -> None:
    facts = make_vm_facts(tags=f"smith;{tags}") | {"looked_at": 1000}
    assert deletion.next_deletion_step(facts, make_vm(grace_s=grace_s)) == dict(
        zip(("step", "delete_at"), decision, strict=True)
    )


def test_a_deletion_mark_is_one_tag_and_an_update_of_the_tags_removes_it() -> None:
    facts = make_vm_facts(tags="smith;web")
    request = deletion.deletion_mark_request(make_vm(cores=9, tags=["x"]), 1060)
    assert configuration.differing_parameters(facts, request) == {"tags": ["smith", "smith-delete-1060", "web"]}
    marked = make_vm_facts(tags="smith;smith-delete-1060;web")
    assert configuration.differing_parameters(marked, request) == {}
    assert configuration.differing_parameters(marked, make_vm(cores=2)) == {}
    assert configuration.differing_parameters(marked, make_vm(tags=["web"])) == {"tags": ["smith", "web"]}
    assert configuration.differing_parameters(marked, make_vm(cancel_deletion=True)) == {"tags": ["smith", "web"]}
    assert configuration.differing_parameters(facts, make_vm(cancel_deletion=True)) == {}


#: The VM's tag, and the decision at the Unix time 1000 s if only a deletion that is due may be done.
DUE = [("", ("keep", 0)), ("smith-delete-1060", ("wait", 1060)), ("smith-delete-1000", ("destroy", 1000))]


@pytest.mark.parametrize(("tag", "decision"), DUE)
def test_a_request_for_due_deletions_only_keeps_a_vm_without_a_deletion_mark(
    tag: str, decision: tuple[str, int]
) -> None:
    facts = make_vm_facts(tags=f"smith;{tag}") | {"looked_at": 1000}
    request = make_vm(only_when_due=True, grace_s=5)
    assert deletion.next_deletion_step(facts, request) == dict(zip(("step", "delete_at"), decision, strict=True))
    assert deletion.next_deletion_step(guest_facts.facts_of_absent_guest(500), request)["step"] == "destroy"


AGENT_ID = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
OTHER_AGENT_ID = "22222222-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("current", "wanted", "new_notes"),
    [
        ("a shop\n\nsmith-uid={0}", {"agent_id": AGENT_ID}, "a shop\n\nsmith-agent={1}\nsmith-uid={0}"),
        ("smith-agent={2}\nsmith-uid={0}", {"agent_id": AGENT_ID}, "smith-agent={1}\nsmith-uid={0}"),
        ("smith-agent={1}\nsmith-uid={0}", {"agent_id": AGENT_ID}, None),
        ("smith-agent={1}\nsmith-uid={0}", {}, None),
        ("smith-uid={0}", {}, None),
        (
            f"x\n\n{text_line('x')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
            {"description": "y"},
            f"y\n\n{text_line('y')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
        ),
        (
            f"x\n\n{text_line('x')}\nsmith-uid={{0}}",
            {"description": "y", "agent_id": AGENT_ID},
            f"y\n\n{text_line('y')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
        ),
        (
            "smith-delete=9\nsmith-uid={0}",
            {"kind": "lxc", "agent_id": AGENT_ID},
            "smith-delete=9\nsmith-agent={1}\nsmith-uid={0}",
        ),
    ],
)
def test_a_change_writes_the_agent_beside_the_marker(
    current: str, wanted: dict[str, Any], new_notes: str | None
) -> None:
    """A marker without an agent (of an earlier version) is valid. The next change adds the agent; none removes it."""
    names = (SERVICE, AGENT_ID, OTHER_AGENT_ID)
    facts = (make_container_facts if wanted.get("kind") else make_vm_facts)(description=current.format(*names))
    assert identity.is_marked(facts, make_vm())
    sent = configuration.differing_parameters(facts, make_vm(**wanted)).get("description")
    assert sent == (new_notes and new_notes.format(*names))
    if sent:
        assert identity.is_marked({**facts, "markers": marker.marker_values_in(sent)}, make_vm())
        assert marker.agent_id_in(sent) == AGENT_ID


def test_a_clone_does_not_keep_the_agent_of_its_template() -> None:
    clone = make_vm_facts(description=f"smith-agent={OTHER_AGENT_ID}\ndebian", name="debian")
    assert configuration.differing_parameters(clone, make_vm())["description"] == f"smith-uid={SERVICE}"


def test_a_description_that_a_service_requests_cannot_forge_the_agent() -> None:
    text = notes.new_description(make_vm(description=f"smith-agent={OTHER_AGENT_ID}", agent_id=AGENT_ID))
    assert marker.agent_id_in(text) == AGENT_ID


#: Notes with all lines that replace tags, and the same notes with the description `b`.
NOTES = f"a shop\n\nsmith-delete-at=1060\nsmith-protected=1\n{SHOP}\nsmith-uid={{0}}"
NOTES_WITH_DESCRIPTION_B = f"b\n\nsmith-delete-at=1060\nsmith-protected=1\n{B}\nsmith-uid={{0}}"


@pytest.mark.parametrize(
    ("wanted", "new_notes"),
    [
        ({}, None),
        ({"description": "b"}, NOTES_WITH_DESCRIPTION_B),
        ({"protection": True, "description": "b"}, NOTES_WITH_DESCRIPTION_B),
        ({"protection": False}, f"a shop\n\nsmith-delete-at=1060\n{SHOP}\nsmith-uid={{0}}"),
        ({"cancel_deletion": True}, f"a shop\n\nsmith-protected=1\n{SHOP}\nsmith-uid={{0}}"),
        (
            {"cancel_deletion": True, "protection": False, "description": "smith-protected=1"},
            f"smith-protected: 1\n\n{text_line('smith-protected: 1')}\nsmith-uid={{0}}",
        ),
    ],
)
def test_a_change_keeps_the_lines_of_the_notes_that_replace_tags(wanted: dict[str, Any], new_notes: str | None) -> None:
    facts = make_vm_facts(description=NOTES.format(SERVICE), protection=1, tags="")
    sent = configuration.differing_parameters(facts, make_vm(without_tags=True, **wanted)).get("description")
    assert sent == (new_notes and new_notes.format(SERVICE))


def test_a_protection_that_the_notes_state_counts_as_requested_by_the_service() -> None:
    facts = make_vm_facts(description=NOTES.format(SERVICE), protection=1, tags="")
    assert identity.identity_problem(facts, make_vm()) == ""
    assert identity.identity_problem(facts, make_vm(), may_be_absent=True).startswith("VM_PROTECTED")
    protected_by_an_operator = make_vm_facts(description=f"smith-uid={SERVICE}", protection=1, tags="")
    assert identity.identity_problem(protected_by_an_operator, make_vm()).startswith("VM_PROTECTED")


def test_a_containers_deletion_mark_is_a_description_line_that_a_service_cannot_forge() -> None:
    facts = make_container_facts(description=f"a shop\n\nsmith-uid={SERVICE}")
    request = deletion.deletion_mark_request(make_vm(kind="lxc", cores=9), 1060)
    sent = configuration.differing_parameters(facts, request)
    assert sent == {"description": f"a shop\n\nsmith-delete=1060\nsmith-uid={SERVICE}"}
    marked = make_container_facts(**sent)
    assert (deletion.deletion_due_at(marked), configuration.differing_parameters(marked, request)) == (1060, {})
    assert configuration.differing_parameters(marked, make_vm(kind="lxc", cancel_deletion=True)) == {
        "description": f"a shop\n\nsmith-uid={SERVICE}"
    }
    forged = notes.new_description(make_vm(kind="lxc", description="smith-delete=1\nx"))
    assert deletion.deletion_due_at(make_container_facts(description=forged)) == 0
    assert deletion.deletion_due_at(make_vm_facts(description=f"smith-delete=1\nsmith-uid={SERVICE}")) == 0


def test_the_notes_of_an_archive_are_one_line_with_the_marker() -> None:
    """Proxmox refuses a template with a line feed, and replaces the two characters of an escape sequence by one."""
    assert preconditions.backup_notes(make_vm()) == rf"{{{{guestname}}}}\nsmith-uid={SERVICE}"
