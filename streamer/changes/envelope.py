"""The value of a change event: Debezium's JSON envelope (schemas.enable=false), written and read.

    data     {"before":..,"after":..,"source":{..},"transaction":null,"op":"c","ts_ms":.,"ts_us":.,"ts_ns":.}
    message  {"op":"m","ts_ms":.,"source":{..},"transaction":null,"message":{"prefix":.,"content":base64}}
    source   version connector name ts_ms snapshot db sequence ts_us ts_ns schema table txId lsn xmin
             origin origin_lsn, then ours: epoch commit_lsn ordinal schema_id

op: c(reate) u(pdate) d(elete) r(ead by a snapshot) t(runcate) m(essage). `source.ts_*` is the commit's
time, the outer `ts_*` the time of processing. (epoch, commit_lsn, ordinal) is the version (H3, H29).
Of a Redis source the LSNs are microseconds of the server's clock, made monotonic, and the ordinal counts
within one of them; txId is null. Of a processor's row commit_lsn is null: the offset stands for it (H15).

Writing is the hot path: what is fixed for a table is formatted once into a SourceTemplate, what is
fixed for a transaction once into a RowTemplate, and a row costs one formatting of bytes. Reading is
total: any bytes give a Change or a DecodeError.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from typing import Any, Final, NamedTuple

from msgspec import MsgspecError, Struct, json
from orjson import dumps

from streamer.errors import DecodeError

NULL = b"null"
FLOOR_PREFIX = "tailrace.floor"
GAP_PREFIX = "tailrace.gap"
SWEEP_HEADER = "sweep"  # of a delete that a reverse pass found: how many rows of its entity it found gone

POSTGRES = "postgresql"  # connectors, as Debezium names them
REDIS = "redis"

SNAPSHOT_NO = "false"
SNAPSHOT_FIRST = "first"
SNAPSHOT_ROW = "true"
SNAPSHOT_LAST_OF_TABLE = "last_in_data_collection"
SNAPSHOT_LAST = "last"
SNAPSHOT_INCREMENTAL = "incremental"  # of a backfill's rows

# %% are the places of a row; the others are those of a transaction. The order is Debezium's.
_SOURCE_FORMAT = (
    b'{"version":%b,"connector":%b,"name":%b,"ts_ms":%%d,"snapshot":"%%b","db":%b,'
    b'"sequence":"[%%b,\\"%%%%d\\"]","ts_us":%%d,"ts_ns":%%d000,"schema":%b,"table":%b,"txId":%%b,'
    b'"lsn":%%%%d,"xmin":null,"origin":%%b,"origin_lsn":%%b,'
    b'"epoch":%d,"commit_lsn":%%b,"ordinal":%%%%d,"schema_id":%b}'
)
_DATA_FORMAT = (
    b'{"before":%%%%b,"after":%%%%b,"source":'
    + _SOURCE_FORMAT
    + b',"transaction":null,"op":"%%%%b","ts_ms":%%d,"ts_us":%%d,"ts_ns":%%d000}'
)
_MESSAGE_FORMAT = (
    b'{"op":"m","ts_ms":%%d,"source":'
    + _SOURCE_FORMAT
    + b',"transaction":null,"message":{"prefix":%%%%b,"content":"%%%%b"}}'
)


class RowTemplate:
    """Values of one table's events in one transaction. `lsn` is the change's own, `ordinal` its index."""

    __slots__ = ("_format",)

    def __init__(self, row_format: bytes) -> None:
        self._format = row_format

    def create(self, after: bytes, lsn: int, ordinal: int) -> bytes:
        return self._format % (NULL, after, lsn, lsn, ordinal, b"c")

    def update(self, before: bytes, after: bytes, lsn: int, ordinal: int) -> bytes:
        return self._format % (before, after, lsn, lsn, ordinal, b"u")

    def delete(self, before: bytes, lsn: int, ordinal: int) -> bytes:
        return self._format % (before, NULL, lsn, lsn, ordinal, b"d")

    def read(self, after: bytes, lsn: int, ordinal: int = 0) -> bytes:
        return self._format % (NULL, after, lsn, lsn, ordinal, b"r")

    def truncate(self, lsn: int, ordinal: int) -> bytes:
        return self._format % (NULL, NULL, lsn, lsn, ordinal, b"t")


class SourceTemplate:
    """What is fixed for a table version: made once a schema id and epoch."""

    __slots__ = ("_data", "_message")

    def __init__(
        self,
        *,
        version: str,
        name: str,
        db: str,
        schema: str,
        table: str,
        schema_id: str,
        epoch: int,
        connector: str = POSTGRES,
    ) -> None:
        """`db`: the database's name; of a Redis source its number."""
        texts = tuple(_quoted(text, 2) for text in (version, connector, name, db, schema, table))
        fixed = (*texts, epoch, _quoted(schema_id, 2))
        self._data = _DATA_FORMAT % fixed
        self._message = _MESSAGE_FORMAT % fixed

    def transaction(
        self,
        *,
        commit_us: int,
        xid: int | None,
        commit_lsn: int | None,
        previous_commit_lsn: int | None,
        now_us: int,
        origin: str | None = None,
        origin_lsn: int | None = None,
        snapshot: str = SNAPSHOT_NO,
    ) -> RowTemplate:
        """Template of a transaction's rows. Times are microseconds since 1970; `now_us` is processing's.

        `commit_lsn` None: of a processor, whose records' offsets stand for it (H15).
        """
        fixed = _transaction(
            commit_us=commit_us,
            xid=xid,
            commit_lsn=commit_lsn,
            previous_commit_lsn=previous_commit_lsn,
            origin=origin,
            origin_lsn=origin_lsn,
            snapshot=snapshot,
        )
        return RowTemplate(self._data % (*fixed, now_us // 1000, now_us, now_us))

    def message(
        self,
        prefix: str,
        content: bytes,
        *,
        lsn: int,
        ordinal: int,
        commit_us: int,
        xid: int | None,
        commit_lsn: int,
        previous_commit_lsn: int | None,
        now_us: int,
        origin: str | None = None,
        origin_lsn: int | None = None,
        snapshot: str = SNAPSHOT_NO,
    ) -> bytes:
        """A logical message event. Outside a transaction `xid` is None."""
        fixed = _transaction(
            commit_us=commit_us,
            xid=xid,
            commit_lsn=commit_lsn,
            previous_commit_lsn=previous_commit_lsn,
            origin=origin,
            origin_lsn=origin_lsn,
            snapshot=snapshot,
        )
        row_format = self._message % (now_us // 1000, *fixed)
        return row_format % (lsn, lsn, ordinal, dumps(prefix), b2a_base64(content, newline=False))

    def floor(self, *, lsn: int, commit_us: int, now_us: int) -> bytes:
        """The end of a reset's snapshot: delete the table's rows at or below (epoch, 0, 0)."""
        return self.message(
            FLOOR_PREFIX,
            b"",
            lsn=lsn,
            ordinal=0,
            commit_us=commit_us,
            xid=None,
            commit_lsn=0,
            previous_commit_lsn=None,
            now_us=now_us,
        )


class MessageContent(NamedTuple):
    prefix: str
    content: bytes


class _Message(Struct, gc=False):
    prefix: str
    content: str  # base64


class Change(NamedTuple):
    """One event, as a target needs it. Times are microseconds since 1970 UTC; LSNs are ints."""

    op: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    epoch: int
    commit_lsn: int
    ordinal: int
    schema_id: str
    commit_us: int
    capture_us: int  # of a message event: whole milliseconds
    message: MessageContent | None

    @property
    def version(self) -> tuple[int, int, int]:
        return self.epoch, self.commit_lsn, self.ordinal

    @property
    def is_floor(self) -> bool:
        return self.message is not None and self.message.prefix == FLOOR_PREFIX


class _Source(Struct, gc=False):
    epoch: int
    commit_lsn: int | None
    ordinal: int
    schema_id: str
    ts_us: int


class _Event(Struct, gc=False):
    """What is read of a value; what stands beside it is passed over without being built."""

    op: str
    source: _Source
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    ts_us: int | None = None
    ts_ms: int = 0
    message: _Message | None = None


# (op, before is null, after is null)
_SHAPES: Final = {
    ("c", True, False),
    ("r", True, False),
    ("u", True, False),
    ("u", False, False),
    ("d", False, True),
    ("t", True, True),
}
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_read: Final = json.Decoder(_Event).decode
_tuple: Final = tuple.__new__  # of a NamedTuple: half the price of its constructor, on a hot path


def decode_value(value: bytes, *, where: str, offset: int) -> Change:
    """A record's value -> Change. `where` is the record's place: topic[partition]@offset.

    Raises DecodeError on what is not an event of Tailrace (a plain Debezium event has no epoch).
    """
    try:
        event = _read(value)
    except (MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_an_event(str(error), where) from None
    op, before, after, source, capture_us = event.op, event.before, event.after, event.source, event.ts_us
    if op == "m":
        return _message(event, where, offset)
    if capture_us is None or (op, before is None, after is None) not in _SHAPES:
        shape = f"before {_name(before)}, after {_name(after)}, ts_us {_name(capture_us)}"
        raise _not_an_event(f"op {op!r} with {shape}", where)
    commit_lsn = offset if source.commit_lsn is None else source.commit_lsn
    version = source.epoch, commit_lsn, source.ordinal
    return _tuple(Change, (op, before, after, *version, source.schema_id, source.ts_us, capture_us, None))


def _message(event: _Event, where: str, offset: int) -> Change:
    message, source = event.message, event.source
    if message is None:
        raise _not_an_event("op 'm' without a message", where)
    try:
        content = a2b_base64(message.content, strict_mode=True)
    except ValueError as error:
        raise _not_an_event(f"the message's content is not base64: {error}", where) from None
    commit_lsn = offset if source.commit_lsn is None else source.commit_lsn
    version = source.epoch, commit_lsn, source.ordinal
    read = MessageContent(message.prefix, content)
    return Change("m", None, None, *version, source.schema_id, source.ts_us, event.ts_ms * 1000, read)


def _transaction(
    *,
    commit_us: int,
    xid: int | None,
    commit_lsn: int | None,
    previous_commit_lsn: int | None,
    origin: str | None,
    origin_lsn: int | None,
    snapshot: str,
) -> tuple[object, ...]:
    """What fills a transaction's places of _SOURCE_FORMAT."""
    return (
        commit_us // 1000,
        snapshot.encode(),
        NULL if previous_commit_lsn is None else b'\\"%d\\"' % previous_commit_lsn,
        commit_us,
        commit_us,
        NULL if xid is None else b"%d" % xid,
        NULL if origin is None else _quoted(origin, 1),
        NULL if origin_lsn is None else b"%d" % origin_lsn,
        NULL if commit_lsn is None else b"%d" % commit_lsn,
    )


def _name(value: Any) -> str:
    return type(value).__name__


def _not_an_event(what: str, where: str) -> DecodeError:
    place = _BYTE.search(what)
    return DecodeError(
        f"the record is not a change event of Tailrace: {what}",
        offset=int(place[1]) if place else 0,
        where=where,
        fix="find out what wrote it; only Tailrace may write to its topics",
    )


def _quoted(text: str, formattings: int) -> bytes:
    """Text as JSON that comes unchanged through so many % formattings."""
    return dumps(text).replace(b"%", b"%" * 2**formattings)
