"""The file of a SQLite session: whether it is still what its path names.

An open session goes on writing into a file that was renamed, deleted or replaced, and nobody tells it:
SQLite itself looks at that only when it closes one. See "How To Corrupt An SQLite Database File", chapter 2.4
(unlinking or renaming a database file while in use).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_BESIDE = ("-wal", "-shm")  # the log and its index, found by name

Identity = tuple[int, int] | None  # device and inode; None: nothing is there


def identity_of(path: Path) -> Identity:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class OpenFile:
    """Made when the session has read from it, so that its log is there too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity = identity_of(path)
        self._beside = {name: identity_of(name) for name in self._names()}

    def _names(self) -> list[Path]:
        return [self._path.with_name(self._path.name + ending) for ending in _BESIDE]

    @property
    def is_in_place(self) -> bool:
        return self.identity is not None and identity_of(self._path) == self.identity

    def leave(self) -> None:
        """Once the session is closed. The log of a file that is gone must not be read into the one that has
        taken its place; another process may have one of its own there by now."""
        if self.is_in_place:
            return
        for name, identity in self._beside.items():
            if identity is not None and identity_of(name) == identity:
                with suppress(OSError):
                    name.unlink()
