"""No text becomes code, an object or a shell command, and no other process reads the agent's environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Modules that turn bytes into objects or code.
FORBIDDEN_MODULES = frozenset({"pickle", "cPickle", "dill", "marshal", "shelve", "jsonpickle"})
#: Calls that evaluate text as code or as a shell command.
FORBIDDEN_CALLS = frozenset(
    {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "pty.spawn"}
    | {"subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
)
#: The first two read what processes of the executor have written, in a folder that only they may enter
#: (tests/integration/runs/test_warm.py); the third is a SafeLoader.
ACCEPTED_USES = {
    ("executor/runs/warm/payloads.py", "pickle"),
    ("executor/runs/warm/parse_cache.py", "marshal"),
    ("executor/cli/action_checks.py", "yaml.load"),
}

#: A program that becomes the user `nobody` and makes itself undumpable, or not. Its child, of the same user, tries to
#: read its environment. The child is forked without exec, because `nobody` cannot read our Python files.
READ_ENVIRONMENT_OF_PARENT = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from executor.processes import process_tree
os.setgid(65534)
os.setuid(65534)
if {hidden}:
    process_tree.forbid_dumps_and_debuggers()
else:
    process_tree._prctl(process_tree._PR_SET_DUMPABLE, 1)  # setuid has reset it
parent = os.getpid()
if os.fork() == 0:
    try:
        print("seen", len(open(f"/proc/{{parent}}/environ", "rb").read()))
    except PermissionError as error:
        print(error.strerror)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def list_source_files() -> list[Path]:
    files = [path for folder in ("executor", "playbooks", "deploy") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 60
    return files


def find_dangers(tree: ast.AST) -> Iterator[str]:
    """Yield the forbidden modules and calls in a source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield called
            if any(key.arg == "shell" and ast.unparse(key.value) != "False" for key in node.keywords):
                yield "shell="


def test_no_source_evaluates_text_as_code_objects_or_a_shell_command() -> None:
    found = {
        (str(path.relative_to(ROOT)), danger)
        for path in list_source_files()
        for danger in find_dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ACCEPTED_USES


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from shelve import open", "eval('1')", "import os\nos.system('id')", "run('id', shell=True)"],
)
def test_the_search_finds_each_dangerous_construct(source: str) -> None:
    assert list(find_dangers(ast.parse(source)))


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root can do")
@pytest.mark.parametrize(("hidden", "outcome"), [(True, "Permission denied"), (False, "seen")])
def test_a_process_of_the_same_user_cannot_read_the_environment_of_an_undumpable_process(
    hidden: bool, outcome: str
) -> None:
    source = READ_ENVIRONMENT_OF_PARENT.format(root=str(ROOT), hidden=hidden)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60)
    assert outcome in done.stdout, done.stderr
