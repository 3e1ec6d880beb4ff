"""Machines that run the executor, each in a network namespace and with folders of its own, on one database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from faults.many_machines.network import Network, networks
from faults.many_machines.recorder import Recorder
from faults.system import SystemUnderTest
from smith_lab.system import LabSystem

STOP_TIMEOUT_S = 60.0


@dataclass
class Machine:
    """One machine. Each method records what happened to the machine."""

    name: str
    network: Network
    lab: LabSystem
    recorder: Recorder
    is_killed: bool = False

    def start(self) -> None:
        """Start the executor. If the machine was killed, create its network again first."""
        if self.is_killed:
            self.network.create()
            self.is_killed = False
        self.lab.start_executor()
        self.recorder.machine(self.name, "started")

    def kill(self) -> None:
        """Simulate a loss of power: all processes of the machine end at once, and its files in memory are deleted."""
        self.is_killed = True
        self.recorder.machine(self.name, "killed")
        self.network.power_off()
        shutil.rmtree(self.lab.settings["SMITH_RUN_DIR"], ignore_errors=True)

    def pause(self) -> None:
        """Suspend every process."""
        self.recorder.machine(self.name, "paused")
        self.network.suspend()

    def resume(self) -> None:
        """Let all processes continue."""
        self.network.resume()
        self.recorder.machine(self.name, "resumed")

    def cut(self, *servers: str) -> None:
        """Cut the machine off from these servers."""
        self.network.cut(*servers)
        self.recorder.machine(self.name, "cut", *servers)

    def restore(self) -> None:
        """End all cuts."""
        servers = sorted(self.network.cuts)
        self.network.restore()
        self.recorder.machine(self.name, "restored", *servers)

    def has_ended_by_itself(self) -> bool:
        """Return whether the executor ended although the machine was not killed."""
        return not self.is_killed and self.lab.executor.poll() is not None

    def stop(self) -> list[str]:
        """Stop the executor; return a text for each process that is left."""
        if not self.is_killed and self.lab.executor.poll() is None:
            self.network.resume()
            self.lab.stop_executor(STOP_TIMEOUT_S)
        return [f"R7 orphan process: {process} is left on {self.name}" for process in self.network.processes()]


@contextmanager
def machines(system: SystemUnderTest, count: int) -> Iterator[list[Machine]]:
    """Create this number of machines on the system's database. The caller starts and stops their executors.

    All their processes and their networks are removed at the end, also after an error.
    """
    with networks(count) as created:
        names = {network.address: f"node-{network.number}" for network in created}
        recorder = Recorder(system, names)
        yield [
            Machine(names[network.address], network, _lab_of(system, names[network.address], network), recorder)
            for network in created
        ]


def _lab_of(system: SystemUnderTest, name: str, network: Network) -> LabSystem:
    folder = system.lab.folder / name
    lab = system.lab.copy_for_another_executor(
        folder, SMITH_DATA_DIR=str(folder / "data"), SMITH_RUN_DIR=str(folder / "run")
    )
    lab.launcher = network.launcher
    return lab
