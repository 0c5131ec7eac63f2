"""A task's state: named tables over one ordered store, and what is written but not committed yet.

Writes stay in memory until the Kafka transaction that holds their changelog records has committed; then the
store gets them in one batch, with the changelog's offset: it is never ahead of the changelog, and what it
lacks after a kill is read again. A unit that fails is taken back write by write.

    full key = table name, NUL, key
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from streamer.errors import BadRecordError, TailraceError

NUL = b"\0"
_ABSENT = object()


class Mark(NamedTuple):
    """The last commit that a store holds: the offset after its changelog records, and its id."""

    next_offset: int
    commit: str


class Store(Protocol):
    """Committed state of one task. Only `write` changes it, all or nothing."""

    @property
    def mark(self) -> Mark | None: ...
    @property
    def failure(self) -> TailraceError | None:
        """What reading or writing has raised, and whoever asked may have caught: it cannot be relied on."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, *, reverse: bool, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """`first`: where to begin, a key with the prefix; not in reverse."""

    def write(self, changes: Mapping[bytes, bytes | None], mark: Mark | None) -> None:
        """None deletes. The mark is written with them."""

    def clear(self) -> None: ...
    def size_bytes(self) -> int: ...
    def close(self) -> None: ...


class Overlay:
    """A store with uncommitted writes above it."""

    __slots__ = ("_keys", "_undo", "store", "written")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.written: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] = []  # of `written`, in order, for scans
        self._undo: list[tuple[bytes, Any]] = []

    def begin(self) -> None:
        """A unit begins; the one before is kept."""
        self._undo.clear()

    def roll_back(self) -> None:
        """The unit's writes are gone."""
        written = self.written
        for key, before in reversed(self._undo):
            if before is _ABSENT:
                del written[key]
                del self._keys[bisect_left(self._keys, key)]
            else:
                written[key] = before
        self._undo.clear()

    def get(self, key: bytes) -> bytes | None:
        found = self.written.get(key, _ABSENT)
        if found is _ABSENT:
            return self.store.get(key)
        return found  # type: ignore[return-value]

    def put(self, key: bytes, value: bytes | None) -> None:
        written = self.written
        before = written.get(key, _ABSENT)
        self._undo.append((key, before))
        if before is _ABSENT:
            insort(self._keys, key)
        written[key] = value

    def scan(
        self, prefix: bytes, *, reverse: bool = False, first: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Committed and written together, as they are now."""
        above: list[tuple[bytes, bytes | None]] = []
        for index in range(bisect_left(self._keys, first or prefix), len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                break
            above.append((key, self.written[key]))
        if reverse:
            above.reverse()
        below = self.store.scan(prefix, reverse=reverse, first=first)
        return _merged(below, above, reverse) if above else below

    def check(self) -> None:
        """Raises what the store has failed by."""
        if (failure := self.store.failure) is not None:
            raise failure

    def committed(self, mark: Mark) -> None:
        """The transaction with these writes is in Kafka."""
        self.store.write(self.written, mark)
        self.forget()

    def forget(self) -> None:
        self.written = {}
        self._keys = []
        self._undo.clear()


def _merged(
    below: Iterator[tuple[bytes, bytes]], above: list[tuple[bytes, bytes | None]], reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    waiting = iter(above)
    written = next(waiting, None)
    for key, value in below:
        while written is not None and (written[0] > key if reverse else written[0] < key):
            if written[1] is not None:
                yield written[0], written[1]
            written = next(waiting, None)
        if written is not None and written[0] == key:
            if written[1] is not None:
                yield key, written[1]
            written = next(waiting, None)
        else:
            yield key, value
    while written is not None:
        if written[1] is not None:
            yield written[0], written[1]
        written = next(waiting, None)


class StateTable:
    """One table of a task: the `Table` of consumers.processors.context."""

    __slots__ = ("_limit_bytes", "_overlay", "_prefix")

    def __init__(self, overlay: Overlay, name: str, limit_bytes: int) -> None:
        """`limit_bytes`: of a key and its value, which go through Kafka as one record."""
        self._overlay = overlay
        self._prefix = table_prefix(name)
        self._limit_bytes = limit_bytes

    def get(self, key: bytes) -> bytes | None:
        return self._overlay.get(self._prefix + key)

    def put(self, key: bytes, value: bytes) -> None:
        """Raises BadRecordError when it is too large for a record of the changelog."""
        if len(key) + len(value) > self._limit_bytes:
            raise BadRecordError(
                f"{len(key) + len(value):,} bytes for one key of a table, the limit is {self._limit_bytes:,}",
                where=f"table {self._prefix[:-1].decode()}",
                fix="keep a key for each part of it, or raise kafka.topics.max_message",
            )
        self._overlay.put(self._prefix + key, value)

    def delete(self, key: bytes) -> None:
        full = self._prefix + key
        if self._overlay.get(full) is not None:
            self._overlay.put(full, None)

    def scan(self, prefix: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        cut = len(self._prefix)
        for key, value in self._overlay.scan(self._prefix + prefix, reverse=reverse):
            yield key[cut:], value


def table_prefix(name: str) -> bytes:
    return name.encode() + NUL


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key above all that begin so; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
