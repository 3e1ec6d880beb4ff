"""Mounts small tmpfs file systems in a mount namespace of this process, so that a test may fill them.

Only this process and the processes that it starts see them. The machine's own disks and /dev/shm are not changed.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MIB = 1024 * 1024
#: The sizes of the file systems for the data folder (the agent requires 200 MiB) and the run folder (16 MiB).
DATA_MIB = 600
RUN_MIB = 128


@dataclass(frozen=True)
class SmallDisk:
    """A small file system, which `fill` fills until `free` is called."""

    mount: Path

    @property
    def folder(self) -> Path:
        """The folder for the executor's files."""
        return self.mount / "smith"

    @property
    def _ballast(self) -> Path:
        return self.mount / "ballast"

    def fill(self) -> None:
        """Use all free space."""
        space = os.statvfs(self.mount)
        fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            left = space.f_bavail * space.f_frsize
            size = os.fstat(fd).st_size
            while left >= space.f_frsize:
                try:
                    os.posix_fallocate(fd, size, left)
                    size += left
                except OSError:  # another process has used a part of it meanwhile
                    left //= 2
        finally:
            os.close(fd)

    def free(self) -> None:
        """Free the space that `fill` has used."""
        self._ballast.unlink(missing_ok=True)


def enter_mount_namespace() -> str:
    """Give this process a mount namespace of its own. Return why that is not possible; '' if it was done.

    Call this before the process starts a thread: only the calling thread enters the namespace. A user who is not root
    also gets a user namespace, in which the user may mount file systems.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return f"the mounts cannot be made private: {os.strerror(ctypes.get_errno())}"
    return ""


def mount_small_disk(folder: Path, size_mib: int) -> SmallDisk:
    """Mount a tmpfs of this size. Call `enter_mount_namespace` before. Raises OSError."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size_mib}m,mode=0700".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {folder}")
    return SmallDisk(folder)


def unmount(disk: SmallDisk) -> None:
    """Unmount a file system, even if a process still uses it."""
    ctypes.CDLL(None).umount2(os.fsencode(disk.mount), 2)  # MNT_DETACH
