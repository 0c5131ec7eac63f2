"""SQLite's file of the control database: whether it is there, is the one that was opened, and who locks it.

Beside it lies a hidden file with its identity: where that is, there has been a database, and one that is gone
was taken away. Then it is made anew by nobody but `makes_anew`. Nothing here reads or writes what it holds.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from streamer.errors import RetryableError

WHERE = "control.url"
_WAL_LOCKS = range(120, 123)  # of -shm: to write, to checkpoint, to recover (walformat.html, 2.3.1)
_FILE_LOCKS = range(0x40000000, 0x40000000 + 512)  # pending, reserved, shared (os_unix.c)

_Place = tuple[int, int]  # device and inode


class ControlFile:
    def __init__(self, path: Path, *, makes_anew: bool) -> None:
        self.path = path
        self._note = path.with_name(f".{path.name}.identity")
        self._makes_anew = makes_anew
        self._place: _Place | None = None  # as it was when it was opened
        self._identity = ""
        self._other: _Place | None = None  # what lies there now, and is another database

    def make_folder(self) -> None:
        """Raises OSError."""
        if self._may_make():
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def connect(self) -> sqlite3.Connection:
        mode = "rwc" if self._may_make() else "rw"
        return sqlite3.connect(self._uri(mode), uri=True, check_same_thread=False)

    def is_open(self, identity: str) -> bool:
        """It has been opened and is this one. Whether it is another than was here before. Raises
        RetryableError."""
        try:
            before = self._note.read_text(encoding="utf-8") if self._note.exists() else ""
            if before != identity:
                draft = self._note.with_name(f"{self._note.name}.{os.getpid()}.{threading.get_ident()}")
                draft.write_text(identity, encoding="utf-8")
                draft.replace(self._note)
        except OSError as error:
            raise RetryableError(
                f"beside the control database nothing can be noted: {self._note}: {error.strerror}",
                where=WHERE,
                fix="see that its disk is not full and that this user may write its folder",
            ) from error
        if self._place is None:
            self._place, self._identity = self._now(), identity
        return before not in ("", identity)

    def has_moved(self) -> bool:
        """Whether it is the same database in another file. Raises RetryableError while there is none, or
        another."""
        try:
            now = self._now()
        except OSError as error:
            if self._may_make():
                return False
            raise RetryableError(
                f"the control database does not answer: its file is gone: {self.path}: {error.strerror}",
                where=WHERE,
                fix="put it back; or start `tailrace serve` again, which begins an empty one:"
                " without history, pauses and changed schedules",
            ) from error
        if self._place is None or now == self._place:
            return False
        if now == self._other or self._identity_there() != self._identity:
            self._other = now
            raise RetryableError(
                f"the control database does not answer: another one is in its place: {self.path}",
                where=WHERE,
                fix="put back the one that was there; or start `tailrace serve` again, which goes on with"
                " this one: with its history, pauses and changed schedules alone",
            )
        self._place = now
        return True

    def holder(self) -> str:
        """Which process keeps others from writing, as a sentence's end; empty: nobody can tell."""
        pids = set()
        for path, bytes_ in ((Path(f"{self.path}-shm"), _WAL_LOCKS), (self.path, _FILE_LOCKS)):
            with suppress(OSError):
                inode = path.stat().st_ino
                pids |= {pid for pid in _writers(inode, bytes_) if pid != os.getpid()}
        return f": {', '.join(_called(pid) for pid in sorted(pids))} has locked it" if pids else ""

    def _may_make(self) -> bool:
        return self._place is None and (self._makes_anew or not self._note.exists())

    def _uri(self, mode: str) -> str:
        return f"file:{quote(str(self.path))}?mode={mode}"

    def _now(self) -> _Place:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def _identity_there(self) -> str:
        """Empty of a file that has none."""
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._uri("rw"), uri=True)) as there:
            row = there.execute("SELECT identity FROM tailrace_control_identity").fetchone()
            return "" if row is None else str(row[0])
        return ""


def _writers(inode: int, bytes_: range) -> set[int]:
    """Processes that have locked some of these bytes for writing, as the kernel tells."""
    found = set()
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        if len(words) != 8 or words[3] != "WRITE" or not words[5].endswith(f":{inode}"):
            continue
        first, last = int(words[6]), bytes_[-1] if words[7] == "EOF" else int(words[7])
        if first <= bytes_[-1] and last >= bytes_[0]:
            found.add(int(words[4]))
    return found


def _called(pid: int) -> str:
    name, state = "?", ""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        name, state = text[text.index("(") + 1 : text.rindex(")")], text.rpartition(")")[2].split()[0]
    return f"process {pid} ({name}{', which is stopped' if state == 'T' else ''})"
