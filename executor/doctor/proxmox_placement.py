"""Checks, for each template, whether the placement finds a node for a VM of this template."""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor.checks import Area, CheckResult, ResultFactory, setting_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.errors import JobError
from executor.placement import templates
from executor.placement.choice import PlacementRequest
from executor.placement.placer import Placer
from executor.proxmox.rows import is_template
from executor.shared.error_codes import ErrorCode

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)


def check_placement(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the placement finds a node for a VM of each template in PROXMOX_TEMPLATES. Yields only failures.

    The node is chosen in the same way as for a create job, but for a VM without memory and cores. Nothing is allocated.
    """
    placer = Placer(context.reader, context.settings)
    # If a VM in PROXMOX_TEMPLATES is not a template, the check of the templates reports it.
    images = [image for image, config in context.template_configs if is_template(config)]
    for image in images:
        try:
            placer.preview(_placement_request(context, image))
        except JobError as error:
            yield _RESULT_FACTORY.fail(
                "placement", f"{image}: {error.operator_detail}", *_remedies(context, image, error)
            )


def _placement_request(context: ProxmoxContext, image: str) -> PlacementRequest:
    nodes = context.settings.proxmox_nodes
    node = nodes[0] if len(nodes) == 1 else ""
    bridge = context.settings.proxmox_bridge
    return PlacementRequest(vmid=0, image=image, memory_mib=0, cores=0, bridge=bridge, node=node)


def _remedies(context: ProxmoxContext, image: str, error: JobError) -> list[str]:
    """Return settings with which the placement would find a node for a VM of the image."""
    if error.code is not ErrorCode.NOT_FOUND:
        return ["see the results of the checks `nodes` and `storage`"]
    row = next(row for row in context.guests if row.vmid == context.settings.proxmox_templates[image])
    template = templates.template_facts(row, dict(context.template_configs)[image])
    shared_storages = {row.name for row in context.storages if row.is_shared and row.accepts_disks}
    remedies = []
    # If all disks of the template are on shared storages, only the setting PROXMOX_STORAGE can be the reason for which
    # the template cannot be cloned to another node.
    if template.storages and template.storages <= shared_storages:
        remedies.append(setting_line("PROXMOX_STORAGE", min(template.storages)))
    remedies.append(setting_line("PROXMOX_NODES", ",".join(sorted({*context.settings.proxmox_nodes, row.node}))))
    return remedies
