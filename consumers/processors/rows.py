"""What the runtime keeps of each row of an input: its newest version, and the operator's note.

    key     "_rows", NUL, topic, NUL, the record's key
    value   epoch u64, commit LSN u64, ordinal u64, state u8 (0 deleted, 1 there, 2 there with a note), note

A deleted row's version stays: an older event must not bring it back. A floor (H5) is kept beside them, and
covers rows that are not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from consumers.processors.context import Version
from consumers.processors.state import NUL, Overlay, table_prefix

DELETED, THERE, NOTED = 0, 1, 2
BOTTOM: Version = (0, 0, 0)

_ROWS = table_prefix("_rows")
_FLOORS = table_prefix("_floors")
_HEAD = struct.Struct(">QQQB")
_VERSION = struct.Struct(">QQQ")
_pack, _unpack, _size = _HEAD.pack, _HEAD.unpack_from, _HEAD.size


class Rows:
    """Of one input topic in one task."""

    __slots__ = ("_floor_key", "_overlay", "_prefix", "floor")

    def __init__(self, overlay: Overlay, topic: str) -> None:
        self._overlay = overlay
        self._prefix = _ROWS + topic.encode() + NUL
        self._floor_key = _FLOORS + topic.encode()
        stored = overlay.get(self._floor_key)
        self.floor: Version = BOTTOM if stored is None else _version(stored)

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

    def put(self, key: bytes, version: Version, note: bytes | None, *, deleted: bool) -> None:
        state = DELETED if deleted else THERE if note is None else NOTED
        value = _pack(*version, state)
        self._overlay.put(self._prefix + key, value + note if state == NOTED and note else value)

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
