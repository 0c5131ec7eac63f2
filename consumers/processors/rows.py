"""What the runtime keeps of each row of an input: its newest version, and the operator's note.

    key     "_rows", NUL, topic, NUL, the record's key
    value   epoch u64, commit LSN u64, ordinal u64, state u8 (0 deleted, 1 there, 2 there with a note), then
            the note, or the delete's commit time in seconds u32

A deleted row's version stays: an older event must not bring it back. It may be forgotten when the topic has
gone on for longer than it keeps events: what stands behind in the log was written after all that is older. A
floor (H5) is kept beside them, and covers rows that are not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from consumers.processors.context import Version
from consumers.processors.state import NUL, Overlay, table_prefix

DELETED, THERE, NOTED = 0, 1, 2
BOTTOM: Version = (0, 0, 0)

_ROWS = table_prefix("_rows")
_FLOORS = table_prefix("_floors")
_HEAD = struct.Struct(">QQQB")
_VERSION = struct.Struct(">QQQ")
_SECONDS = struct.Struct(">I")
_LAST_S = 2**32 - 1
_pack, _unpack, _size = _HEAD.pack, _HEAD.unpack_from, _HEAD.size


class Rows:
    """Of one input topic in one task."""

    __slots__ = ("_floor_key", "_overlay", "_prefix", "floor", "newest_us")

    def __init__(self, overlay: Overlay, topic: str) -> None:
        self._overlay = overlay
        self._prefix = _ROWS + topic.encode() + NUL
        self._floor_key = _FLOORS + topic.encode()
        stored = overlay.get(self._floor_key)
        self.floor: Version = BOTTOM if stored is None else _version(stored)
        self.newest_us = 0  # commit time of the newest event since the task was opened

    def is_newer(self, key: bytes, version: Version) -> tuple[bool, bytes | None]:
        """Whether an event of the version counts, and the row's note."""
        if version <= self.floor:
            return False, None
        value = self._overlay.get(self._prefix + key)
        if value is None:
            return True, None
        epoch, lsn, ordinal, state = _unpack(value)
        return version > (epoch, lsn, ordinal), value[_size:] if state == NOTED else None

    def note(self, key: bytes) -> bytes | None:
        value = self._overlay.get(self._prefix + key)
        return value[_size:] if value is not None and value[_size - 1] == NOTED else None

    def put(self, key: bytes, version: Version, note: bytes | None, commit_us: int) -> None:
        self.newest_us = max(self.newest_us, commit_us)
        value = _pack(*version, THERE if note is None else NOTED)
        self._overlay.put(self._prefix + key, value + note if note else value)

    def put_deleted(self, key: bytes, version: Version, commit_us: int) -> None:
        self.newest_us = max(self.newest_us, commit_us)
        value = None  # where the floor holds older events off
        if version > self.floor:
            seconds = min(max(commit_us // 1_000_000, 0), _LAST_S)
            value = _pack(*version, DELETED) + _SECONDS.pack(seconds)
        self._overlay.put(self._prefix + key, value)

    def forget(self, before_s: int, behind: bytes, limit: int) -> bytes:
        """Drop the versions of rows that were deleted before. Looks at `limit` rows whose keys are behind
        this one; the last of them, or nothing after the end."""
        cut, key = len(self._prefix), b""
        found = self._overlay.scan(self._prefix, first=self._prefix + behind + NUL if behind else b"")
        count = 0
        for full_key, value in islice(found, limit):
            count += 1
            key = full_key[cut:]
            if value[_size - 1] != DELETED:
                continue
            epoch, lsn, ordinal, _ = _unpack(value)
            if _SECONDS.unpack_from(value, _size)[0] < before_s or (epoch, lsn, ordinal) <= self.floor:
                self._overlay.put(full_key, None)
        return key if count == limit else b""

    def raise_floor(self, version: Version) -> bool:
        """False: it is there already, or higher."""
        if version <= self.floor:
            return False
        self.floor = version
        self._overlay.put(self._floor_key, _VERSION.pack(*version))
        return True

    def covered(self) -> Iterator[tuple[bytes, bytes | None]]:
        """(key, note) of the rows that are there and at or below the floor; they may change meanwhile."""
        cut = len(self._prefix)
        for full_key, _ in self._overlay.scan(self._prefix):
            value = self._overlay.get(full_key)
            if value is None:
                continue
            epoch, lsn, ordinal, state = _unpack(value)
            if state != DELETED and (epoch, lsn, ordinal) <= self.floor:
                yield full_key[cut:], value[_size:] if state == NOTED else None


def _version(value: bytes) -> Version:
    epoch, lsn, ordinal = _VERSION.unpack(value)
    return epoch, lsn, ordinal
