"""What an operator and an agent's body see of the runtime. Pure: no I/O, neither Faust nor Kafka.

A processor has one to three hops. Hop 0 reads the inputs; a later hop reads what the hop before it has sent
by `forward`. One record handled by one hop is a unit: its writes and sends are kept whole, or, when the body
raises, not at all. A unit sees one partition (a task), and its tables hold what was written in this one.

Of each row of an input the runtime keeps its newest version and a note of the operator's, by (topic, key):
an event that is not newer is dropped before the operator sees it, and a truncate, or a reset's floor, comes
to hop 0 as a delete (op d, `before` None) of every row that it covers, with the note that was left last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from msgspec import Struct, json

from streamer.changes.schema import SchemaRecord

Version: TypeAlias = tuple[int, int, int]  # epoch, commit LSN (of a derived row its offset), ordinal
Row: TypeAlias = dict[str, Any]

HOPS_LIMIT = 3  # each is a trip through Kafka; a join with a group needs no more


class _OnlySource(Struct):
    source: dict[str, Any]


_read_source: Final = json.Decoder(_OnlySource).decode


@dataclass(slots=True)
class Change:
    """An event of an input: op c(reate) u(pdate) d(elete) r(ead by a snapshot); values in their JSON form.

    `before` of a delete may hold the key columns only, or be None when a truncate deletes the row.
    `commit_us`: when the source committed it, microseconds since 1970 UTC.
    """

    topic: str
    partition: int
    offset: int
    op: str
    key: Row
    before: Row | None
    after: Row | None
    version: Version
    commit_us: int
    schema_id: str
    raw_key: bytes = b""
    _source: Mapping[str, Any] | None = None
    _value: bytes | None = None

    @property
    def deleted(self) -> bool:
        return self.after is None

    @property
    def source(self) -> Mapping[str, Any]:
        """The envelope's `source`, read when first asked for: name, schema, table, ts_us, ...

        Empty for a delete that a truncate stands for.
        """
        if self._source is None:
            self._source = {} if self._value is None else _read_source(self._value).source
        return self._source

    def to(
        self,
        after: Row | None = None,
        *,
        key: Row | None = None,
        before: Row | None = None,
        table: str | None = None,
    ) -> Derived:
        """A derived row; without `after`: its delete. Without `key` it has the columns that the config's
        `key` names, else this change's own."""
        return Derived(key, after, before, table)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What the hop before has sent: `key` and `value` as it gave them."""

    key: bytes
    value: bytes
    offset: int = 0
    commit_us: int = 0


Input: TypeAlias = Change | Forwarded


@dataclass(frozen=True, slots=True)
class Derived:
    """A row for `out`, or (table given) for `out`.table. No `after`: delete it."""

    key: Row | None  # None: by the columns of the config's `key`, else the change's own
    after: Row | None
    before: Row | None = None
    table: str | None = None


class Table(Protocol):
    """Bytes to bytes, ordered by key; sees the unit's own writes."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, prefix: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """What is there when it is begun; writing meanwhile is allowed."""


class Context(Protocol):
    """One unit of work. Valid while the body runs."""

    note: bytes | None
    """Of a Change: what was noted with this input row last time (None: nothing; a deleted row has none).
    Set it to what is needed to take the row's contribution back; a delete forgets it by itself."""

    def table(self, name: str) -> Table:
        """By any name that has no NUL in it; names that begin with "_" are the runtime's."""

    def forward(self, key: bytes, value: bytes) -> None:
        """To the next hop, partition crc32(key) mod N. Refused on the last hop."""

    def emit(
        self,
        key: Row,
        after: Row | None,
        *,
        before: Row | None = None,
        op: str | None = None,
        table: str | None = None,
    ) -> None:
        """A derived row for `out` (a router: `out`.table). `after` None: its delete, and a tombstone.

        `op`: c or u; by default u where `before` is given, else c.
        """

    def publish(self, key: bytes | None, value: bytes | None, *, table: str | None = None) -> None:
        """A record as it is, without an envelope: for readers that are no flow of Tailrace."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a definition is made for."""

    processor: str
    inputs: tuple[str, ...]
    out: str
    key: tuple[str, ...]  # `key:` of the config; () when it says nothing
    schemas: Mapping[str, Sequence[SchemaRecord]] = field(default_factory=dict)
    """By input topic, the newest record last; of a topic without events yet nothing. It grows while the
    processor runs: the record of a change is there before the change is handled."""
    doubts: dict[str, str] = field(default_factory=dict)
    """What operators have found that no change is at fault for, by subject: for `status`."""
    grows: bool = False
    """`in` is a pattern: at a later start there may be more inputs."""
    taken: dict[str, str] = field(default_factory=dict)
    """Types that derived columns were taken to have, as nobody says them. It grows."""

    @property
    def several(self) -> bool:
        """Whether rows of two inputs may say one derived row."""
        return self.grows or len(self.inputs) > 1


class Hop(Protocol):
    """An operator: deterministic, no I/O. Raising parks the key; the unit leaves nothing."""

    def handle(self, record: Input, context: Context) -> None: ...


class Definition(Protocol):
    """What the `agent:` of the config names: a helper's result, or a user's agent."""

    def columns(self, given: Given) -> Mapping[str, str] | None:
        """Types of derived columns, as Postgres names them ({"total": "numeric"}), as far as they are known
        by now: it is asked again for a column that it has not named. The others' are inferred from the first
        values."""

    def hops(self, given: Given) -> Sequence[Hop]:
        """1 to HOPS_LIMIT. Raises ConfigError on inputs that it cannot use."""
