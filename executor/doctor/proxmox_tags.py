"""Checks whether the cluster's options allow the token to change tags of VMs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.proxmox import privileges
from executor.proxmox.client import SMITH_TAG

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: The command that allows every tag except the registered tags.
FREE_TAGS_COMMAND = "pvesh set /cluster/options --user-tag-access user-allow=free"
#: The privilege that allows every tag, on the path `/`. No message shows `purpose`, which PrivilegeNeed requires.
TAG_NEED = privileges.PrivilegeNeed(
    path="/", role="SmithTags", privileges=frozenset({"Sys.Modify"}), purpose="for every tag"
)


def check_tags(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the token may change tags of VMs. SMITH_TAG is the tag that the agent gives to each of its VMs."""
    granted_privileges = context.reader.permissions("/")
    options = context.reader.cluster_options()
    guest_tags = {tag for row in context.guests for tag in row.tags}
    if "Sys.Modify" in granted_privileges:
        yield _RESULT_FACTORY.ok("tags")
    # Without Sys.Audit, the token can read only one of the cluster's options: the list `allowed-tags`. If no tag is
    # forbidden, this list contains every tag in `visible_tags`. So a missing tag means that some tags are forbidden.
    elif privileges.are_tags_restricted(options, needed_tags=[SMITH_TAG], visible_tags=guest_tags):
        problem = (
            "the cluster's options user-tag-access or registered-tags forbid some tags; if a job sets a forbidden tag, "
            "the VM's tags are not changed"
        )
        yield _RESULT_FACTORY.warn("tags", problem, *_option_commands(options), *_grant_commands(context))
    elif "Sys.Audit" in granted_privileges:
        yield _RESULT_FACTORY.ok("tags")
    else:
        reason = "the token may not read user-tag-access and registered-tags (Sys.Audit on /)"
        remedy = f"if VMs lack tags: {FREE_TAGS_COMMAND}"
        yield _RESULT_FACTORY.skip("tags", f"unknown whether VMs may get every tag: {reason}", remedy)


def _option_commands(options: Mapping[str, Any]) -> list[str]:
    """Return the commands that make the cluster's options allow SMITH_TAG and every tag that is not registered.

    If the token may not read user-tag-access and registered-tags, return FREE_TAGS_COMMAND.
    """
    access, registered_tags = options.get("user-tag-access") or {}, list(options.get("registered-tags") or ())
    commands = [FREE_TAGS_COMMAND] if access.get("user-allow", "free") != "free" else []
    if SMITH_TAG in registered_tags:
        remaining_tags = ",".join(tag for tag in registered_tags if tag != SMITH_TAG)
        option = ("--registered-tags", remaining_tags) if remaining_tags else ("--delete", "registered-tags")
        commands.append(command_line("pvesh", "set", "/cluster/options", *option))
    return commands or [FREE_TAGS_COMMAND]


def _grant_commands(context: ProxmoxContext) -> list[str]:
    """Return the remedy with the commands that grant the token the privilege for every tag.

    With this privilege, the cluster's options need no change.
    """
    settings = context.settings
    commands = privileges.make_pveum_commands(
        [TAG_NEED], context.reader.roles(), user=settings.proxmox_user, token_id=settings.proxmox_token_id
    )
    return [f"or: {' && '.join(commands)}"]
