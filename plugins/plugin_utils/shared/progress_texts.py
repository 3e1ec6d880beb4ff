# SPDX-License-Identifier: Apache-2.0
"""The texts of progress lines that the executor recognises."""

from __future__ import annotations

#: The beginning of the step after a change: its Proxmox tasks have ended, and the guest is compared with the request.
VERIFYING = "verifying the outcome of"
