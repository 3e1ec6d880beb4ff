# SPDX-License-Identifier: Apache-2.0
"""Defines the members of the request `vm` that some action plugins require, and others do not."""

from __future__ import annotations

#: The required members, by the name of the action plugin. The members that every action plugin requires are not
#: included.
REQUIRED_MEMBERS_BY_PLUGIN: dict[str, tuple[str, ...]] = {"vm_present": ("cores", "memory_mib", "disk_gib")}
