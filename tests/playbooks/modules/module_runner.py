"""Runs a module or an action plugin by its full name with pytest-ansible, also in check mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible import context
from ansible.cli.adhoc import AdHocCLI
from ansible.utils.context_objects import CLIArgs

HOST = "proxmox"  # of inventory/proxmox.yml


@dataclass(frozen=True, kw_only=True)
class ModuleRunner:
    """Runs the modules of one collection on the host of the inventory."""

    dispatcher: Any  #: the value of pytest-ansible's fixture `ansible_module`
    collection: str
    login: dict[str, Any] = field(default_factory=dict)  #: parameters that every module gets

    def run(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        """Run a module or an action plugin; return its answer."""
        return self._answers(name, parameters)[HOST]

    def run_in_check_mode(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        """Run a module or an action plugin in check mode; return its answer."""
        with _check_mode():
            answers = self._answers(name, parameters)
        # pytest-ansible has no answer of a module that Ansible skips because it does not support check mode.
        return answers.get(HOST, {"skipped": True, "changed": False})

    def _answers(self, name: str, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Run a module; return the answer of each host."""
        parameters_with_values = {key: value for key, value in parameters.items() if value is not None}
        return dict(
            getattr(self.dispatcher, f"{self.collection}.{name}")(**self.login, **parameters_with_values).contacted
        )


@contextmanager
def _check_mode() -> Iterator[None]:
    """Run modules in check mode for the `with` block.

    pytest-ansible cannot do that: it ignores its own option `--check`. Before each module it parses the command line of
    the command `ansible`, and Ansible takes the check mode from the parsed arguments. A `--check` on that command line
    would have no effect, because an Ansible process keeps the arguments of its first parse.
    """

    class CheckModeCLI(AdHocCLI):
        def parse(self) -> None:
            super().parse()
            context.CLIARGS = CLIArgs({**context.CLIARGS, "check": True})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "CLIARGS", context.CLIARGS)  # restores it afterwards
        patch.setattr("pytest_ansible.module_dispatcher.v213.AdHocCLI", CheckModeCLI)
        yield
