"""The processes of a test inherit the same signals, umask, locale and settings wherever the suite was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PRINT_INHERITED_SURROUNDINGS = """
import json, os, signal, subprocess, sys
from support import surroundings
import pytest
surroundings.reset_process()
with pytest.MonkeyPatch.context() as patch:
    surroundings.reset_environment(patch, "/home-of-tests")
    child = '''
import json, os, signal, time
before = os.umask(0)
found = {
    "ignored": [s.name for s in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
                if signal.getsignal(s) == signal.SIG_IGN],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "umask": before, "zone": time.tzname[0], "environment": dict(os.environ),
}
print(json.dumps(found))
'''
    sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)
"""
HOSTILE = {
    **{"SMITH_CONCURRENCY": "9", "ANSIBLE_CONFIG": "/nowhere", "XDG_DATA_HOME": "/nowhere", "HOME": "/nowhere"},
    **{"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "NOTIFY_SOCKET": "/nowhere"},
}


def test_a_test_inherits_no_signals_umask_locale_or_settings_from_where_the_suite_is_started() -> None:
    tests = Path(__file__).parents[1]
    shell = 'trap "" INT HUP QUIT TERM; umask 077; exec "$@"'  # as nohup, and a shell's background job
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tests), **HOSTILE}
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", PRINT_INHERITED_SURROUNDINGS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    inherited = {name: value for name, value in found["environment"].items() if HOSTILE.get(name) == value}
    assert inherited == {}
    assert (found["ignored"], found["blocked"], found["umask"], found["zone"]) == ([], 0, 0o022, "UTC")
    assert (found["environment"]["HOME"], found["environment"]["LANG"]) == ("/home-of-tests", "C.UTF-8")
