"""Defines a part of the bench (the benchmarks): a measurement, tables of its figures, and goals for them.

A part compares variants. A variant is an installation that runs playbooks: plain ansible-runner, the executor of an
earlier commit, or this checkout's executor (bench/baseline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import LabSystem

from bench.baseline import CURRENT, Variant
from bench.labs import running_lab_with_agent
from bench.playbooks import PlaybookProcess, running_playbook_process
from bench.sizes import Sizes

Json = dict[str, Any]
#: The default of FULCRUM_POLL_INTERVAL_S.
POLL_INTERVAL_S = "2"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of figures. The cells are text."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal, and the figure that was measured for it."""

    figure_name: str
    limit: float
    measured: float
    unit: str = ""
    is_minimum: bool = False  #: True: the figure must be at least the limit; False: at most

    @property
    def is_reached(self) -> bool:
        """Whether the figure is within the limit."""
        return self.measured >= self.limit if self.is_minimum else self.measured <= self.limit


@dataclass(kw_only=True)
class Bench:
    """The objects that all parts share: variants, processes that run playbooks, and labs.

    A lab is a FulcrumCore simulator and a Proxmox stand-in. The labs here have an agent, too.
    """

    variants: list[Variant]
    sizes: Sizes  #: how much is measured, such as the number of rounds and of VMs
    folder: Path  #: a temporary folder
    stack: ExitStack  #: ends the processes when the bench ends
    _processes: list[PlaybookProcess] = field(default_factory=list)
    _labs_with_agents: dict[str, LabSystem] = field(default_factory=dict)

    @property
    def variant_of_this_checkout(self) -> Variant:
        """The variant with the executor of this checkout."""
        return next(variant for variant in self.variants if variant.name == CURRENT)

    def executor_variants(self) -> list[Variant]:
        """Return the variants that run playbooks with an executor, and not with ansible-runner alone."""
        return [variant for variant in self.variants if variant.runs_executor]

    def playbook_processes(self) -> list[PlaybookProcess]:
        """Return, for each variant, a process that runs the playbooks of the variant without an agent.

        The first call starts the processes and one stand-in, which all processes use.
        """
        if not self._processes:
            stand_in: ProxmoxStandIn = self.stack.enter_context(running_stand_in())
            self._processes = [
                self.stack.enter_context(running_playbook_process(variant, stand_in, self.folder))
                for variant in self.variants
            ]
        return self._processes

    def labs_with_agents(self) -> dict[str, LabSystem]:
        """Return a lab with an agent for each variant with an executor; the keys are the names of the variants.

        The first call starts the labs. Proxmox tasks take no time. The agents poll every POLL_INTERVAL_S, as a
        provider's agent does by default.
        """
        if not self._labs_with_agents:
            for variant in self.executor_variants():
                lab = running_lab_with_agent(variant, self.folder, FULCRUM_POLL_INTERVAL_S=POLL_INTERVAL_S)
                self._labs_with_agents[variant.name] = self.stack.enter_context(lab)
        return self._labs_with_agents


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the bench. `tables` and `goals` get the figures that `measure` has returned."""

    help: str
    measure: Callable[[Bench], Json]
    tables: Callable[[Json], list[Table]]
    goals: Callable[[Json], list[Goal]] = lambda _figures: []


def reversed_in_odd_rounds(items: list[Any], round_number: int) -> list[Any]:
    """Return the items. In every second round, reverse their order, so that no item is always measured first."""
    return items if round_number % 2 == 0 else items[::-1]


def ratio_text(value: float, base: float | None) -> str:
    """Return the ratio of `value` to `base` as text; "-" if there is no base."""
    return f"{value / base:.3f}" if base else "-"
