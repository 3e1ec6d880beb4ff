"""Gives the tests the same environment variables, signals, umask, locale and time zone wherever they run.

A developer's shell, a CI system, `nohup`, a service manager and a cron job set them differently. Each process that a
test starts inherits what this module sets.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

#: The beginnings and the names of the variables that are removed: of this program, of Ansible, of a desktop, of a
#: service manager and of a user's locale.
PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_", "ANSIBLE_", "XDG_", "LC_", "SYSTEMD_")
NAMES = {
    *("LANGUAGE", "TZ", "COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER", "EDITOR"),
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", "PGHOST", "PGPORT", "PGUSER"),
    *("PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
}
FIXED = {"LANG": "C.UTF-8", "TZ": "UTC", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
UMASK = 0o022


def reset_process() -> None:
    """Give the processes that this one starts the signals and the umask of a terminal. Call it in the main thread.

    An ignored signal (as after nohup, or in a shell's background job) gets a handler that does nothing. So it has no
    effect on this process, but its default effect on a process that is started, because exec removes all handlers.
    """
    os.umask(UMASK)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)


def reset_environment(patch: pytest.MonkeyPatch, home: str) -> None:
    """Remove these variables if they were set outside the tests. A test that needs one sets it itself."""
    for name in [name for name in os.environ if name in NAMES or name.startswith(PREFIXES)]:
        patch.delenv(name)
    for name, value in {**FIXED, "HOME": home}.items():
        patch.setenv(name, value)
    time.tzset()
