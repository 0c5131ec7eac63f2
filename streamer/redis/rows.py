"""Rows of one entity: a Redis key's state -> the JSON of its rows and of their keys. Pure, no I/O.

A whole key is one row; an exploded one (`rows:`, and every stream) has a row a member, field, index or
entry. A row's JSON is its key's JSON with more behind it, so the head is made once a Redis key:

    row key   {"period":"daily","user_id":"u1"}
    row       {"period":"daily","user_id":"u1","points":12.0}

The columns are, in order: `db` (of an entity with several databases), the named parts, the member, the
values, `expires_at`. The same state always gives the same bytes: the shadow compares digests of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from orjson import dumps, loads

from streamer.changes.schema import Column, SchemaRecord
from streamer.config.redis_entities import DATABASE_COLUMN, VALUE_COLUMN, RedisColumn, RedisEntity
from streamer.redis import encode
from streamer.redis.encode import NULL, BadValue
from streamer.redis.patterns import KeyPattern, text_of
from streamer.redis.shadow_records import Place

IDENTITY = "d"  # a delete's `before` has the key's columns, as with Postgres's default identity

Body = Callable[[Any], bytes]  # a value as Redis gives it -> `,"column":<JSON>` of each; ValueError


class State(Protocol):
    """What a re-read gave of one key: `type` as TYPE prints it, None when there is no such key.

    `value`: bytes of a string, a sequence of a list or set, pairs of a hash or zset (a map, pairs, or
    flat), of a stream (id, fields) pairs.
    """

    @property
    def type(self) -> str | None: ...
    @property
    def expires_us(self) -> int | None: ...
    @property
    def value(self) -> Any: ...


class PlainEntity:
    """One entity that is no pivot."""

    __slots__ = (
        "_body",
        "_expiry_label",
        "_key_labels",
        "_member",
        "_member_cast",
        "_part_encoders",
        "appends",
        "expires",
        "explodes",
        "name",
        "pattern",
        "record",
        "several",
        "type",
    )

    def __init__(self, source: str, name: str, config: RedisEntity, *, several: bool) -> None:
        assert config.pattern is not None
        self.name = name
        self.pattern = KeyPattern(config.pattern)
        self.type = config.redis_type
        self.explodes = config.explodes
        self.appends = self.type == "stream"  # entries are added; what is trimmed is not taken back
        self.several = several
        casts = [config.key.get(part, "text") for part in self.pattern.names]
        self._part_encoders = [encode.KEY_ENCODERS[cast] for cast in casts]
        columns = [column(DATABASE_COLUMN, "int", key=True)] if several else []
        columns += [column(n, c, key=True) for n, c in zip(self.pattern.names, casts, strict=True)]
        self._member_cast = "text"
        if self.explodes:
            member, self._member_cast = _member_column(config)
            columns.append(member)
        self._member: Callable[[Any], bytes] = (
            b"%d".__mod__ if self.type == "list" else encode.KEY_ENCODERS[self._member_cast]
        )
        self._key_labels = [b"%b:" % dumps(c.name) for c in columns]
        values, self._body = _values(config)
        columns += values
        self.expires = config.expires_at is not None  # a column shows when the key does
        self._expiry_label = b""
        if config.expires_at is not None:
            columns.append(column(config.expires_at, "timestamptz"))
            self._expiry_label = label(config.expires_at)
        self.record = SchemaRecord(source, source, name, IDENTITY, tuple(columns))

    def place(self, db: int, key: bytes, parts: Sequence[bytes]) -> Place:
        """Raises BadValue: a part that its cast does not take."""
        try:
            values = [encoder(part) for encoder, part in zip(self._part_encoders, parts, strict=True)]
        except ValueError as error:
            raise self._bad(f"a part of the key: {error}", db, key) from None
        if self.several:
            values.insert(0, b"%d" % db)
        if self.explodes:
            values.append(b"")
        named = b",".join([name + value for name, value in zip(self._key_labels, values, strict=True)])
        if self.explodes:
            return Place(self.name, db, key, b"{" + named, False)
        return Place(self.name, db, key, b"{%b}" % named, True)

    def rows(self, place: Place, state: State, bad: list[BadValue]) -> dict[bytes, bytes]:
        """All rows of a key: {row key's JSON: row's JSON}; none: the key is gone.

        Of an exploded key, a member that cannot be used goes to `bad`, the others are given. Raises
        BadValue when nothing of the key can be used.
        """
        if state.type is None:
            return {}
        self.check_type(place, state.type)
        if self.explodes:
            return self.member_rows(place, members_of(self.type, state.value), state.expires_us, bad)
        try:
            body = self._body(state.value) + self._expiry(state.expires_us)
        except ValueError as error:
            raise self._bad(str(error), place.db, place.key, payload=_payload_of(state.value)) from None
        return {place.head: b"%b%b}" % (place.head[:-1], body)}

    def check_type(self, place: Place, found: str) -> None:
        """Raises BadValue when a key's type is not the entity's."""
        if found != self.type:
            reason = f"the key is a {found}, and the entity takes a {self.type}"
            raise BadValue(reason, entity=self.name, db=place.db, key=place.key, type=found)

    def member_rows(
        self, place: Place, members: Iterable[tuple[Any, Any]], expires_us: int | None, bad: list[BadValue]
    ) -> dict[bytes, bytes]:
        """Rows of some of a key's members: pairs of (member, score), (field, value), (index, value),
        (id, fields), (member, None) of a set. What cannot be used goes to `bad`."""
        rows: dict[bytes, bytes] = {}
        tail = self._expiry(expires_us) + b"}"
        head, name_of, body = place.head, self._member, self._body
        for member, value in members:
            start = b""
            try:
                start = head + name_of(member)
                rows[start + b"}"] = start + body(value) + tail
            except ValueError as error:
                row_key = start + b"}" if start else None
                bad.append(self._bad_member(place, member, value, row_key, str(error)))
        return rows

    def row_keys(self, place: Place, members: Iterable[Any]) -> list[bytes]:
        """The keys of these members' rows; those that the key's cast does not take have none."""
        keys = []
        for member in members:
            with suppress(ValueError):
                keys.append(place.head + self._member(member) + b"}")
        return keys

    def member_row(
        self, place: Place, member: Any, value: Any, expires_us: int | None = None
    ) -> tuple[bytes, bytes]:
        """(row key, row) of one member. Raises BadValue."""
        bad: list[BadValue] = []
        rows = self.member_rows(place, [(member, value)], expires_us, bad)
        if bad:
            raise bad[0]
        return next(iter(rows.items()))

    def member_of(self, row_key: bytes) -> bytes:
        """The member, field, index or entry id of an exploded row, as Redis has it."""
        *_, value = loads(row_key).values()
        return encode.key_bytes(self._member_cast, value)

    def gone(self, row_key: bytes) -> bytes:
        """`before` of a delete."""
        return gone_row(self.record, row_key)

    def _expiry(self, expires_us: int | None) -> bytes:
        if not self._expiry_label:
            return b""
        return self._expiry_label + (NULL if expires_us is None else encode.encode_expiry(expires_us))

    def _bad_member(
        self, place: Place, member: Any, value: Any, row_key: bytes | None, reason: str
    ) -> BadValue:
        name = repr(text_of(member)) if isinstance(member, bytes) else str(member)
        payload = value if isinstance(value, bytes) else member if isinstance(member, bytes) else b""
        return self._bad(f"{name}: {reason}", place.db, place.key, payload=payload, row_key=row_key)

    def _bad(
        self, reason: str, db: int, key: bytes, *, payload: bytes = b"", row_key: bytes | None = None
    ) -> BadValue:
        return BadValue(
            reason, entity=self.name, db=db, key=key, type=self.type, payload=payload, row_key=row_key
        )


def _payload_of(value: Any) -> bytes:
    """A string as it is; a hash as JSON, each name and value as a row would show its bytes."""
    if isinstance(value, dict):
        return dumps({text_of(name): text_of(part) for name, part in value.items()})
    return value if isinstance(value, bytes) else b""


def column(name: str, cast: str, *, key: bool = False) -> Column:
    type_name, kind = encode.TYPES[cast]
    return Column(name, type_name, -1, kind, key)


def label(name: str) -> bytes:
    return b",%b:" % dumps(name)


def gone_row(record: SchemaRecord, row_key: bytes) -> bytes:
    """A row's key with null in every other column."""
    return row_key[:-1] + b"".join([label(c.name) + NULL for c in record.columns if not c.key]) + b"}"


