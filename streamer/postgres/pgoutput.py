"""Decoder of pgoutput, proto_version 1: what a logical replication slot sends inside XLogData.

Owns the grammar below and nothing else: bytes in, a message or a DecodeError out. It reads no
catalogue, keeps no state, and does no I/O. Rows on the hot path do not come through here but
through streamer.postgres.rows, which reads the same TupleData; this module is its reference.

Wire grammar (PostgreSQL manual, "Logical Replication Message Formats"; integers are big-endian,
a String ends in a NUL, names are in the client encoding, which must be UTF8):

    Begin     'B' Int64 final_lsn  Int64 commit_time  Int32 xid
    Message   'M' Int8 flags(1 = transactional)  Int64 lsn  String prefix  Int32 n  Byte[n] content
    Commit    'C' Int8 flags(0)  Int64 commit_lsn  Int64 end_lsn  Int64 commit_time
    Origin    'O' Int64 origin_lsn  String name
    Relation  'R' Int32 oid  String schema("" = pg_catalog)  String name  Int8 identity(d n f i)
                  Int16 columns  { Int8 flags(1 = key)  String name  Int32 type  Int32 typmod }*
    Type      'Y' Int32 oid  String schema  String name
    Insert    'I' Int32 relation  'N' TupleData
    Update    'U' Int32 relation  [ ('K' | 'O') TupleData ]  'N' TupleData
    Delete    'D' Int32 relation  ('K' | 'O') TupleData
    Truncate  'T' Int32 relations  Int8 options(1 = CASCADE, 2 = RESTART IDENTITY)  { Int32 relation }*

    TupleData  Int16 columns  { 'n' | 'u' | 't' Int32 n Byte[n] | 'b' Int32 n Byte[n] }*
               n: NULL, u: unchanged TOAST value (not sent), t: text, b: binary

Times on the wire are microseconds since 2000-01-01; in the messages since 1970-01-01, UTC.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import NamedTuple

from streamer.errors import DecodeError

POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01 as microseconds since 1970

TRUNCATE_CASCADE = 1
TRUNCATE_RESTART_IDENTITY = 2


class Unchanged(Enum):
    """A TOAST value that the update did not touch and that is not in the WAL."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class Binary(bytes):
    """A value sent in its type's binary form (only when the slot was started with `binary`)."""

    __slots__ = ()


Value = bytes | Unchanged | None
Tuple = tuple[Value, ...]


class Begin(NamedTuple):
    """`final_lsn` is the LSN of the commit record: the Commit's `commit_lsn`."""

    final_lsn: int
    commit_us: int
    xid: int


class Message(NamedTuple):
    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Commit(NamedTuple):
    commit_lsn: int
    end_lsn: int
    commit_us: int


class Origin(NamedTuple):
    origin_lsn: int
    name: str


class RelationColumn(NamedTuple):
    """`key`: part of the replica identity (under FULL every column is)."""

    name: str
    type_oid: int
    typmod: int
    key: bool


