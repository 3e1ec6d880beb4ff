"""Checks, for each template, whether the agent finds a node for a VM of this template.

An image is the name by which services choose a template. PROXMOX_TEMPLATES contains the VMID of each image's template.
"""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor.checks import Area, CheckResult, ResultFactory, quoted_setting_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.errors import JobError
from executor.placement import templates
from executor.placement.choice import PlacementRequest
from executor.placement.placer import Placer
from executor.proxmox.rows import is_template
from executor.shared.error_codes import ErrorCode

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)


def check_placement(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that the agent finds a node for a VM of each template in PROXMOX_TEMPLATES. Yields only failures.

    The node is chosen in the same way as for a create job, but for 0 MiB of memory and 0 cores. Nothing is allocated.
    """
    placer = Placer(context.reader, context.settings)
    # `template_configs` contains pairs: an image, and the Proxmox configuration of the VM that PROXMOX_TEMPLATES names.
    # If this VM is not a template, the check of the templates reports it.
    images = [image for image, config in context.template_configs if is_template(config)]
    for image in images:
        try:
            placer.preview(_placement_request(context, image))
        except JobError as error:
            text = f"{image}: {error.operator_detail}"  # the detailed error text, which FulcrumCore does not get
            yield _RESULT_FACTORY.fail("placement", text, *_remedies(context, image, error))


def _placement_request(context: ProxmoxContext, image: str) -> PlacementRequest:
    nodes = context.settings.proxmox_nodes
    node = nodes[0] if len(nodes) == 1 else ""  # '': the placer chooses the node
    bridge = context.settings.proxmox_bridge
    # No VM has the VMID 0. For the VMID of an existing VM, the placer would return the node of this VM.
    return PlacementRequest(vmid=0, image=image, memory_mib=0, cores=0, bridge=bridge, node=node)


def _remedies(context: ProxmoxContext, image: str, error: JobError) -> list[str]:
    """Return the remedies if no node is found for a VM of the image."""
    if error.code is not ErrorCode.NOT_FOUND:
        return ["see the results of the checks `nodes` and `storage`"]
    # NOT_FOUND: no allowed node has access to the template, the storage and the bridge. Each remedy is a setting.
    row = next(row for row in context.guests if row.vmid == context.settings.proxmox_templates[image])
    template = templates.parse_template(row, dict(context.template_configs)[image])
    shared_storages = {row.name for row in context.storages if row.is_shared and row.accepts_disks}
    remedies = []
    # First remedy: set a shared storage. A template whose disks are all on shared storages can be cloned to any node.
    if template.storages and template.storages <= shared_storages:
        remedies.append(quoted_setting_line("PROXMOX_STORAGE", min(template.storages)))
    # Second remedy: allow the node that has the template, in addition to the nodes that are allowed.
    remedies.append(quoted_setting_line("PROXMOX_NODES", ",".join(sorted({*context.settings.proxmox_nodes, row.node}))))
    return remedies
