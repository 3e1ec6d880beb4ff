"""Builds the command and the environment of a run, as ansible-runner's configuration.

The environment of a run contains no secret. It contains the paths of the run's files, settings for Ansible, and a few
variables of the agent's environment. A run's private folder contains its extra vars, credentials and temporary files.
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
from executor.runs.private_folder import CREDENTIALS_VARIABLE, IDENT_VARIABLE, tmpdir_of_run
from executor.shared.run_until import RUN_UNTIL_VARIABLE
from executor.version import collection_search_path

#: Variables of the agent's environment that are copied to the environment of each run: proxies and the time zone.
COPIED_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "TZ")
#: Variables that ansible-runner sets for its display callback. A run gets no other variable from ansible-runner.
_CALLBACK_VARIABLES = (
    "ANSIBLE_CALLBACK_PLUGINS",
    "ANSIBLE_STDOUT_CALLBACK",
    "ANSIBLE_RETRY_FILES_ENABLED",
    "AWX_ISOLATED_DATA_DIR",
    "RUNNER_OMIT_EVENTS",
    "RUNNER_ONLY_FAILED_EVENTS",
)


def runner_config(
    folder: Path, run: PlaybookRun, collection_folder: Path, ca_bundle: Path | None, *, run_until_file: Path
) -> Any:
    """Return ansible-runner's configuration for a run whose private folder is `folder`.

    `collection_folder` is the folder of our Ansible collection, with ansible.cfg and our playbooks. `run_until_file`
    contains the time at which the run must end.

    ansible-runner's method `prepare` copies the agent's whole environment, which may contain secrets, and its method
    `run` writes the environment to a file. So after `prepare` the environment is replaced: the run gets only the result
    of `run_environment`, RUN_UNTIL_VARIABLE with the path of `run_until_file`, and _CALLBACK_VARIABLES.
    """
    environment = run_environment(folder, run, collection_folder, ca_bundle)
    environment[RUN_UNTIL_VARIABLE] = str(run_until_file)
    # No inventory is passed. Ansible takes the inventory from ansible.cfg, as when an operator runs a playbook by hand.
    config = ansible_runner.RunnerConfig(
        private_data_dir=str(folder / "runner"),
        project_dir=str(collection_folder),
        host_cwd=str(collection_folder),
        ident=run.ident,
        playbook=str(run.playbook.resolve()),
        cmdline=shlex.join(["-e", f"@{folder / 'vm.yml'}"]),
        # The empty values override the values that `prepare` copies from the agent's environment. If AWX_LIB_DIRECTORY
        # is empty, ansible-runner uses the display callback in its own package.
        envvars={**dict.fromkeys(("AWX_LIB_DIRECTORY", *_CALLBACK_VARIABLES), ""), **environment},
        fact_cache_type="none",
        quiet=True,
    )
    config.prepare()
    callback_environment = {name: config.env[name] for name in _CALLBACK_VARIABLES if config.env.get(name)}
    config.env = callback_environment | environment
    config.suppress_output_file = True  # not an argument above, because `prepare` would overwrite it
    # The default mode "pexpect" is not used, for four reasons. It forks this process, which has threads, and it runs
    # Python code in the fork before the exec. It checks the timeout only every 5 s. It kills only one process group.
    # Its read timeout can make a successful run fail (ansible-runner issue 1343).
    config.runner_mode = "subprocess"
    return config


def run_environment(folder: Path, run: PlaybookRun, collection_folder: Path, ca_bundle: Path | None) -> dict[str, str]:
    """Return all environment variables of a run, except RUN_UNTIL_VARIABLE and _CALLBACK_VARIABLES."""
    tmp = str(folder / "tmp")
    environment = {name: value for name in COPIED_VARIABLES if (value := os.environ.get(name))}
    environment |= {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        "HOME": str(folder / "home"),
        # The folder `tmp`, or a link to it with a short path if the path of `tmp` is too long for a Unix socket.
        "TMPDIR": str(tmpdir_of_run(folder)),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(collection_folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home" / ".ansible"),
        # The search path of collections is set here, because HOME is the run's own folder: `~` in ansible.cfg would
        # not be the operator's home. `collection_search_path` returns the folder of this Python's packages, and the
        # folders of the agent's ANSIBLE_COLLECTIONS_PATH or, if it is not set, Ansible's default folders.
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(
            [*_search_paths_of_our_collection(collection_folder), *collection_search_path()]
        ),
        "ANSIBLE_LOCAL_TEMP": tmp,
        "ANSIBLE_REMOTE_TEMP": tmp,
        "ANSIBLE_PIPELINING": "1",  # with pipelining a module needs one process instead of five
        # The default format, YAML, breaks long lines at spaces. The agent removes secrets from the output, but it would
        # not find a secret that contains such a line break.
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


def _search_paths_of_our_collection(collection_folder: Path) -> list[str]:
    """Return the folders in which Ansible searches for our collection.

    In one of these folders, Ansible finds the collection at the path `ansible_collections/agent_smith/proxmox`. In a
    checkout of the repository, this path exists in the first folder and is a link. In an installation of the package,
    this path exists in the second folder. The two are also the first folders of `collections_path` in ansible.cfg.
    """
    return [str(collection_folder / ".collections"), str((collection_folder / "../../..").resolve())]