class Relation(NamedTuple):
    """`schema` is never empty; `identity` is d(efault) n(othing) f(ull) i(ndex)."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    relation: int
    row: Tuple


class Update(NamedTuple):
    """At most one of `old_key` (all columns, those outside the key NULL) and `old_row` is there."""

    relation: int
    old_key: Tuple | None
    old_row: Tuple | None
    row: Tuple


class Delete(NamedTuple):
    """One of `old_key` and `old_row` is there."""

    relation: int
    old_key: Tuple | None
    old_row: Tuple | None


class Truncate(NamedTuple):
    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


AnyMessage = Begin | Message | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate

_BEGIN = Struct(">BQqI")
_COMMIT = Struct(">BBQQq")
_MESSAGE = Struct(">BBQ")
_ORIGIN = Struct(">BQ")
_TRUNCATE = Struct(">BIB")
_TAG_OID = Struct(">BI")
_TYPE_TYPMOD = Struct(">Ii")
_INT32 = Struct(">i")
_INT16 = Struct(">h")


def decode(payload: bytes) -> AnyMessage:
    """One pgoutput message; DecodeError with the offset on anything that is not exactly one."""
    if not payload:
        raise DecodeError("empty pgoutput message", offset=0)
    decoder = _DECODERS.get(payload[0])
    if decoder is None:
        raise DecodeError(
            f"unknown pgoutput message type {payload[:1]!r}",
            offset=0,
            fix="start the slot with proto_version '1' and without streaming or two_phase",
        )
    return decoder(payload)


def _begin(payload: bytes) -> Begin:
    if len(payload) != 21:
        raise _size_error("Begin", payload, 21)
    _, final_lsn, commit_time, xid = _BEGIN.unpack(payload)
    return Begin(final_lsn, commit_time + POSTGRES_EPOCH_US, xid)


def _commit(payload: bytes) -> Commit:
    if len(payload) != 26:
        raise _size_error("Commit", payload, 26)
    _, flags, commit_lsn, end_lsn, commit_time = _COMMIT.unpack(payload)
    if flags:
        raise DecodeError(f"Commit has flags {flags}, 0 is known", offset=1)
    return Commit(commit_lsn, end_lsn, commit_time + POSTGRES_EPOCH_US)


def _message(payload: bytes) -> Message:
    _need(payload, 0, 10, "Message")
    _, flags, lsn = _MESSAGE.unpack_from(payload)
    if flags > 1:
        raise DecodeError(f"Message has flags {flags}, 0 and 1 are known", offset=1)
    prefix, at = _string(payload, 10, "Message prefix")
    size, at = _length(payload, at, "Message content")
    _end(payload, at + size, "Message")
    return Message(bool(flags), lsn, prefix, payload[at:])


def _origin(payload: bytes) -> Origin:
    _need(payload, 0, 9, "Origin")
    _, origin_lsn = _ORIGIN.unpack_from(payload)
    name, at = _string(payload, 9, "Origin name")
    _end(payload, at, "Origin")
    return Origin(origin_lsn, name)


def _relation(payload: bytes) -> Relation:
    _need(payload, 0, 5, "Relation")
    _, oid = _TAG_OID.unpack_from(payload)
    schema, at = _string(payload, 5, "Relation schema")
    name, at = _string(payload, at, "Relation name")
    _need(payload, at, 3, "Relation")
    identity = chr(payload[at])
    if identity not in "dnfi":
        raise DecodeError(f"Relation has replica identity {payload[at : at + 1]!r}", offset=at)
    (count,) = _INT16.unpack_from(payload, at + 1)
    if count < 0:
        raise DecodeError(f"Relation has {count} columns", offset=at + 1)
    at += 3
    columns = []
    for _ in range(count):
        _need(payload, at, 1, "Relation column")
        flags = payload[at]
        if flags > 1:
            raise DecodeError(f"Relation column has flags {flags}, 0 and 1 are known", offset=at)
        column, at = _string(payload, at + 1, "Relation column name")
        _need(payload, at, 8, "Relation column type")
        type_oid, typmod = _TYPE_TYPMOD.unpack_from(payload, at)
        columns.append(RelationColumn(column, type_oid, typmod, bool(flags)))
        at += 8
    _end(payload, at, "Relation")
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _type(payload: bytes) -> Type:
    _need(payload, 0, 5, "Type")
    _, oid = _TAG_OID.unpack_from(payload)
    schema, at = _string(payload, 5, "Type schema")
    name, at = _string(payload, at, "Type name")
    _end(payload, at, "Type")
    return Type(oid, schema or "pg_catalog", name)


def _insert(payload: bytes) -> Insert:
    oid, _kind = _row_header(payload, "Insert", b"N")
    row, at = _tuple(payload, 6)
    _end(payload, at, "Insert")
    return Insert(oid, row)


def _update(payload: bytes) -> Update:
    oid, kind = _row_header(payload, "Update", b"KON")
    old, at = None, 5
    if kind != "N":
        old, at = _tuple(payload, 6)
        _need(payload, at, 1, "Update")
        if payload[at] != 0x4E:
            raise DecodeError(f"Update has tuple kind {payload[at : at + 1]!r} for the new row", offset=at)
    row, at = _tuple(payload, at + 1)
    _end(payload, at, "Update")
    return Update(oid, old if kind == "K" else None, old if kind == "O" else None, row)


def _delete(payload: bytes) -> Delete:
    oid, kind = _row_header(payload, "Delete", b"KO")
    old, at = _tuple(payload, 6)
    _end(payload, at, "Delete")
    return Delete(oid, old if kind == "K" else None, old if kind == "O" else None)


def _truncate(payload: bytes) -> Truncate:
    _need(payload, 0, 6, "Truncate")
    _, count, options = _TRUNCATE.unpack_from(payload)
    if options & ~(TRUNCATE_CASCADE | TRUNCATE_RESTART_IDENTITY):
        raise DecodeError(f"Truncate has options {options}, 1 and 2 are known", offset=5)
    if len(payload) != 6 + 4 * count:
        raise _size_error("Truncate", payload, 6 + 4 * count)
    relations = Struct(f">{count}I").unpack_from(payload, 6)
    return Truncate(relations, bool(options & TRUNCATE_CASCADE), bool(options & TRUNCATE_RESTART_IDENTITY))


def _row_header(payload: bytes, what: str, kinds: bytes) -> tuple[int, str]:
    _need(payload, 0, 6, what)
    _, oid = _TAG_OID.unpack_from(payload)
    if payload[5] not in kinds:
        raise DecodeError(f"{what} has tuple kind {payload[5:6]!r}", offset=5)
    return oid, chr(payload[5])


def _tuple(payload: bytes, at: int) -> tuple[Tuple, int]:
    """TupleData at `at` -> its values and the offset behind it."""
    _need(payload, at, 2, "TupleData")
    (count,) = _INT16.unpack_from(payload, at)
    if count < 0:
        raise DecodeError(f"TupleData has {count} columns", offset=at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        _need(payload, at, 1, "TupleData")
        kind = payload[at]
        at += 1
        if kind == 0x6E:  # n
            values.append(None)
        elif kind == 0x75:  # u
            values.append(UNCHANGED)
        elif kind in (0x74, 0x62):  # t, b
            size, at = _length(payload, at, "TupleData value")
            _need(payload, at, size, "TupleData value")
            value = payload[at : at + size]
            values.append(value if kind == 0x74 else Binary(value))
            at += size
        else:
            raise DecodeError(f"TupleData has column kind {bytes((kind,))!r}", offset=at - 1)
    return tuple(values), at


def _string(payload: bytes, at: int, what: str) -> tuple[str, int]:
    end = payload.find(0, at)
    if end < 0:
        raise DecodeError(f"{what} has no NUL at its end", offset=at)
    try:
        return payload[at:end].decode(), end + 1
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"{what} is not UTF-8",
            offset=at + error.start,
            fix="the replication connection must run with client_encoding UTF8",
        ) from None


def _length(payload: bytes, at: int, what: str) -> tuple[int, int]:
    _need(payload, at, 4, what)
    (size,) = _INT32.unpack_from(payload, at)
    if size < 0:
        raise DecodeError(f"{what} has length {size}", offset=at)
    return size, at + 4


def _need(payload: bytes, at: int, size: int, what: str) -> None:
    if len(payload) - at < size:
        raise DecodeError(f"{what} is cut off: {size} bytes expected, {len(payload) - at} left", offset=at)


def _end(payload: bytes, at: int, what: str) -> None:
    if len(payload) != at:
        raise _size_error(what, payload, at)


def _size_error(what: str, payload: bytes, size: int) -> DecodeError:
    if len(payload) < size:
        return DecodeError(
            f"{what} is cut off: {size} bytes expected, {len(payload)} there", offset=len(payload)
        )
    return DecodeError(f"{what} has {len(payload) - size} bytes too many", offset=size)


_DECODERS: dict[int, Callable[[bytes], AnyMessage]] = {
    ord("B"): _begin,
    ord("M"): _message,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
}
