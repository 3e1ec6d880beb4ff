"""Which process of the executor's tree counts as the agent when a chaos run kills it."""

from __future__ import annotations

import subprocess
import sys

import psutil
from faults.chaos.killer import KILLS_OF_THE_AGENT
from faults.processes import kind_of

#: Forks a child that executes no other program, prints the child's pid, and ends when its stdin is closed.
FORK = """
import os, sys
child = os.fork()
if child:
    print(child, flush=True)
    sys.stdin.read()
    os.waitpid(child, 0)
else:
    sys.stdin.read()
"""


def test_a_child_of_the_agent_that_executes_no_program_yet_is_not_the_agent() -> None:
    """The child has the agent's command line until it executes a program. No new agent starts after the child's end."""
    command = [sys.executable, "-c", FORK, "agent-process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        child_pid = int(agent.stdout.readline())
        kinds = kind_of(psutil.Process(agent.pid)), kind_of(psutil.Process(child_pid))
        agent.stdin.close()
    assert kinds == ("agent", "new child of the agent")
    assert kinds[0] in KILLS_OF_THE_AGENT
    assert kinds[1] not in KILLS_OF_THE_AGENT
