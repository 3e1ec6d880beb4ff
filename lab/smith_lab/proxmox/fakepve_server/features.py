# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers whether Proxmox can make a snapshot of a guest, or a linked clone of a VM.

Sources: qemu-server: PVE/QemuConfig.pm, has_feature; the function of the same name in pve-container.
"""

from __future__ import annotations

from typing import Any

from fakepve.lxc import SNAPSHOT_STORAGE
from fakepve.model import PveError
from fakepve.qemu import drives_of

from smith_lab.proxmox.fakepve_server.access import AccessChecks


class SnapshotAndCloneSupportRequests(AccessChecks):
    """Handles the requests whose path ends with `feature`.

    Their parameter `feature` is `snapshot`. For a VM, it may also be `clone`.

    `v` contains the values of a request: the parameters of the path, the query and the body.
    fakepve is the simulation of Proxmox that this package extends.
    """

    def _routes_features(self) -> list[tuple[str, str, Any]]:
        """Return the routes of the requests. fakepve calls every method whose name starts with `_routes_`."""
        return [
            ("GET", "/nodes/{node}/qemu/{vmid}/feature", self._feature_of_vm),
            ("GET", "/nodes/{node}/lxc/{vmid}/feature", self._feature_of_container),
        ]

    async def _feature_of_vm(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        vm = self.find(v["node"], v["vmid"])
        if v["feature"] == "clone":
            # A linked clone is possible only from base volumes, such as `base-9000-disk-0`. Templates have them.
            volumes = [volume for _key, volume, _props in drives_of(vm.config, skip_cdrom=True)]
            return self._feature_answer(v, user, all("base-" in volume for volume in volumes))
        # `_qm_can_snapshot` of fakepve returns whether every disk of a VM can have snapshots.
        return self._snapshot_feature(v, user, self._qm_can_snapshot(vm.config))

    async def _feature_of_container(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        storages = [mount["volume"].partition(":")[0] for _key, mount in self._find_ct(v["node"], v["vmid"]).volumes()]
        types = [self.storages[name].get("type") for name in storages if name in self.storages]
        return self._snapshot_feature(v, user, all(each in SNAPSHOT_STORAGE for each in types))

    def _snapshot_feature(self, v: dict[str, Any], user: str, has_feature: bool) -> dict[str, Any]:
        if v["feature"] != "snapshot":
            raise PveError(501, f"the stand-in does not know the feature {v['feature']}")
        return self._feature_answer(v, user, has_feature)

    def _feature_answer(self, v: dict[str, Any], user: str, has_feature: bool) -> dict[str, Any]:
        self.require(user, f"/vms/{v['vmid']}", "VM.Audit")
        return {"hasFeature": int(has_feature), "nodes": sorted(self.nodes)}
