"""Networks of machines, made of network namespaces: each machine reaches three servers, until it is cut off from one.

The process that calls `enter` gets a namespace of its own, in which it runs the servers, each on an address of its own.
Each machine has another namespace, whose only link leads to that of the servers. A cut drops every packet between a
machine and a server, in both directions and without an answer, as a broken cable does. Nothing outside these namespaces
is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

CLONE_NEWNET = 0x40000000
#: Addresses for examples and tests (RFC 5737). Outside these namespaces no machine has them.
SERVERS = {"FulcrumCore": "198.51.100.1", "Proxmox": "198.51.100.2", "database": "198.51.100.3"}
LINK_NETWORK = "192.0.2"
#: The name of a machine's namespace: it contains the pid of the process that has created it, and the machine's number.
NAME = re.compile(r"smith-trial-(\d+)-[a-z0-9-]+")
#: By default the kernel reads the table of local addresses first. The rules of the cuts must come before it.
CUT_PRIORITY, LOCAL_PRIORITY = "10", "100"
KILL_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 20.0


def enter() -> str:
    """Give this process a network namespace for the servers. Return why that is not possible; '' if it was done.

    Call this before the process starts a thread: only the calling thread enters the namespace.
    """
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is not installed"
    if os.getuid() != 0:
        return "network namespaces need root"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        return f"no network namespace: {os.strerror(ctypes.get_errno())}"
    try:
        _ip("link", "set", "lo", "up")
        for address in SERVERS.values():
            _ip("address", "add", f"{address}/32", "dev", "lo")
        _ip("rule", "add", "priority", LOCAL_PRIORITY, "lookup", "local")
        _ip("rule", "delete", "priority", "0", "lookup", "local")
        probe = Network(name=f"smith-trial-{os.getpid()}-probe", number=0)
        probe.create()
        probe.remove()
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no network of our own: {getattr(error, 'stderr', None) or error}"
    return ""


@dataclass
class Network:
    """The namespace of one machine, and the link to the namespace of the servers."""

    name: str  #: of the namespace
    number: int  #: of the machine; it determines the machine's address
    cuts: set[str] = field(default_factory=set)  #: the servers from which the machine is cut off

    @property
    def address(self) -> str:
        """The address from which the machine's requests come."""
        return f"{LINK_NETWORK}.{4 * self.number + 2}"

    @property
    def launcher(self) -> tuple[str, ...]:
        """The start of a command that runs on the machine, which has a host name of its own."""
        set_name = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        return ("ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", set_name, self.name)

    def create(self) -> None:
        """Make the namespace and its link. Raises subprocess.CalledProcessError."""
        gateway = f"{LINK_NETWORK}.{4 * self.number + 1}"
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("address", "add", f"{gateway}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "route", "add", "default", "via", gateway)

    @property
    def _link(self) -> str:
        return f"machine{self.number}"

    def cut(self, *servers: str) -> None:
        """Drop every packet between the machine and these servers. Open connections stay open."""
        for server in servers:
            self._change_rules("add", server)
            self.cuts.add(server)

    def restore(self) -> None:
        """End all cuts."""
        for server in sorted(self.cuts):
            self._change_rules("delete", server)
        self.cuts.clear()

    def _change_rules(self, verb: str, server: str) -> None:
        ends = (self.address, SERVERS[server])
        for source, target in (ends, ends[::-1]):
            _ip("rule", verb, "priority", CUT_PRIORITY, "from", source, "to", target, "type", "blackhole")

    def power_off(self) -> None:
        """End the machine at once, as a loss of power does: no packet leaves it any more, then its processes end."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self._link)
        self.restore()
        self.remove()

    def processes(self) -> list[psutil.Process]:
        """Return every process of the machine, also those whose parents have ended."""
        return _processes_of(self.name)

    def suspend(self) -> None:
        """Suspend every process, also those that are started meanwhile."""
        suspended: set[int] = set()
        while new := [process for process in self.processes() if process.pid not in suspended]:
            _signal(new, signal.SIGSTOP)
            suspended |= {process.pid for process in new}

    def resume(self) -> None:
        """Let all processes continue."""
        _signal(self.processes(), signal.SIGCONT)

    def remove(self) -> None:
        """Kill the machine's processes and delete its namespace."""
        _remove(self.name)


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    """Create the networks of this number of machines; at the end, remove them with all processes in them."""
    remove_leftovers()
    created = [Network(name=f"smith-trial-{os.getpid()}-{number}", number=number) for number in range(1, count + 1)]
    try:
        for network in created:
            network.create()
        yield created
    finally:
        for network in created:
            network.remove()


def remove_leftovers() -> None:
    """Remove the namespaces of runs that were killed, with all processes in them."""
    for name in namespaces():
        found = NAME.fullmatch(name)
        if found and not psutil.pid_exists(int(found[1])):
            _remove(name)


def namespaces() -> list[str]:
    """Return the names of all network namespaces that have a name."""
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _remove(name: str) -> None:
    if name not in namespaces():
        return
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (processes := _processes_of(name)) and time.monotonic() < deadline:
        _signal(processes, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=1)
    _ip("netns", "delete", name)


def _processes_of(name: str) -> list[psutil.Process]:
    found = []
    for pid in _ip("netns", "pids", name).split():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _signal(processes: list[psutil.Process], signum: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def _ip(*arguments: str) -> str:
    """Run a command of iproute2 and return its output. Raises subprocess.CalledProcessError."""
    done = subprocess.run(
        ["ip", *arguments],  # noqa: S607 (the system's command; its folder differs)
        capture_output=True,
        text=True,
        check=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    return done.stdout
