"""Completion in a shell: job numbers, run idents, VMIDs, names of VMs, services and actions; and the option `-h`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli_world import Cli

from executor.cli.commands import COMMANDS
from executor.database import mappings

SERVICE_ID = "0a1b2c3d-0000-4000-8000-000000000001"
#: Returns the words that the shell would propose for the last word of a command line.
Complete = Callable[..., list[str]]


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def complete(smith: Cli) -> Complete:
    """Return a function that completes the last word of a line, as bash does."""

    def complete_last_word(line: str, **env: str) -> list[str]:
        words = str(len(line.split(" ")) - 1)
        done = smith(COMP_WORDS=line, COMP_CWORD=words, _SMITH_COMPLETE="complete_bash", **env)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return complete_last_word


def test_jobs_runs_vms_services_and_actions_are_completed(smith: Cli, complete: Complete) -> None:
    first = smith.submit(fulcrum_id="4f1c0000-0000-4000-8000-000000000001", service_id=SERVICE_ID)
    smith.run_of(first, "create-0c5d0f3a9b21")
    with smith.database_session() as session:
        is_inserted = mappings.insert_active_mapping(
            session, service_id=SERVICE_ID, cluster="lab", vmid=100123, node="pve1", name="web-1"
        )
        assert is_inserted
    assert complete("smith jobs show ") == [str(first)]
    assert complete("smith jobs cancel 4f") == ["4f1c0000-0000-4000-8000-000000000001"]
    assert complete("smith runs list --job ") == [str(first)]
    assert complete("smith runs show create-") == ["create-0c5d0f3a9b21"]
    assert complete("smith mappings show ") == ["100123", "web-1"]
    assert complete("smith mappings recall 0a") == [SERVICE_ID]
    assert complete("smith play stop --service w") == ["web-1"]
    assert complete("smith play stop --vmid 1") == ["100123"]
    assert complete("smith jobs list --service ") == [SERVICE_ID]
    assert complete("smith play sta") == ["start"]
    assert complete("smith actions validate sto") == ["stop"]
    assert complete("smith jobs list --status fa") == ["failed"]


def test_a_value_that_a_shell_could_execute_is_not_completed(smith: Cli, complete: Complete) -> None:
    names = ("web-1", "$(touch x)", "a b", "x\x1b[31m", "y;ls")
    with smith.database_session() as session:
        for number, name in enumerate(names):
            service_id = f"0a1b2c3d-0000-4000-8000-00000000000{number}"
            mappings.insert_active_mapping(
                session, service_id=service_id, cluster="lab", vmid=100123 + number, node="pve1", name=name
            )
    proposals = complete("smith mappings show ")
    assert [value for value in proposals if not value.isdecimal()] == ["web-1"]


def test_without_a_database_or_with_wrong_settings_nothing_is_completed_and_nothing_fails(complete: Complete) -> None:
    assert complete("smith jobs show ") == []
    assert complete("smith mappings show ", SMITH_CONCURRENCY="-1") == []
    assert complete("smith play ", SMITH_CONCURRENCY="-1") == []


@pytest.mark.parametrize("command", ["", "jobs", *(f"{row.group} {row.name}" for row in COMMANDS if not row.is_hidden)])
def test_each_command_has_the_short_option_for_its_help(command: str, smith: Cli) -> None:
    assert smith.ok(*command.split(), "-h").startswith("Usage: smith")
