"""Applies the remedies of `smith doctor` as an operator does: settings, commands of this machine, and of Proxmox."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import fork_server

if TYPE_CHECKING:
    from support.setups import BrokenSystem

#: The words before a command: `on NODE:` says where it is executed, `or:` that it is an alternative.
PREFIX = re.compile(r"^(on [\w.-]+|or): ")
SETTING = re.compile(r"([A-Z][A-Z_]+)=(.*)")
PATCH_REQUEST = re.compile(r"PATCH (/\S+) (\{.*\}|with the file \S+)")
#: The programs of this machine that a remedy may call.
LOCAL_PROGRAMS = ("chmod", "chown", "mount")
GIVE_UP_S = 120


def apply(remedy: str, system: BrokenSystem) -> None:
    """Do what a remedy says. Raises ValueError if it is neither a setting nor a command that this module knows."""
    remedy = PREFIX.sub("", remedy)
    if match := SETTING.fullmatch(remedy):
        _set_variable(system, *match.groups())
    elif match := PATCH_REQUEST.fullmatch(remedy):
        body = match[2]
        file = body.removeprefix("with the file ")
        text = body if file == body else system.read(file)
        system.lab.admin.call("PATCH", match[1], json.loads(text))
    else:
        for command in remedy.split(" && "):
            _execute(shlex.split(command), system)


def _set_variable(system: BrokenSystem, name: str, value: str) -> None:
    """Set a variable. A secret and the file with it exclude each other."""
    alternative = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
    system.environ.pop(alternative, None)
    system.environ[name] = value


def _execute(words: list[str], system: BrokenSystem) -> None:
    if words[0] == "smith":
        confirmation = ["--yes"] if words[1:3] == ["db", "restore"] else []
        env = system.environ | {"CORE_ADMIN_TOKEN": system.lab.ids.admin_token}
        done = fork_server.run([*words[1:], *confirmation], env=env, cwd=system.folder, timeout=GIVE_UP_S)
        assert done.returncode == 0, done.stderr
    elif words[0] in LOCAL_PROGRAMS:
        subprocess.run(words, check=True)
    else:
        _find_lab_command(words)(words, system)


def _find_lab_command(words: list[str]) -> Callable[[list[str], BrokenSystem], None]:
    words = [Path(words[0]).name, *words[1:]]
    for beginning, command in LAB_COMMANDS.items():
        if words[: len(beginning)] == list(beginning):
            return command
    raise ValueError(f"no command: {shlex.join(words)}")


def _options(words: list[str]) -> dict[str, str]:
    """Return the options with their values."""
    return {name.removeprefix("--"): value for name, value in itertools.pairwise(words) if name[:2] == "--"}


def _add_privileges_to_role(words: list[str], system: BrokenSystem) -> None:
    system.roles.setdefault(words[3], set()).update(_options(words)["privs"].split(","))


def _grant_roles(words: list[str], system: BrokenSystem) -> None:
    for privilege in sorted(system.roles[_options(words)["roles"]]):
        system.proxmox("grant", path=words[3], privilege=privilege)


def _set_storage(words: list[str], system: BrokenSystem) -> None:
    values: dict[str, Any] = dict(_options(words))
    if deleted := values.pop("delete", ""):
        values[deleted] = ""
    if "disable" in values:
        values["disable"] = int(values["disable"])
    system.proxmox("storage", storage=words[2], **values)


def _set_guest_options(words: list[str], system: BrokenSystem) -> None:
    values = {
        name: value if not value.endswith(":cloudinit") else f"{value[:-9]}vm-{words[2]}-cloudinit,media=cdrom"
        for name, value in _options(words).items()
    }
    system.proxmox("configure", vmid=int(words[2]), values=values)


def _set_cluster_options(words: list[str], system: BrokenSystem) -> None:
    options = _options(words)
    if "registered-tags" in options:
        system.proxmox("options", registered_tags=options["registered-tags"].split(","))
    else:
        system.proxmox("options", user_allow=options["user-tag-access"].removeprefix("user-allow="))


def _make_template(words: list[str], system: BrokenSystem) -> None:
    system.proxmox("configure", vmid=int(words[2]), values={"template": 1})
    system.proxmox("behave", vmid=int(words[2]), template=True)


def _install_collection(words: list[str], system: BrokenSystem) -> None:
    """Put the collection where `ansible-galaxy collection install` puts it, without a download."""
    folder = Path(words[words.index("-p") + 1]) / "ansible_collections" / "community"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "proxmox").exists():
        shutil.rmtree(folder / "proxmox")
    (folder / "proxmox").symlink_to(system.installed_collection)


def _renew_token_secret(words: list[str], system: BrokenSystem) -> None:
    """Set the secret of the stand-in's token again. The stand-in has a token already, so none is added."""
    system.proxmox("token_secret", secret=system.lab.proxmox.token_secret)


def _do_nothing(words: list[str], system: BrokenSystem) -> None:
    """Do nothing, because another command of the remedy has made the whole change at the stand-in."""


#: What a command does in the lab, by its first words. The commands of Proxmox change the stand-in.
LAB_COMMANDS: dict[tuple[str, ...], Callable[[list[str], BrokenSystem], None]] = {
    ("pveum", "role"): _add_privileges_to_role,
    ("pveum", "acl", "modify"): _grant_roles,
    ("pveum", "pool", "add"): lambda words, system: system.proxmox("add_pool", pool=words[3]),
    ("pveum", "user", "modify"): lambda words, system: system.proxmox("user", user=words[3], enabled=True),
    ("pveum", "user", "token", "modify"): lambda words, system: system.proxmox(
        "token", token=f"{words[4]}!{words[5]}", expired=False
    ),
    ("pveum", "user", "token", "remove"): _do_nothing,
    ("pveum", "user", "token", "add"): _renew_token_secret,
    ("pvecm", "updatecerts", "--force"): lambda _words, system: system.certificate(),
    ("systemctl", "restart", "pveproxy"): _do_nothing,
    ("systemctl", "restart", "pvestatd"): lambda _words, system: system.proxmox("statistics"),
    ("ha-manager", "crm-command", "node-maintenance", "disable"): lambda words, system: system.proxmox(
        "node", node=words[4]
    ),
    ("pvesm", "set"): _set_storage,
    ("qm", "set"): _set_guest_options,
    ("qm", "template"): _make_template,
    ("ansible-galaxy", "collection", "install"): _install_collection,
    ("pvesh", "set", "/cluster/options"): _set_cluster_options,
}
