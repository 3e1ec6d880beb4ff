"""The shell commands that a warm run recognises as the start of a module, and the tested versions of ansible-core."""

from __future__ import annotations

import pytest

from executor.runs.warm.compatibility import is_version_tested
from executor.runs.warm.module_script import read_command


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("/usr/bin/python && sleep 0", {}),
        ("/usr/bin/python", {}),
        ("A=1 B='x y' /usr/bin/python && sleep 0", {"A": "1", "B": "x y"}),
        ("EMPTY='' /usr/bin/python", {"EMPTY": ""}),
        ("A='$(id)' /usr/bin/python", {"A": "$(id)"}),
    ],
)
def test_the_command_of_a_module_is_parsed(line: str, environment: dict[str, str]) -> None:
    quoted = line.replace("'", "'\"'\"'")
    assert read_command(f"/bin/sh -c '{quoted}'") == ("/usr/bin/python", environment)


@pytest.mark.parametrize(
    "cmd",
    [
        "",
        "/bin/sh -c ''",
        "/bin/sh -c '&& sleep 0'",
        "/bin/sh -c '/usr/bin/python; id'",
        "/bin/sh -c '/usr/bin/python && sleep 0 && id'",
        "/bin/sh -c 'A=$HOME /usr/bin/python'",
        "/bin/sh -c 'A=`id` /usr/bin/python'",
        "/bin/sh -c 'A=~ /usr/bin/python'",
        "/bin/sh -c '/usr/bin/python > /tmp/x'",
        "/bin/sh -c '/usr/bin/py*'",
        "/bin/sh -c 'sudo /usr/bin/python'",
        "/bin/sh -c 'cd / && /usr/bin/python && sleep 0'",
        "/bin/sh -c 'A=1 A=2 /usr/bin/python'",
        "/bin/bash -c /usr/bin/python",
        "/bin/sh -c '/usr/bin/python",
        "/usr/bin/python",
    ],
)
def test_other_commands_are_not_recognised_and_run_in_a_shell(cmd: str) -> None:
    assert read_command(cmd) is None


@pytest.mark.parametrize(
    ("version", "is_tested"),
    [
        ("2.19.0", True),
        ("2.19.14", True),
        ("2.21.5", True),
        ("2.20.1", False),
        ("2.22.0", False),
        ("2.21.0rc1", False),
        ("2.21.0.dev0", False),
        ("2.21", False),
        ("12.19.1", False),
        ("", False),
    ],
)
def test_only_releases_of_tested_series_count_as_tested(version: str, is_tested: bool) -> None:
    assert is_version_tested(version) is is_tested
