"""A disk of a few megabytes that fills up, and grows when somebody makes room: a tmpfs.

Mounting is root's: as another user it goes by `sudo -n`, and without that right the test fails.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SmallDisk:
    path: Path

    def grow(self, megabytes: int) -> None:
        _as_root("mount", "-o", f"remount,size={megabytes}m", str(self.path))

    @property
    def free_bytes(self) -> int:
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize


@contextmanager
def small_disk(path: Path, megabytes: int, owner: tuple[int, int] | None = None) -> Iterator[SmallDisk]:
    """`owner`: (uid, gid) of who may write to it; this process's own unless given."""
    uid, gid = owner or (os.geteuid(), os.getegid())
    path.mkdir()
    options = f"size={megabytes}m,mode=0700,uid={uid},gid={gid}"
    _as_root("mount", "-t", "tmpfs", "-o", options, "tailrace-test", str(path))
    try:
        yield SmallDisk(path)
    finally:
        _as_root("umount", "--lazy", str(path))


def _as_root(*command: str) -> None:
    sudo = () if os.geteuid() == 0 else ("sudo", "-n")
    done = subprocess.run([*sudo, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
