"""Who has a state folder: the first that locks its file LOCK, until its process ends. Owns that file.

A record lock of the kernel's: the children that a body forks do not have it, too, as they would a flock, and
go on holding it when their parent was killed. Its two gaps are closed here: a process does not lock out
itself, and gives the lock up by closing the file once more, opened by anybody.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

FILE = "LOCK"

_mine: set[Path] = set()  # folders that this process has


class Taken(Exception):
    """By another process, or by this one. `pid`: None where the file does not say it."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class FolderLock:
    def __init__(self, folder: Path) -> None:
        """Raises Taken, OSError."""
        self._folder = folder.resolve()
        if self._folder in _mine:
            raise Taken(os.getpid())
        self._file = (folder / FILE).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pid = _written(self._file)
            self._file.close()
            raise Taken(pid) from None
        _mine.add(self._folder)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def close(self) -> None:
        _mine.discard(self._folder)
        self._file.close()


def _written(file: TextIO) -> int | None:
    file.seek(0)
    text = file.read().strip()
    return int(text) if text.isdecimal() else None
