"""`smith actions`: the list of the actions, the check of an action (`validate`), and the files of a new one (`new`).

Actions are playbooks: ours, and those that a provider (the organisation that runs the agent) adds in the folder
SMITH_ACTIONS_PATH.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.cli_world import Cli

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples" / "actions"
HEAD = "---\n- name: Play\n  hosts: proxmox\n  gather_facts: false\n"
RESULT = "    - ansible.builtin.set_stats:\n        data:\n          vm_result: {vmid: 100}\n"
LOGIN = '  module_defaults:\n    group/community.proxmox.proxmox: "{{ smith_proxmox }}"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "actions"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def smith(tmp_path: Path, folder: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env["SMITH_ACTIONS_PATH"] = str(folder)
    return cli


def write_file(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o644)


def validate_and_return_output(smith: Cli, name: str) -> str:
    """Return the output of `validate` for an action in which it must find problems."""
    done = smith("actions", "validate", name)
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_our_actions_and_the_providers_are_listed_and_refused_ones_show_their_problem(smith: Cli, folder: Path) -> None:
    write_file(folder, "stop.yml", HEAD)
    write_file(folder, "attach-iso.yml", HEAD)
    write_file(folder, "attach-iso.schema.json", '{"x-smith-effect": "destroys"}')
    (folder / "stop.yml").chmod(0o666)
    rows = {row["name"]: row for row in smith.json("actions", "list")}
    assert rows["create"]["is_ours"]
    assert (rows["attach-iso"]["is_ours"], rows["attach-iso"]["has_schema"]) == (False, True)
    assert [rows[name]["effect"] for name in ("attach-iso", "create", "delete")] == ["destroys", "changes", "destroys"]
    assert (rows["stop"]["is_ours"], rows["stop"]["replaces_ours"]) == (False, True)
    assert "is writable by all users" in rows["stop"]["problem"]
    table = smith.ok("actions", "list")
    assert "refused: stop.yml is writable by all users" in table
    assert "create" in smith.ok("actions", "list", SMITH_ACTIONS_PATH="")


def test_the_example_of_the_documentation_is_valid(smith: Cli, folder: Path) -> None:
    for file in EXAMPLES.iterdir():
        shutil.copyfile(file, folder / file.name)
        (folder / file.name).chmod(0o644)
    reports = smith.json("actions", "validate")
    assert [(report["name"], report["problems"], report["hints"]) for report in reports] == [("attach-iso", [], [])]


def test_each_of_our_actions_is_valid(smith: Cli) -> None:
    names = [row["name"] for row in smith.json("actions", "list")]
    assert "create" in names
    for name in names:
        (report,) = smith.json("actions", "validate", name)
        assert (report["problems"], report["hints"]) == ([], []), name


def test_a_new_action_is_written_and_valid(smith: Cli, folder: Path) -> None:
    assert "smith actions validate say-hello" in smith.ok("actions", "new", "say-hello")
    (report,) = smith.json("actions", "validate", "say-hello")
    assert (report["problems"], report["hints"]) == ([], [])
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    role = "roles/say_hello"
    assert files == {
        *("say-hello.yml", "say-hello.schema.json", f"{role}/meta/argument_specs.yml", f"{role}/tasks/main.yml"),
        "tests/test_say_hello.py",
    }
    again = smith("actions", "new", "say-hello")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


@pytest.mark.parametrize("name", ["Say-Hello", "../hello", "9", "a b"])
def test_an_invalid_name_writes_no_action(smith: Cli, folder: Path, name: str) -> None:
    assert smith("actions", "new", name).returncode == 2
    assert list(folder.iterdir()) == []


def test_a_new_action_needs_the_folder_setting(smith: Cli) -> None:
    done = smith("actions", "new", "hello", SMITH_ACTIONS_PATH="")
    assert done.returncode == 1
    assert "SMITH_ACTIONS_PATH is not set" in done.stderr


@pytest.mark.parametrize(
    ("playbook", "problem"),
    [
        ("---\n- hosts: [proxmox\n", "is not valid YAML"),
        ("---\nhosts: proxmox\n", "is not a list of plays"),
        (HEAD + "  tasks: []\n", "publishes no result"),
        ("---\n- hosts: localhost\n  gather_facts: false\n  tasks:\n" + RESULT, "hosts is 'localhost'"),
        ("---\n- hosts: proxmox\n  tasks:\n" + RESULT, "gather_facts must be false"),
        (
            HEAD + "  tasks:\n    - community.proxmox.proxmox_vm_info:\n        vmid: 1\n" + RESULT,
            "module_defaults lacks group/community.proxmox.proxmox",
        ),
        (HEAD + "  vars_prompt:\n    - name: x\n  tasks:\n" + RESULT, "vars_prompt needs an operator's answer"),
        (HEAD + "  tasks:\n    - no_such_module_at_all:\n" + RESULT, "--syntax-check"),
    ],
    ids=["yaml", "no-plays", "no-result", "localhost", "facts", "login", "prompt", "syntax"],
)
def test_validate_finds_a_problem_without_running_the_playbook(
    smith: Cli, folder: Path, playbook: str, problem: str
) -> None:
    write_file(folder, "odd.yml", playbook)
    assert problem in validate_and_return_output(smith, "odd")


def test_an_action_without_identity_check_and_rescue_gets_hints(smith: Cli, folder: Path) -> None:
    write_file(folder, "unsafe.yml", HEAD + LOGIN + "  tasks:\n" + RESULT)
    (report,) = smith.json("actions", "validate", "unsafe")
    assert report["problems"] == []
    assert "does not use the action plugin agent_smith.proxmox.vm_identity" in " ".join(report["hints"])
    assert "no rescue with the filter agent_smith.proxmox.failure" in " ".join(report["hints"])


@pytest.mark.parametrize(
    ("text", "has_hint"),
    [("{{ ansible_failed_result.msg }}", True), ("{{ ansible_failed_result | agent_smith.proxmox.failure }}", False)],
)
def test_a_rescue_without_the_filter_gets_a_hint(smith: Cli, folder: Path, text: str, has_hint: bool) -> None:
    block = f'    - block:\n        - meta: noop\n      rescue:\n        - fail:\n            msg: "{text}"\n'
    write_file(folder, "rescued.yml", HEAD + LOGIN + "  tasks:\n" + block + RESULT)
    (report,) = smith.json("actions", "validate", "rescued")
    assert report["problems"] == []
    assert any("no rescue with the filter" in hint for hint in report["hints"]) is has_hint


def test_a_result_may_be_published_by_an_imported_file_or_a_role(smith: Cli, folder: Path) -> None:
    (folder / "roles" / "mine" / "tasks").mkdir(parents=True)
    (folder / "tasks").mkdir()
    for path in (folder / "roles", folder / "roles" / "mine", folder / "roles" / "mine" / "tasks", folder / "tasks"):
        path.chmod(0o755)
    stats = "---\n- ansible.builtin.set_stats:\n    data:\n      vm_result: {vmid: 100}\n"
    write_file(folder / "roles" / "mine" / "tasks", "main.yml", stats)
    write_file(folder / "tasks", "end.yml", stats)
    write_file(folder, "by-role.yml", HEAD + "  tasks:\n    - ansible.builtin.import_role:\n        name: mine\n")
    write_file(folder, "by-file.yml", HEAD + "  tasks:\n    - ansible.builtin.import_tasks: tasks/end.yml\n")
    reports = smith.json("actions", "validate")
    assert [(report["name"], report["problems"]) for report in reports] == [("by-file", []), ("by-role", [])]
    assert "the role mine has no meta/argument_specs.yml" in " ".join(reports[1]["hints"])
    (folder / "roles" / "mine" / "meta").mkdir(mode=0o755)
    for specs, problem in (
        ("a: [", "is not valid YAML"),
        ("argument_specs: {main: {}}", "must have argument_specs.main.options"),
        ("argument_specs: {main: {options: {size: {type: int}}}}", "must have argument_specs.main.options.vm"),
    ):
        write_file(folder / "roles" / "mine" / "meta", "argument_specs.yml", specs)
        assert problem in validate_and_return_output(smith, "by-role")


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("{", "is not JSON"),
        ('{"type": 7}', "is not a valid JSON Schema"),
        ('{"$ref": "http://x/y"}', "only references into"),
        ('{"x-smith-effect": 1}', "x-smith-effect must be one of"),
    ],
)
def test_validate_finds_an_invalid_schema(smith: Cli, folder: Path, schema: str, problem: str) -> None:
    write_file(folder, "odd.yml", HEAD + "  tasks:\n" + RESULT)
    write_file(folder, "odd.schema.json", schema)
    assert problem in validate_and_return_output(smith, "odd")


def test_an_unknown_action_is_a_usage_error(smith: Cli) -> None:
    assert smith("actions", "validate", "fly").returncode == 2
