"""Rows to JSON, straight from pgoutput's bytes: the hot path. Pure: no I/O, no state but the relation.

Owns the walk over TupleData (grammar: streamer.postgres.pgoutput) and COPY's text lines, and which
old tuple means what. It builds no object per row: each column's bytes go through its kind's encoder
and into the relation's template. The forms of the values are those of streamer.changes.kinds; the
same row gives the same bytes from the stream and from COPY.

What an update's old tuple means (PostgreSQL manual, "Logical Replication Message Formats"):

    none  the key is as it was
    K     all columns, those outside the replica identity NULL. Sent when the key changed, but also
          when a key column is stored out of line, so the keys are compared
    O     replica identity full: the whole old row. It has what the new row leaves out as unchanged

On malformed bytes the loop stops at whatever Python raises, and `_explain` walks them again slowly
to say where and why.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from orjson import dumps

from streamer.changes.kinds import UNAVAILABLE_JSON, encoder_for
from streamer.changes.names import own_column, spelt
from streamer.errors import DecodeError, FatalError
from streamer.postgres.pgoutput import Relation, decode
from streamer.resetting import reset_steps

NULL = b"null"

_LENGTH = struct.Struct(">I").unpack_from
_MALFORMED = (ValueError, IndexError, KeyError, struct.error)

_COPY_ESCAPED = re.compile(rb"\\(.?)", re.DOTALL)
_COPY_ESCAPES = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
}


class RowEncoder:
    """Encoder of one relation's rows; made anew when its Relation message differs.

    `kinds` are in the relation's column order, of those that are not ours: a column of ours is passed over,
    and COPY's lines have none. `key_columns` name the key (empty: the table has
    none, and every key is None); a key is a JSON object of them in the relation's column order.
    Each method takes a whole pgoutput message and raises DecodeError when it is malformed or
    belongs to another relation.
    """

    __slots__ = (
        "_copied",
        "_count",
        "_delete_head",
        "_encoders",
        "_insert_head",
        "_key_indexes",
        "_key_of",
        "_key_template",
        "_names",
        "_ours",
        "_sent",
        "_template",
        "_update_head",
        "where",
    )

    def __init__(self, relation: Relation, kinds: Sequence[str], key_columns: Sequence[str]) -> None:
        everything = [column.name for column in relation.columns]
        names = [name for name in everything if not own_column(name)]
        self.where = spelt(relation.schema, relation.name)
        if len(kinds) != len(names):
            raise FatalError(f"{len(kinds)} kinds for {len(names)} columns", where=self.where)
        sent = {c.name for c in relation.columns if c.key or relation.identity == "n"}
        if not sent.issuperset(key_columns):
            raise FatalError(
                f"key columns {', '.join(key_columns)} are not in the replica identity "
                f"({', '.join(sorted(sent)) or 'no columns'})",
                where=self.where,
                fix=f"give the table a replica identity that covers its key, then {reset_steps('SOURCE')}",
            )
        self._names = everything
        self._sent = names
        # From the last one on, so that each may be taken out of a row's values by its place.
        self._ours = tuple(i for i in reversed(range(len(everything))) if own_column(everything[i]))
        self._copied = [encoder_for(kind) for kind in kinds]
        read = dict(zip(names, self._copied, strict=True))
        self._encoders = [read.get(name, _pass) for name in everything]
        self._template = _template(names)
        self._key_indexes = tuple(i for i, name in enumerate(names) if name in key_columns)
        self._key_of: Callable[[Sequence[bytes]], object] | None = (
            itemgetter(*self._key_indexes) if self._key_indexes else None
        )
        self._key_template = _template([names[i] for i in self._key_indexes])
        oid = relation.oid.to_bytes(4, "big")
        self._count = len(everything).to_bytes(2, "big")
        self._insert_head = b"I" + oid + b"N" + self._count
        self._update_head = b"U" + oid
        self._delete_head = b"D" + oid

    def insert(self, payload: bytes) -> tuple[bytes | None, bytes]:
        """-> (key, after)."""
        try:
            if payload[:8] != self._insert_head:
                raise ValueError
            values, at, unchanged = self._read(payload, 8)
            if at != len(payload) or unchanged:
                raise ValueError
        except _MALFORMED:
            raise self._explain(payload) from None
        key_of = self._key_of
        return self._key_template % key_of(values) if key_of else None, self._template % tuple(values)

    def update(self, payload: bytes) -> tuple[bytes | None, bytes, bytes, bytes | None, bytes]:
        """-> (key, before, after, old_key, old_before).

        `before` is the whole old row under replica identity full, else null. `old_key` is None
        unless the key changed: then the change is delete(old_key, old_before), create(key, after).
        Values that are not in the WAL are UNAVAILABLE.
        """
        try:
            if payload[:5] != self._update_head:
                raise ValueError
            kind = payload[5]
            if kind == 0x4E:  # N
                if payload[6:8] != self._count:
                    raise ValueError
                values, at, unchanged = self._read(payload, 8)
                if at != len(payload):
                    raise ValueError
                if unchanged:
                    self._require_key(values, payload)
                key_of = self._key_of
                key = self._key_template % key_of(values) if key_of else None
                return key, NULL, self._template % tuple(values), None, NULL
            if kind not in b"KO" or payload[6:8] != self._count:
                raise ValueError
            old, at, _ = self._read(payload, 8)
            if payload[at] != 0x4E or payload[at + 1 : at + 3] != self._count:
                raise ValueError
            values, at, unchanged = self._read(payload, at + 3)
            if at != len(payload):
                raise ValueError
        except _MALFORMED:
            raise self._explain(payload) from None
        if unchanged:
            for i in self._key_indexes if kind == 0x4B else range(len(values)):
                if values[i] is UNAVAILABLE_JSON:
                    values[i] = old[i]
            self._require_key(values, payload)
        old_before = self._template % tuple(old)
        before = old_before if kind == 0x4F else NULL
        after = self._template % tuple(values)
        if not self._key_of:
            return None, before, after, None, NULL
        key = self._key_template % self._key_of(values)
        old_key = self._key_template % self._key_of(old)
        if key == old_key:
            return key, before, after, None, NULL
        return key, before, after, old_key, old_before

    def delete(self, payload: bytes) -> tuple[bytes | None, bytes]:
        """-> (key, before): the whole old row under replica identity full, else its key columns."""
        try:
            if payload[:5] != self._delete_head or payload[5] not in b"KO" or payload[6:8] != self._count:
                raise ValueError
            values, at, unchanged = self._read(payload, 8)
            if at != len(payload):
                raise ValueError
        except _MALFORMED:
            raise self._explain(payload) from None
        if unchanged:
            self._require_key(values, payload)
        key_of = self._key_of
        return self._key_template % key_of(values) if key_of else None, self._template % tuple(values)

    def copy_row(self, line: bytes) -> tuple[bytes | None, bytes]:
        """A line of COPY ... TO STDOUT in text format, with or without its newline -> (key, after)."""
        line = line.removesuffix(b"\n")
        encoders = self._copied
        fields = line.split(b"\t") if encoders or line else []
        if len(fields) != len(encoders):
            raise DecodeError(
                f"COPY line has {len(fields)} fields, the relation {len(encoders)} columns",
                offset=0,
                where=self.where,
            )
        try:
            if b"\\" in line:
                values = [
                    NULL if f == b"\\N" else encode(copy_unescape(f) if b"\\" in f else f)
                    for encode, f in zip(encoders, fields, strict=True)
                ]
            else:
                values = [encode(f) for encode, f in zip(encoders, fields, strict=True)]
        except _MALFORMED:
            raise self._explain_copy(fields) from None
        key_of = self._key_of
        return self._key_template % key_of(values) if key_of else None, self._template % tuple(values)

    def key_alone(self, texts: Mapping[str, bytes]) -> tuple[bytes, bytes]:
        """The key's columns as the server would print them -> (key, before), as a delete has them."""
        values = [NULL] * len(self._copied)
        for i in self._key_indexes:
            try:
                values[i] = self._copied[i](texts[self._sent[i]])
            except _MALFORMED as error:
                raise self._column_error(f"column {self._sent[i]} cannot be read: {error}", 0) from None
        assert self._key_of is not None  # tables without a key are refused
        return self._key_template % self._key_of(values), self._template % tuple(values)

    def _read(self, payload: bytes, at: int) -> tuple[list[bytes], int, bool]:
        """The columns at `at` -> their JSON, the offset behind them, and whether one is unchanged.

        A value that runs over the end gives an offset that is not the payload's length.
        """
        values: list[bytes] = []
        append = values.append
        length = _LENGTH
        unchanged = False
        for encode in self._encoders:
            kind = payload[at]
            if kind == 0x74:  # t
                start = at + 5
                at = start + length(payload, at + 1)[0]
                append(encode(payload[start:at]))
            elif kind == 0x6E:  # n
                at += 1
                append(NULL)
            elif kind == 0x75:  # u
                at += 1
                append(UNAVAILABLE_JSON)
                unchanged = True
            else:
                raise ValueError
        for i in self._ours:
            del values[i]
        return values, at, unchanged

    def _require_key(self, values: list[bytes], payload: bytes) -> None:
        for i in self._key_indexes:
            if values[i] is UNAVAILABLE_JSON:
                raise DecodeError(
                    f"key column {self._sent[i]} is not in the WAL (unchanged TOAST value)",
                    offset=len(payload),
                    where=self.where,
                    fix="run a minor release of PostgreSQL from 2022 or later, or REPLICA IDENTITY FULL",
                )

    def _explain(self, payload: bytes) -> DecodeError:
        """Why the loop stopped: the grammar, the relation, the count, or a column's text."""
        try:
            message = decode(payload)
        except DecodeError as error:
            error.where = self.where
            return error
        if payload[:1] not in (b"I", b"U", b"D") or payload[1:5] != self._update_head[1:]:
            return DecodeError(
                f"a message of this relation was expected, not {type(message).__name__}",
                offset=0,
                where=self.where,
            )
        at = 5
        while at < len(payload):
            at += 3  # the tuple's kind and its count
            if payload[at - 2 : at] != self._count:
                count = int.from_bytes(payload[at - 2 : at], "big")
                return self._column_error(
                    f"TupleData has {count} columns, the relation {len(self._names)}", at - 2
                )
            for name, encode in zip(self._names, self._encoders, strict=True):
                kind = payload[at : at + 1]
                if kind == b"b":
                    return self._column_error(f"column {name} is in binary form, text was asked for", at)
                if kind == b"u" and payload[:1] == b"I":
                    return self._column_error(f"column {name} of an insert is marked unchanged", at)
                at += 1
                if kind == b"t":
                    start = at + 4
                    at = start + int.from_bytes(payload[at:start], "big")
                    try:
                        encode(payload[start:at])
                    except _MALFORMED as error:
                        return self._column_error(f"column {name} cannot be read: {error}", start)
        return self._column_error("the message cannot be read", at)

    def _explain_copy(self, fields: list[bytes]) -> DecodeError:
        at = 0
        for name, encode, field in zip(self._sent, self._copied, fields, strict=True):
            try:
                if field != b"\\N":
                    encode(copy_unescape(field))
            except _MALFORMED as error:
                return self._column_error(f"column {name} cannot be read: {error}", at)
            at += len(field) + 1
        return self._column_error("the COPY line cannot be read", at)

    def _column_error(self, what: str, offset: int) -> DecodeError:
        return DecodeError(
            what,
            offset=offset,
            where=self.where,
            fix="the connection's session settings (DateStyle ISO, TimeZone UTC, client_encoding UTF8, ...) "
            "must be Tailrace's own; if they are, report this with the column's type",
        )


def _pass(text: bytes) -> bytes:
    """In place of an encoder, for a column of ours."""
    return NULL


def _template(names: Sequence[str]) -> bytes:
    """bytes % (values) -> a JSON object."""
    return b"{%b}" % b",".join([dumps(name).replace(b"%", b"%%") + b":%b" for name in names])


def copy_unescape(field: bytes) -> bytes:
    """A field of COPY's text format as it was."""
    return _COPY_ESCAPED.sub(lambda escape: _COPY_ESCAPES[escape[1]], field)
