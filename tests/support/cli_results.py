"""Results of jobs for the tests of commands."""

from __future__ import annotations

from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

BAD = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space on local-zfs (run create-1)")
GOOD = JobResult(succeeded=True, vm={"vmid": 100123, "node": "pve1", "status": "running"})