def members_of(type: str, value: Any) -> Iterable[tuple[Any, Any]]:
    """A whole key's value -> the pairs that member_rows takes."""
    if type == "list":
        return enumerate(value)
    if type == "set":
        return [(member, None) for member in value]
    return encode.pairs(value)


# What a config's columns are: the schema's columns, and the function that makes their JSON


def _member_column(config: RedisEntity) -> tuple[Column, str]:
    part, name = next(iter(config.row_parts.items()))
    cast = "int" if part == "index" else config.column(name).cast or "text"
    return column(name, cast, key=True), cast


def _values(config: RedisEntity) -> tuple[list[Column], Body]:
    document = config.type == "json" or config.value == "json"
    if config.explodes:
        value = next(iter(list(config.row_parts.items())[1:]), None)
        if value is not None:
            return _member_value(config, *value)
        if config.type != "stream":
            return [], _nothing
        return _typed(config, encode.fields)
    if config.columns:
        return _typed(config, encode.document_members if document else encode.fields)
    cast = "json" if document or config.redis_type != "string" else config.value or "text"
    whole = _WHOLE.get(config.redis_type) or encode.encoder_for(cast)
    return [column(VALUE_COLUMN, cast)], _labelled(VALUE_COLUMN, whole)


def _member_value(config: RedisEntity, part: str, name: str) -> tuple[list[Column], Body]:
    given = config.column(name)
    if part == "fields":
        return [column(name, "json")], _labelled(name, encode.whole_hash)
    if part == "score":
        return [column(name, given.cast or "float")], _labelled(name, score_encoder(given))
    encoder = encode.encoder_for(given.cast or "text", given.naive_is)
    return [column(name, given.cast or "text")], _labelled(name, encoder)


