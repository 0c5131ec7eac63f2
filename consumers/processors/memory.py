"""State in memory: for tests and trials. Every start reads the whole changelog."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from consumers.processors.state import Mark, after_prefix


class MemoryStore:
    """A dictionary, and its keys in order."""

    failure: None = None

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._bytes = 0
        self.mark: Mark | None = None

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def scan(self, prefix: bytes, *, reverse: bool, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        end = after_prefix(prefix)
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        keys = self._keys[bisect_left(self._keys, first or prefix) : last]
        if reverse:
            keys.reverse()
        rows = self._rows
        return iter([(key, rows[key]) for key in keys])

    def write(self, changes: Mapping[bytes, bytes | None], mark: Mark | None) -> None:
        rows, keys = self._rows, self._keys
        for key, value in changes.items():
            before = rows.get(key)
            if before is not None:
                self._bytes -= len(key) + len(before)
            if value is not None:
                if before is None:
                    insort(keys, key)
                rows[key] = value
                self._bytes += len(key) + len(value)
            elif before is not None:
                del rows[key]
                del keys[bisect_left(keys, key)]
        self.mark = mark

    def clear(self) -> None:
        self._rows.clear()
        self._keys.clear()
        self._bytes = 0
        self.mark = None

    def size_bytes(self) -> int:
        return self._bytes

    def close(self) -> None:
        pass
