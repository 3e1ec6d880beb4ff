"""The command and the environment of a run, as ansible-runner's configuration.

The environment holds no secret: the few variables that a run needs of the agent's, and the paths of its own files.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path
from typing import Any

import ansible_runner

from executor.model import PlaybookRun
from executor.runs.private_folder import CREDENTIALS_VARIABLE, IDENT_VARIABLE, tmp_of

#: Variables of the agent's that a run may see: proxies and the time zone.
PASSED_ON = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "TZ")
#: Variables of ansible-runner's that its display callback needs. The others that it sets, we decide.
_RUNNERS_OWN = (
    "ANSIBLE_CALLBACK_PLUGINS",
    "ANSIBLE_STDOUT_CALLBACK",
    "ANSIBLE_RETRY_FILES_ENABLED",
    "AWX_ISOLATED_DATA_DIR",
    "RUNNER_OMIT_EVENTS",
    "RUNNER_ONLY_FAILED_EVENTS",
)


def runner_config(folder: Path, run: PlaybookRun, home: Path, ca_bundle: Path | None) -> Any:
    """Return ansible-runner's configuration of a run whose private folder is `folder`.

    ansible-runner starts from a copy of the agent's whole environment, which may hold secrets, and writes it to a
    file. So we replace the environment after `prepare` by our own and the few variables that ansible-runner adds.
    """
    environment = run_environment(folder, run, home, ca_bundle)
    # No inventory: ansible.cfg names it, for a run by hand as well.
    config = ansible_runner.RunnerConfig(
        private_data_dir=str(folder / "runner"),
        project_dir=str(home),
        host_cwd=str(home),
        ident=run.ident,
        playbook=str(run.playbook.resolve()),
        cmdline=shlex.join(["-e", f"@{folder / 'vm.yml'}"]),
        envvars={**dict.fromkeys(("AWX_LIB_DIRECTORY", *_RUNNERS_OWN), ""), **environment},
        fact_cache_type="none",
        quiet=True,
    )
    config.prepare()
    config.env = {name: config.env[name] for name in _RUNNERS_OWN if config.env.get(name)} | environment
    config.suppress_output_file = True  # as an argument, `prepare` would overwrite it
    # Not the default, a pseudo-terminal by pexpect: pexpect forks this process with its threads and runs Python code
    # before the exec; it checks the time only every 5 s; it kills one process group only; and its own read timeout can
    # turn a good run into a failed one (runner#1343).
    config.runner_mode = "subprocess"
    return config


def run_environment(folder: Path, run: PlaybookRun, home: Path, ca_bundle: Path | None) -> dict[str, str]:
    """Return the whole environment of a run but for what ansible-runner adds."""
    tmp = str(folder / "tmp")
    environment = {name: value for name in PASSED_ON if (value := os.environ.get(name))}
    environment |= {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        "HOME": str(folder / "home"),
        "TMPDIR": str(tmp_of(folder)),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(home / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home" / ".ansible"),
        "ANSIBLE_LOCAL_TEMP": tmp,
        "ANSIBLE_REMOTE_TEMP": tmp,
        "ANSIBLE_PIPELINING": "1",  # a module is then one process, not five
        # YAML folds long lines: a secret with a space in it would be split, and the redactor would miss it.
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        IDENT_VARIABLE: run.ident,
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml"),
    }
    if ca_bundle:
        environment |= dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PROXMOX_CA_PATH"), str(ca_bundle))
    return environment