def score_encoder(given: RedisColumn) -> Callable[[encode.Score], bytes]:
    if given.cast in (None, "float"):
        return encode.encode_score
    encoder = encode.encoder_for(given.cast, given.naive_is)
    return lambda score: encoder(encode.score_text(score))


def _nothing(_: Any) -> bytes:
    return b""


def _labelled(name: str, encoder: Callable[[Any], bytes]) -> Body:
    start = label(name)
    return lambda value: start + encoder(value)


class _Field(NamedTuple):
    name: str  # the column's
    field: bytes  # in Redis, or in the document
    start: bytes
    encode: encode.Encode


def _typed(
    config: RedisEntity, take_apart: Callable[[Any], Mapping[bytes, bytes | None]]
) -> tuple[list[Column], Body]:
    """Columns out of a hash's fields, an entry's fields or a document's members; null where there is none."""
    fields, columns = [], []
    for name in config.columns:
        given = config.column(name)
        cast = given.cast or "text"
        field = (given.field if given.field is not None else name).encode()
        fields.append(_Field(name, field, label(name), encode.encoder_for(cast, given.naive_is)))
        columns.append(column(name, cast))

    def body(value: Any) -> bytes:
        found = take_apart(value)
        made = []
        for name, field, start, encoder in fields:
            raw = found.get(field)
            try:
                made.append(start + (NULL if raw is None else encoder(raw)))
            except ValueError as error:
                raise ValueError(f"column {name}: {error}") from None
        return b"".join(made)

    return columns, body


_WHOLE: dict[str, Callable[[Any], bytes]] = {
    "hash": encode.whole_hash,
    "zset": encode.whole_zset,
    "list": encode.whole_list,
    "set": encode.whole_set,
}
