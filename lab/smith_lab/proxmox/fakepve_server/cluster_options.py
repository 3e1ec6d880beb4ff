# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers `/cluster/options`, and checks whether a caller may change tags, as Proxmox does.

fakepve is the simulation of Proxmox that this package extends. Source of the rules: pve-guest-common,
PVE/GuestHelpers.pm, assert_tag_permissions.
"""

from __future__ import annotations

from typing import Any

from fakepve import schema
from fakepve.model import FakeVm, PveError
from fakepve.routing import split_list

from smith_lab.proxmox.fakepve_server.configuration import ConfigurationChanges

#: The permission rule, in fakepve's schema, for the request that reads the options of the cluster.
OPTIONS_PERMISSIONS = schema.load().paths["/cluster/options"]["GET"].get("permissions")

#: The members of the option `user-tag-access` that tests can set.
USER_TAG_ACCESS_MEMBERS = ("user-allow", "user-allow-list")


class ClusterOptions(ConfigurationChanges):
    """Stores the options of the cluster that decide which tags may be changed, and checks changes of tags.

    The options are `registered-tags` and the members of `user-tag-access`: `user-allow` and `user-allow-list`.
    The base class changes the configurations of VMs.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Tests set the options with the stand-in's control command `options` (`do_options` in verbs_cluster.py).
        self.options: dict[str, Any] = {}

    def _routes_cluster_options(self) -> list[tuple[str, str, Any]]:
        """Return the route of GET /cluster/options. fakepve calls every method whose name starts with `_routes_`."""
        return [("GET", "/cluster/options", self._cluster_options)]

    def check_permissions(self, user: str, perms: Any, values: dict[str, Any], declared: Any = None) -> None:
        """Check the permissions of a request by `perms`, the permission rule in fakepve's schema.

        If `perms` is None, only root@pam may send the request. `values` contains the parameters of the request's path,
        query and body. `declared` contains the parameters that the schema allows in the request.
        The request for the cluster's options is not checked: Proxmox answers every user, but fakepve's rule requires
        Sys.Audit.
        """
        if perms is None or perms is not OPTIONS_PERMISSIONS:
            super().check_permissions(user, perms, values, declared)

    async def _cluster_options(self, _v: dict[str, Any], user: str) -> dict[str, Any]:
        """Return to a caller with Sys.Audit on `/` the options that are set, to other callers only the allowed tags.

        Source: pve-manager, PVE/API2/Cluster.pm, get_options.
        """
        allowed_tags = {"allowed-tags": sorted(self._allowed_tags(user))}
        if not self.allowed(user, "/", "Sys.Audit"):
            return allowed_tags
        user_tag_access = {name: self.options[name] for name in USER_TAG_ACCESS_MEMBERS if name in self.options}
        registered_tags = self.options.get("registered-tags")
        return {
            "keyboard": "en-us",
            **({"user-tag-access": user_tag_access} if user_tag_access else {}),
            **({"registered-tags": registered_tags} if registered_tags else {}),
            **allowed_tags,
        }

    def _user_allow_option(self) -> str:
        return str(self.options.get("user-allow", "free"))

    def _allowed_tags(self, user: str) -> set[str]:
        is_privileged = self.allowed(user, "/", "Sys.Modify")
        user_allow, registered_tags = self._user_allow_option(), set(self.options.get("registered-tags", []))
        tags = set() if user_allow == "none" and not is_privileged else set(self.options.get("user-allow-list", []))
        if user_allow in ("free", "existing") or is_privileged:
            tags |= {tag for guest in [*self.vms, *self.cts] for tag in split_list(guest.config.get("tags"))}
        return tags | registered_tags if is_privileged else tags - registered_tags

    async def _apply_config(self, vm: FakeVm, user: str, changes: dict[str, Any]) -> None:
        """Change the configuration. Raises PveError (403) if the caller may not change one of the tags."""
        if "tags" in changes or "tags" in split_list(changes.get("delete")):
            self._check_tags(user, vm.config.get("tags"), changes.get("tags"))
        await super()._apply_config(vm, user, changes)

    async def _qm_create(self, v: dict[str, Any], user: str) -> str:
        """Create a VM from `v`, the parameters of the request. Raises PveError (403) if a tag is not allowed."""
        self._check_tags(user, None, v.get("tags"))
        return str(await super()._qm_create(v, user))

    def _check_tags(self, user: str, old_tags: Any, new_tags: Any) -> None:
        """Raise PveError (403) if the caller may not use a tag that is added or removed."""
        if self.allowed(user, "/", "Sys.Modify"):
            return
        may_use_any_tag = self._user_allow_option() == "free"
        registered_tags = set(self.options.get("registered-tags", []))
        for tag in sorted({*split_list(old_tags)} ^ {str(tag).lower() for tag in split_list(new_tags)}):
            if tag in registered_tags or not (may_use_any_tag or tag in self._allowed_tags(user)):
                raise PveError(403, f"Permission check failed (/, Sys.Modify for modifying tag '{tag}')")
