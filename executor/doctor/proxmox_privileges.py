"""Checks whether the token has the privileges at Proxmox that the actions and the configured templates need.

A template needs further privileges if its configuration contains, for example, a resource mapping of a PCI device. A
`PrivilegeNeed` is a path, the privileges that the token needs on the path, the role that contains them, and their
purpose: the end of a sentence, such as `for backups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.proxmox_context import ProxmoxContext
from executor.proxmox import privileges
from executor.proxmox.template_needs import privilege_needs_of_template

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)


def check_privileges(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the token has each privilege that the actions need with these settings.

    `context.zone_by_bridge` contains the SDN zone of each bridge and VNet to which VMs may be attached.
    """
    needs = privilege_needs_of_settings(context, context.zone_by_bridge)
    granted_by_path = {path: context.reader.permissions(path) for path in dict.fromkeys(need.path for need in needs)}
    missing_privileges_by_need = privileges.find_unmet_needs(needs, granted_by_path)
    if all(missing_privileges_by_need.get(need) == need.privileges for need in needs):
        yield _no_privileges_result(context, needs)
        return
    for need in needs:
        if need in missing_privileges_by_need:
            text = (
                f"{', '.join(sorted(missing_privileges_by_need[need]))} missing on {need.path}, needed {need.purpose}"
            )
            yield _RESULT_FACTORY.fail("privileges", text, *grant_commands(context, need))
    if not missing_privileges_by_need:
        yield _RESULT_FACTORY.ok("privileges", f"the token has all needed privileges on {', '.join(granted_by_path)}")
    # The agent may place VMs on the `allowed_nodes` (PROXMOX_NODES).
    if len(context.allowed_nodes) > 1 and "Sys.Audit" not in context.reader.permissions("/nodes"):
        # The result is ok, because the agent can place VMs without this privilege.
        reason = "the token may not read the load of the nodes (Sys.Audit on /nodes)"
        yield _RESULT_FACTORY.ok("placement", f"each new VM is placed on its template's node, because {reason}")


def _no_privileges_result(context: ProxmoxContext, needs: list[privileges.PrivilegeNeed]) -> CheckResult:
    """Return one result for a token that has none of the needed privileges, instead of one result for each need."""
    text = "the token has none of the needed privileges on VMs, storages and bridges"
    if context.settings.proxmox_token_id:
        text += ": a token with privilege separation needs its own permissions (ACL entries)"
    commands = [command for need in needs for command in grant_commands(context, need)]
    return _RESULT_FACTORY.fail("privileges", text, *dict.fromkeys(commands))


def privilege_needs_of_settings(
    context: ProxmoxContext, zone_by_bridge: Mapping[str, str]
) -> list[privileges.PrivilegeNeed]:
    """Return the privileges that the actions need with the settings of the context.

    The keys of `zone_by_bridge` are the bridges and VNets to which VMs may be attached, the values are their SDN zones.
    """
    settings = context.settings
    selectable_rows = [row for row in context.storages if row.name in context.storages_selectable_by_services]
    selectable_disk_storages = {row.name for row in selectable_rows if row.accepts_disks}
    selectable_storages_not_for_disks = {row.name for row in selectable_rows if not row.accepts_disks}
    needs = privileges.list_privilege_needs(
        context.major_version,
        disk_storages={*context.disk_storages, *selectable_disk_storages},
        bridges=zone_by_bridge,
        iso_and_vztmpl_storages={
            # The values of PROXMOX_OS_TEMPLATES are volumes of container templates.
            *(volume.partition(":")[0] for volume in settings.proxmox_os_templates.values()),
            # A selectable storage not for disks, except the backup storage, counts as one for ISO images and templates.
            *(selectable_storages_not_for_disks - {settings.proxmox_backup_storage}),
        },
        backup_storage=settings.proxmox_backup_storage,
    )
    for _image, config in context.template_configs:  # an image is the name by which services choose a template
        needs += privilege_needs_of_template(config)
    return list(dict.fromkeys(needs))


def grant_commands(context: ProxmoxContext, need: privileges.PrivilegeNeed) -> list[str]:
    """Return the `pveum` commands that grant the token the needed privileges."""
    settings = context.settings
    return privileges.make_pveum_commands(
        [need], context.reader.roles(), user=settings.proxmox_user, token_id=settings.proxmox_token_id
    )
