"""The actions change something at Proxmox only with modules, and with the requests that docs/actions.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import action_docs
from play_bench import ROOT

from executor.proxmox.privileges import list_privilege_needs

PLUGINS = ROOT / "plugins"
#: The only file that sends changing requests.
SENDER = PLUGINS / "plugin_utils" / "request.py"
#: The methods of proxmoxer's resources that send changing requests.
CHANGING_METHODS = {"post", "put", "set", "create", "delete"}
#: A row of the table: caller, request, privileges.
ROW = re.compile(r"^\| `([a-z_.]+)` \| `([A-Z]+ [^`]+)` \| ([^|]+) \|", re.MULTILINE)


def read_listed_requests() -> list[tuple[str, str, str]]:
    """Return the rows of the table in docs/actions.md."""
    section = action_docs.PAGE.read_text().partition("### Changes without a module")[2].partition("\n#")[0]
    return ROW.findall(section)


def find_sent_requests() -> Iterator[tuple[str, str]]:
    """Yield the caller and the request of each call of `request.send`."""
    for file in PLUGINS.rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                yield from _requests_in(file, function)


def _requests_in(file: Path, function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "request.send":
            method, path = call.args[1:3]
            assert isinstance(method, ast.Constant)
            yield f"{file.stem}.{function.name}", f"{method.value} {_pattern(path)}"


def _pattern(path: ast.expr) -> str:
    """Return the path with a `*` in place of each inserted value."""
    assert isinstance(path, ast.JoinedStr)
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in path.values)


def test_the_actions_page_lists_every_request_that_an_action_sends_itself() -> None:
    assert sorted((caller, request) for caller, request, _privileges in read_listed_requests()) == sorted(
        find_sent_requests()
    )


#: Privileges that an operator grants by hand with a setting that is off by default: SMITH_DELETE_REMOVE_VOLUMES.
OPTIONAL_PRIVILEGES = {"Datastore.Allocate"}


def test_the_privileges_of_the_listed_requests_are_granted() -> None:
    needs = [need for major in (8, 9) for need in list_privilege_needs(major, disk_storages=["a"], backup_storage="b")]
    granted = {privilege for need in needs for privilege in need.privileges}
    listed_privileges = [name for _caller, _request, names in read_listed_requests() for name in names.split(", ")]
    assert listed_privileges
    assert set(listed_privileges) - OPTIONAL_PRIVILEGES <= granted


def test_no_other_file_of_the_plugins_sends_a_changing_request() -> None:
    calls = [
        f"{file.name}:{node.lineno}"
        for file in PLUGINS.rglob("*.py")
        if file != SENDER
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING_METHODS
    ]
    assert calls == []
