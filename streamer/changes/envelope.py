"""The value of a change event: Debezium's JSON envelope (schemas.enable=false), written and read.

    data     {"before":..,"after":..,"source":{..},"transaction":null,"op":"c","ts_ms":.,"ts_us":.,"ts_ns":.}
    message  {"op":"m","ts_ms":.,"source":{..},"transaction":null,"message":{"prefix":.,"content":base64}}
    source   version connector name ts_ms snapshot db sequence ts_us ts_ns schema table txId lsn xmin
             origin origin_lsn, then ours: epoch commit_lsn ordinal schema_id

op: c(reate) u(pdate) d(elete) r(ead by a snapshot) t(runcate) m(essage). `source.ts_*` is the commit's
time, the outer `ts_*` the time of processing. (epoch, commit_lsn, ordinal) is the version (H3, H29).

Writing is the hot path: what is fixed for a table is formatted once into a SourceTemplate, what is
fixed for a transaction once into a RowTemplate, and a row costs one formatting of bytes. Reading is
total: any bytes give a Change or a DecodeError.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Any, Final, NamedTuple

from orjson import JSONDecodeError, dumps, loads

from streamer.errors import DecodeError

NULL = b"null"
FLOOR_PREFIX = "tailrace.floor"

SNAPSHOT_NO = "false"
SNAPSHOT_FIRST = "first"
SNAPSHOT_ROW = "true"
SNAPSHOT_LAST_OF_TABLE = "last_in_data_collection"
SNAPSHOT_LAST = "last"

# %% are the places of a row; the others are those of a transaction. The order is Debezium's.
_SOURCE_FORMAT = (
    b'{"version":%b,"connector":"postgresql","name":%b,"ts_ms":%%d,"snapshot":"%%b","db":%b,'
    b'"sequence":"[%%b,\\"%%%%d\\"]","ts_us":%%d,"ts_ns":%%d000,"schema":%b,"table":%b,"txId":%%b,'
    b'"lsn":%%%%d,"xmin":null,"origin":%%b,"origin_lsn":%%b,'
    b'"epoch":%d,"commit_lsn":%%d,"ordinal":%%%%d,"schema_id":%b}'
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
        self, *, version: str, name: str, db: str, schema: str, table: str, schema_id: str, epoch: int
    ) -> None:
        texts = tuple(_quoted(text, 2) for text in (version, name, db, schema, table))
        fixed = (*texts, epoch, _quoted(schema_id, 2))
        self._data = _DATA_FORMAT % fixed
        self._message = _MESSAGE_FORMAT % fixed

    def transaction(
        self,
        *,
        commit_us: int,
        xid: int | None,
        commit_lsn: int,
        previous_commit_lsn: int | None,
        now_us: int,
        origin: str | None = None,
        origin_lsn: int | None = None,
        snapshot: str = SNAPSHOT_NO,
    ) -> RowTemplate:
        """Template of a transaction's rows. Times are microseconds since 1970; `now_us` is processing's."""
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


class Change(NamedTuple):
    """One event, read. Times are microseconds since 1970 UTC; LSNs are ints."""

    op: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    epoch: int
    commit_lsn: int
    ordinal: int
    schema_id: str
    schema: str
    table: str
    source: str  # name of the source
    commit_us: int
    capture_us: int  # of a message event: whole milliseconds
    snapshot: str
    xid: int | None
    lsn: int
    message: MessageContent | None

    @property
    def version(self) -> tuple[int, int, int]:
        return self.epoch, self.commit_lsn, self.ordinal

    @property
    def is_floor(self) -> bool:
        return self.message is not None and self.message.prefix == FLOOR_PREFIX


# (before is an object, after is an object) that each op may have
_ROW: Final = dict
_NONE: Final = type(None)
_SHAPES: Final = {
    ("c", _NONE, _ROW),
    ("r", _NONE, _ROW),
    ("u", _NONE, _ROW),
    ("u", _ROW, _ROW),
    ("d", _ROW, _NONE),
    ("t", _NONE, _NONE),
}


_tuple: Final = tuple.__new__  # of a NamedTuple: half the price of its constructor, on a hot path


def decode_value(value: bytes, *, where: str) -> Change:
    """A record's value -> Change. `where` is the record's place: topic[partition]@offset.

    Raises DecodeError on what is not an event of Tailrace (a plain Debezium event has no epoch).
    """
    try:
        raw = loads(value)
        source = raw["source"]
        op = raw["op"]
        epoch = source["epoch"]
        commit_lsn = source["commit_lsn"]
        ordinal = source["ordinal"]
        lsn = source["lsn"]
        commit_us = source["ts_us"]
        schema_id = source["schema_id"]
        schema = source["schema"]
        table = source["table"]
        name = source["name"]
        snapshot = source["snapshot"]
        xid = source["txId"]
        if op == "m":
            before = after = None
            capture_us = raw["ts_ms"] * 1000
            message = _message(raw["message"])
        else:
            before = raw["before"]
            after = raw["after"]
            capture_us = raw["ts_us"]
            message = None
            if (op, type(before), type(after)) not in _SHAPES:
                raise ValueError(f"op {op!r} with before {_name(before)} and after {_name(after)}")
        if not (type(epoch) is type(commit_lsn) is type(ordinal) is type(lsn) is int):
            raise ValueError("epoch, commit_lsn, ordinal or lsn is not an integer")
        if not (type(commit_us) is type(capture_us) is int and (xid is None or type(xid) is int)):
            raise ValueError("a time or txId is not an integer")
        if not (type(schema_id) is type(schema) is type(table) is type(name) is type(snapshot) is str):
            raise ValueError("schema_id, schema, table, name or snapshot is not a string")
    except JSONDecodeError as error:
        raise _not_an_event(f"not JSON ({error.msg})", error.pos, where) from None
    except KeyError as error:
        raise _not_an_event(f"field {error} is missing", 0, where) from None
    except (TypeError, ValueError) as error:
        raise _not_an_event(str(error), 0, where) from None
    return _tuple(
        Change,
        (
            op,
            before,
            after,
            epoch,
            commit_lsn,
            ordinal,
            schema_id,
            schema,
            table,
            name,
            commit_us,
            capture_us,
            snapshot,
            xid,
            lsn,
            message,
        ),
    )


def _transaction(
    *,
    commit_us: int,
    xid: int | None,
    commit_lsn: int,
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
        commit_lsn,
    )


def _message(raw: Any) -> MessageContent:
    prefix, content = raw["prefix"], raw["content"]
    if type(prefix) is not str or type(content) is not str:
        raise ValueError("message has a prefix or content that is not a string")
    return MessageContent(prefix, a2b_base64(content, strict_mode=True))


def _name(value: Any) -> str:
    return type(value).__name__


def _not_an_event(what: str, offset: int, where: str) -> DecodeError:
    return DecodeError(
        f"the record is not a change event of Tailrace: {what}",
        offset=offset,
        where=where,
        fix="find out what wrote it; only Tailrace may write to its topics",
    )


def _quoted(text: str, formattings: int) -> bytes:
    """Text as JSON that comes unchanged through so many % formattings."""
    return dumps(text).replace(b"%", b"%" * 2**formattings)
