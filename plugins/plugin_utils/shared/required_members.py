# SPDX-License-Identifier: Apache-2.0
"""Defines the members of `vm` that an action needs beside those that every action needs."""

from __future__ import annotations

REQUIRED_MEMBERS: dict[str, tuple[str, ...]] = {"vm_present": ("cores", "memory_mib", "disk_gib")}
