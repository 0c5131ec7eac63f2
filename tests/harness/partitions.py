"""Operators over partitioned logs in any interleaving: what a processor's tasks would do, hop by hop.

For property tests of pure operators: partitions, per-partition order, notes, floors by row and the version
guard are as the runtime has them; Kafka, state on disk and processes are not, which tests/processors have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orjson import dumps

from consumers.processors.context import Change, Forwarded, Given, Hop, Row
from consumers.processors.memory import MemoryStore
from streamer.changes.topics import partition_for

PARTITIONS = 3


class _Table:
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._prefix = name.encode() + b"\x00"

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(self._prefix + key)

    def put(self, key: bytes, value: bytes) -> None:
        self._store.write({self._prefix + key: value}, None)

    def delete(self, key: bytes) -> None:
        self._store.write({self._prefix + key: None}, None)

    def scan(self, prefix: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        start = len(self._prefix)
        for key, value in self._store.scan(self._prefix + prefix, reverse=reverse):
            yield key[start:], value


class _Unit:
    """A Context of one hop and partition."""

    def __init__(self, log: Log, hop: int, partition: int) -> None:
        self._log, self._hop = log, hop
        self._store = log.stores[hop][partition]
        self.note: bytes | None = None

    def table(self, name: str) -> _Table:
        return _Table(self._store, name)

    def forward(self, key: bytes, value: bytes) -> None:
        assert self._hop + 1 < len(self._log.hops), "the last hop forwards"
        self._log.queues[self._hop + 1][partition_for(key, PARTITIONS)].append(Forwarded(key, value))

    def emit(
        self,
        key: Row,
        after: Row | None,
        *,
        before: Row | None = None,
        op: str | None = None,
        table: str | None = None,
    ) -> None:
        place = (table, dumps(key))
        self._log.emitted += 1
        if after is None:
            assert place in self._log.derived, f"delete of {place}, which is not there"
            assert before is None or self._log.derived[place] == before
            del self._log.derived[place]
        else:
            assert before is None or self._log.derived[place] == before
            self._log.derived[place] = after

    def publish(self, key: bytes | None, value: bytes | None, *, table: str | None = None) -> None:
        self._log.published.append((table, key, value))


class Log:
    """`choose(n)`: which of n waiting partitions is handled next."""

    def __init__(self, hops: Sequence[Hop], choose: Callable[[int], int]) -> None:
        self.hops = hops
        self._choose = choose
        self.queues: list[list[deque[Any]]] = [[deque() for _ in range(PARTITIONS)] for _ in hops]
        self.stores = [[MemoryStore() for _ in range(PARTITIONS)] for _ in hops]
        self._notes: dict[tuple[str, bytes], bytes | None] = {}
        self._lsn = 0
        self.derived: dict[tuple[str | None, bytes], Row] = {}
        self.emitted = 0
        self.published: list[tuple[str | None, bytes | None, bytes | None]] = []

    def write(self, topic: str, op: str, key: Row, after: Row | None, schema_id: str = "") -> None:
        self._lsn += 1
        raw = dumps(key)
        partition = partition_for(raw, PARTITIONS)
        change = Change(
            topic, partition, self._lsn, op, key, None, after, (1, self._lsn, 0), 0, schema_id, raw_key=raw
        )
        self.queues[0][partition].append(change)

    def step(self) -> bool:
        """Handle one waiting record; False: there is none."""
        waiting = [
            (hop, partition)
            for hop, queues in enumerate(self.queues)
            for partition, queue in enumerate(queues)
            if queue
        ]
        if not waiting:
            return False
        hop, partition = waiting[self._choose(len(waiting))]
        record = self.queues[hop][partition].popleft()
        unit = _Unit(self, hop, partition)
        if isinstance(record, Change):
            place = record.topic, record.raw_key
            unit.note = self._notes.get(place)
            self.hops[hop].handle(record, unit)
            self._notes[place] = None if record.after is None else unit.note
        else:
            self.hops[hop].handle(record, unit)
        return True

    def drain(self) -> None:
        while self.step():
            pass

    def rows(self, table: str | None = None) -> list[Row]:
        return [row for (of, _), row in self.derived.items() if of == table]


def given(inputs: Sequence[str], key: Sequence[str] = ()) -> Given:
    return Given("test", tuple(inputs), "out", tuple(key))
