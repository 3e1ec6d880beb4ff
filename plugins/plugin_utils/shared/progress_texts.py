# SPDX-License-Identifier: Apache-2.0
"""The texts of progress lines that the executor recognises."""

from __future__ import annotations

#: The beginning of the progress line that an action plugin writes when the Proxmox tasks of a change have ended, and
#: before it compares the guest with the request.
VERIFYING_PREFIX = "verifying the outcome of"
