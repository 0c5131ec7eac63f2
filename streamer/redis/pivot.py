"""Pivots: one row out of several Redis keys. Pure: says what to read, and makes the row of the answers.

A pivot's row has one id. A column's key holds the id as the named part (`user:{user_id}`), or the id is
the member or field of a key that is the same for all rows (`leaderboard:daily`). So a changed key of the
first sort touches one row, and one of the second sort those rows whose members changed: which these are,
the shadow says, by the members' own entity (Feed.members).

A row id for which a column's key would read back as another id (it holds ':' and the part takes none)
has null there, as no change of such a key could be brought to the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from orjson import dumps

from streamer.changes.schema import SchemaRecord
from streamer.config.redis_entities import DATABASE_COLUMN, RedisColumn, RedisEntity
from streamer.redis import encode
from streamer.redis.encode import NULL, BadValue
from streamer.redis.patterns import KeyPattern
from streamer.redis.rows import IDENTITY, PlainEntity, column, gone_row, label, score_encoder
from streamer.redis.shadow_records import Place

# kind of a read -> the command: ZSCORE key field, HGET key field, GET key
ZSET, HASH, STRING = "zset", "hash", "string"

Answer = bytes | float | int | BaseException | None  # an error is what the server replied


class Read(NamedTuple):
    """One value to read; `field` is a zset's member or a hash's field, None of a string."""

    db: int
    key: bytes
    kind: str
    field: bytes | None


class PivotColumn:
    """Where one column comes from."""

    __slots__ = ("document_field", "encode", "field", "fixed_key", "kind", "name", "pattern", "start")

    def __init__(self, name: str, config: RedisColumn) -> None:
        ((word, text),) = config.keys.items()
        self.name = name
        self.kind = STRING if word == "json" else word
        self.pattern = KeyPattern(text)
        self.fixed_key = None if self.pattern.names else self.pattern.format(())
        self.field = config.field.encode() if config.field is not None and word != "json" else None
        self.document_field = config.field.encode() if config.field is not None and word == "json" else None
        self.start = label(name)
        self.encode: Callable[[Any], bytes] = (
            score_encoder(config) if word == "zset" else encode.encoder_for(cast_of(config), config.naive_is)
        )

    def read(self, db: int, row_id: bytes) -> Read | None:
        if self.fixed_key is not None:
            return Read(db, self.fixed_key, self.kind, row_id)
        key = self.pattern.key_of((row_id,) * len(self.pattern.names))
        return Read(db, key, self.kind, self.field) if key is not None else None

    def value(self, answer: Answer) -> bytes | None:
        """The column's JSON; None: there is no such value. Raises ValueError."""
        if answer is None:
            return None
        if isinstance(answer, BaseException):
            raise ValueError(f"Redis answers: {answer}")
        if self.document_field is not None:
            assert isinstance(answer, bytes)
            member = encode.document_members(answer).get(self.document_field)
            return None if member is None else self.encode(member)
        return self.encode(answer)


def cast_of(config: RedisColumn) -> str:
    if config.zset is not None:
        return config.cast or "float"
    whole_document = config.json_key is not None and config.field is None
    return config.cast or ("json" if whole_document else "text")


class PivotEntity:
    """`columns` in the config's order, behind the key."""

    __slots__ = (
        "_all",
        "_any",
        "_encode_id",
        "_id_cast",
        "_id_label",
        "columns",
        "name",
        "record",
        "several",
    )

    def __init__(self, source: str, name: str, config: RedisEntity, *, several: bool) -> None:
        assert config.pivot is not None
        self.name = name
        self.several = several
        self._id_cast = config.key.get(config.pivot, "text")
        self._encode_id = encode.KEY_ENCODERS[self._id_cast]
        self._id_label = b"%b:" % dumps(config.pivot)
        givens = {n: config.column(n) for n in config.columns}
        self.columns = tuple(PivotColumn(n, given) for n, given in givens.items())
        self._any = frozenset(config.exists.any or (() if config.exists.all else givens))
        self._all = frozenset(config.exists.all)
        columns = [column(DATABASE_COLUMN, "int", key=True)] if several else []
        columns.append(column(config.pivot, self._id_cast, key=True))
        columns += [column(n, cast_of(given)) for n, given in givens.items()]
        self.record = SchemaRecord(source, source, name, IDENTITY, tuple(columns))

    def place(self, db: int, row_id: bytes) -> Place:
        """Raises BadValue: an id that the key's cast does not take."""
        try:
            value = self._encode_id(row_id)
        except ValueError as error:
            raise self._bad(str(error), db, row_id) from None
        first = b'"%b":%d,' % (DATABASE_COLUMN.encode(), db) if self.several else b""
        return Place(self.name, db, row_id, b"{%b%b%b}" % (first, self._id_label, value), True)

    def row(self, db: int, row_id: bytes) -> PivotRow:
        """What to read for one row. Raises BadValue: an id that the key's cast does not take."""
        return PivotRow(self, self.place(db, row_id))

    def exists(self, present: frozenset[str]) -> bool:
        return (not self._any or not self._any.isdisjoint(present)) and present.issuperset(self._all)

    def gone(self, row_key: bytes) -> bytes:
        """`before` of a delete."""
        return gone_row(self.record, row_key)

    def _bad(self, reason: str, db: int, row_id: bytes, payload: bytes = b"") -> BadValue:
        return BadValue(reason, entity=self.name, db=db, key=row_id, type="pivot", payload=payload)


class PivotRow:
    """One row: `reads` (each value once), then `row(answers)`, aligned with them."""

    __slots__ = ("_places", "entity", "place", "reads")

    def __init__(self, entity: PivotEntity, place: Place) -> None:
        self.entity = entity
        self.place = place
        wanted = [c.read(place.db, place.key) for c in entity.columns]
        index = {read: i for i, read in enumerate(dict.fromkeys(r for r in wanted if r is not None))}
        self.reads: tuple[Read, ...] = tuple(index)
        self._places = [None if read is None else index[read] for read in wanted]

    def row(self, answers: Sequence[Answer]) -> bytes | None:
        """The row's JSON; None: `exists` says that it is gone. Raises BadValue.

        `answers` must be of one moment (one script or MULTI), or the row is one that never was.
        """
        made, present = [self.place.head[:-1]], set()
        bad: BadValue | None = None
        for at, source in zip(self._places, self.entity.columns, strict=True):
            answer = None if at is None else answers[at]
            try:
                value = source.value(answer)
            except ValueError as error:
                payload = answer if isinstance(answer, bytes) else b""
                reason = f"column {source.name}: {error}"
                bad = bad or self.entity._bad(reason, self.place.db, self.place.key, payload)
                present.add(source.name)  # whatever it is: what is gone without it is gone with it
                continue
            if value is not None:
                present.add(source.name)
            made.append(source.start + (NULL if value is None else value))
        if not self.entity.exists(frozenset(present)):
            return None
        if bad is not None:
            raise bad
        return b"".join(made) + b"}"


class Feed(NamedTuple):
    """A changed key touches rows of this pivot: `row_id`, or else those whose members changed.

    `members` is the entity under which the key's members are diffed; the rows are those of
    `members.member_of(row_key)` of what changed. The key's own entity is taken where it can be.
    """

    pivot: PivotEntity
    row_id: bytes | None
    members: PlainEntity | None
