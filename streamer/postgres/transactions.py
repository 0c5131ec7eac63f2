"""From replication messages to events: transactions, ordinals, versions, resuming. No I/O.

Owns what a message means for the position and which events it gives; what needs the catalogue (a
Relation message) is handed back to the caller, which calls `define` and goes on.

The version of a row change is (epoch, commit_lsn, ordinal); ordinal is the index of the row change
in its transaction before any filter: a key change counts two, a truncate one a relation, a
transactional logical message one (H29).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from struct import Struct
from struct import error as StructError
from typing import Protocol

import orjson

from streamer.changes.envelope import RowTemplate, SourceTemplate
from streamer.changes.kinds import UNAVAILABLE_JSON
from streamer.changes.position import LastCommit, Partial, Position
from streamer.changes.topics import OWN_MESSAGE_PREFIX
from streamer.errors import DecodeError
from streamer.postgres.history import Rejoin
from streamer.postgres.pgoutput import Begin, Commit, Message, Origin, Relation, Truncate, Type, decode
from streamer.postgres.replication_messages import XLOG_HEADER
from streamer.postgres.rows import RowEncoder
from streamer.postgres.windows import CREATED, MARK_PREFIX, PATCH, WHOLE, Change, Windows

_HEADER_BYTES = XLOG_HEADER.size
_START_LSN = Struct(">Q").unpack_from
_OID = Struct(">I").unpack_from

_INSERT, _UPDATE, _DELETE = b"IUD"
_OLD_KEY = ord("K")


class Sink(Protocol):
    """Where one table's events go: a topic of the publisher."""

    def append(self, key: bytes | None, value: bytes | None) -> None: ...


class CapturedTable:
    """What the hot path needs of one relation, at hand."""

    __slots__ = ("captured", "changed", "encoder", "name", "rows", "shape", "sink", "source")

    def __init__(
        self, name: str, encoder: RowEncoder, source: SourceTemplate, sink: Sink, shape: str = ""
    ) -> None:
        self.name = name  # schema.table
        self.encoder = encoder
        self.source = source
        self.sink = sink
        self.shape = shape  # the schema record's id
        self.changed: list[Change] | None = None  # while a chunk of the table is between its marks
        self.rows: RowTemplate | None = None  # of the transaction at hand
        self.captured = 0  # row changes published by this process


class Transactions:
    """Feeds replication messages of one source to the sinks.

    `position` is always the place up to which everything has been given to the sinks: what a flush
    taken now may record. `now_us` is the clock, microseconds since 1970 UTC.
    """

    def __init__(
        self,
        position: Position,
        rejoin: Rejoin,
        *,
        messages: SourceTemplate,
        now_us: Callable[[], int],
        windows: Windows | None = None,
    ) -> None:
        self.windows = windows or Windows()
        self._base = position
        self._rejoin: Rejoin | None = rejoin
        self._pending = position.partial
        self._messages = messages
        self.message_sink: Sink | None = None  # set when the first message of a user comes
        self.on_truncate: Callable[[int, int], None] | None = None  # oid and commit LSN of what is published
        self._now_us = now_us
        self._tables: dict[int, CapturedTable | None] = {}
        self._touched: list[CapturedTable] = []
        self._lsn = position.lsn
        self._shown_lsn = 0  # up to which this stream has shown everything, what is published already too
        self._last_commit = position.last_commit
        self._previous_commit_lsn: int | None = None
        self._in_transaction = False
        self._skip_all = False
        self._skip_below = 0  # ordinals of this transaction that are published already
        self._ordinal = 0
        self._change_lsn = 0
        self._commit_lsn = 0
        self._commit_us = 0
        self._xid = 0
        self._origin: str | None = None
        self._origin_lsn: int | None = None
        self.events = 0
        self.last_commit_us = position.last_commit.commit_us if position.last_commit else 0

    # ---- what the caller may ask -------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        return self._in_transaction

    @property
    def lsn(self) -> int:
        return self._lsn

    @property
    def commit_us(self) -> int:
        """Commit time of the transaction at hand, or the last one."""
        return self._commit_us

    def confirmable(self, recorded_lsn: int) -> int:
        """How far the server may forget, when the position in Kafka is `recorded_lsn`; 0: nothing yet.

        A commit that no snapshot has seen is to be shown again after a restart, and whether there is one
        among those that are published already is known only when the stream has shown them (H9).
        """
        limit = self.windows.confirm_limit
        lsn = min(recorded_lsn, self._shown_lsn)
        return lsn if limit is None else min(lsn, limit)

    def captured(self) -> dict[str, int]:
        """Qualified table -> row changes published by this process."""
        totals: dict[str, int] = {}
        for table in self._tables.values():
            if table is not None:
                totals[table.name] = totals.get(table.name, 0) + table.captured
        return totals

    def position(self) -> Position:
        """The position of this moment; call it with no await between it and taking the buffers."""
        pending = self._pending
        partial: Partial | None = None
        if pending is not None and (
            not self._in_transaction or self._skip_all or self._ordinal < self._skip_below
        ):
            partial = pending  # the transaction that a flush had cut has not come by again yet
        elif self._in_transaction and not self._skip_all and self._ordinal > 0:
            partial = Partial(self._commit_lsn, self._xid, self._commit_us, self._ordinal, self._change_lsn)
        return replace(self._base, lsn=self._lsn, last_commit=self._last_commit, partial=partial)

    def new_batch(self) -> None:
        """The rows that follow have a processing time of their own (called now and then, not a row)."""
        for table in self._touched:
            table.rows = None
        self._touched.clear()
        if self.windows.changes:
            self.windows.check_size()

    # ---- relations ---------------------------------------------------------------------------

    def define(self, oid: int, table: CapturedTable | None) -> None:
        """The table of a Relation message; None: count its row changes, publish none."""
        old = self._tables.get(oid)
        if old is not None and table is not None:
            table.captured = old.captured
        self._tables[oid] = table
        self.windows.shaped(oid, table.shape if table is not None else None)
        if table is not None:
            table.changed = self.windows.changes.get(oid)

    # ---- messages ----------------------------------------------------------------------------

    def feed(self, data: bytes) -> Relation | Message | None:
        """One XLogData message.

        A Relation that comes back must be defined before the next; a Message that comes back was
        not taken, because `message_sink` is to be set first: feed the same bytes again.
        """
        try:
            tag = data[_HEADER_BYTES]
        except IndexError as error:
            raise DecodeError("XLogData without a message", offset=len(data)) from error
        if tag == _INSERT:
            payload = data[_HEADER_BYTES:]
            table = self._table(payload)
            ordinal = self._ordinal
            if table is None or ordinal < self._skip_below or self._skip_all:
                self._count(data, 1)
                return None
            (lsn,) = _START_LSN(data, 1)
            key, after = table.encoder.insert(payload)
            rows = table.rows or self._rows(table)
            table.sink.append(key, rows.create(after, lsn, ordinal))
            if table.changed is not None and key is not None:
                table.changed.append((key, self._xid, WHOLE))
            self._change_lsn = lsn
            self._ordinal = ordinal + 1
            table.captured += 1
            self.events += 1
            return None
        if tag == _UPDATE:
            self._update(data)
            return None
        if tag == _DELETE:
            self._delete(data)
            return None
        return self._other(data)

    def keepalive(self, wal_end: int) -> None:
        """Everything before `wal_end` has been sent; outside a transaction that moves the position."""
        if self._in_transaction:
            return
        self._shown_lsn = max(self._shown_lsn, wal_end)
        if wal_end <= self._lsn:
            return
        if self._rejoin is not None:
            self._rejoin.passing(wal_end)
            if self._pending is None:
                self._rejoin = None
        self._lsn = wal_end

    def _table(self, payload: bytes) -> CapturedTable | None:
        if not self._in_transaction:
            raise DecodeError("a row change outside a transaction", offset=0)
        try:
            (oid,) = _OID(payload, 1)
        except StructError as error:
            raise DecodeError("the relation's id is cut off", offset=len(payload)) from error
        try:
            return self._tables[oid]
        except KeyError:
            raise DecodeError(
                f"a row change of relation {oid}, which no Relation message described", offset=1
            ) from None

    def _rows(self, table: CapturedTable) -> RowTemplate:
        rows = table.source.transaction(
            commit_us=self._commit_us,
            xid=self._xid,
            commit_lsn=self._commit_lsn,
            previous_commit_lsn=self._previous_commit_lsn,
            origin=self._origin,
            origin_lsn=self._origin_lsn,
            now_us=self._now_us(),
        )
        table.rows = rows
        self._touched.append(table)
        return rows

    def _count(self, data: bytes, changes: int) -> None:
        """Pass row changes that are not published: already there, filtered, or not ours."""
        (lsn,) = _START_LSN(data, 1)
        self._change_lsn = lsn
        if self._rejoin is not None and not self._skip_all:
            for ordinal in range(self._ordinal, self._ordinal + changes):
                self._rejoin.change(ordinal, lsn)
        self._ordinal += changes

    def _update(self, data: bytes) -> None:
        payload = data[_HEADER_BYTES:]
        table = self._table(payload)
        if self._skip_all:
            return
        if table is None:
            # Nothing else tells a key change of a table that has no encoder; the count only has
            # to be the same each time this transaction is read.
            self._count(data, 2 if payload[5:6] == b"K" else 1)
            return
        key, before, after, old_key, old_before = table.encoder.update(payload)
        ordinal = self._ordinal
        changes = 1 if old_key is None else 2
        if ordinal + changes <= self._skip_below:
            self._count(data, changes)
            return
        (lsn,) = _START_LSN(data, 1)
        rows = table.rows or self._rows(table)
        sink = table.sink
        if old_key is None:
            sink.append(key, rows.update(before, after, lsn, ordinal))
        else:
            sink.append(old_key, rows.delete(old_before, lsn, ordinal))
            sink.append(old_key, None)
            sink.append(key, rows.create(after, lsn, ordinal + 1))
        if table.changed is not None and key is not None:
            partial = UNAVAILABLE_JSON in after  # also in a text that says so: one key more is read
            if old_key is not None:
                table.changed.append((old_key, self._xid, WHOLE))
                table.changed.append((key, self._xid, CREATED if partial else WHOLE))
            else:
                table.changed.append((key, self._xid, PATCH if partial else WHOLE))
        self._change_lsn = lsn
        self._ordinal = ordinal + changes
        table.captured += changes
        self.events += changes

    def _delete(self, data: bytes) -> None:
        payload = data[_HEADER_BYTES:]
        table = self._table(payload)
        ordinal = self._ordinal
        if table is None or self._skip_all or ordinal < self._skip_below:
            self._count(data, 1)
            return
        (lsn,) = _START_LSN(data, 1)
        key, before = table.encoder.delete(payload)
        rows = table.rows or self._rows(table)
        table.sink.append(key, rows.delete(before, lsn, ordinal))
        if key is not None:
            table.sink.append(key, None)
            if table.changed is not None:
                table.changed.append((key, self._xid, WHOLE))
        self._change_lsn = lsn
        self._ordinal = ordinal + 1
        table.captured += 1
        self.events += 1

    def _other(self, data: bytes) -> Relation | Message | None:
        message = decode(data[_HEADER_BYTES:])
        if isinstance(message, Begin):
            self._begin(message)
        elif isinstance(message, Commit):
            self._commit(message)
        elif isinstance(message, Relation):
            return message
        elif isinstance(message, Truncate):
            self._truncate(data, message)
        elif isinstance(message, Origin):
            self._origin, self._origin_lsn = message.name, message.origin_lsn
        elif isinstance(message, Message):
            if self.message_sink is None and not message.prefix.startswith(OWN_MESSAGE_PREFIX):
                return message
            self._message(data, message)
        elif not isinstance(message, Type):
            raise DecodeError(f"unexpected {type(message).__name__}", offset=_HEADER_BYTES)
        return None

    def _begin(self, begin: Begin) -> None:
        if self._in_transaction:
            raise DecodeError("a Begin inside a transaction", offset=0)
        self._in_transaction = True
        self._commit_lsn, self._commit_us, self._xid = begin.final_lsn, begin.commit_us, begin.xid
        self._ordinal = 0
        self._origin = self._origin_lsn = None
        self._skip_all = False
        self._skip_below = 0
        rejoin = self._rejoin
        if rejoin is None:
            return
        self._skip_all = rejoin.skipping(begin.final_lsn, begin.xid, begin.commit_us)
        if not self._skip_all:
            pending = self._pending
            if pending is not None:
                rejoin.resumed(begin.final_lsn, begin.xid, begin.commit_us)
                self._skip_below = pending.published

    def _commit(self, commit: Commit) -> None:
        if not self._in_transaction or commit.commit_lsn != self._commit_lsn:
            raise DecodeError("a Commit that does not end the transaction at hand", offset=0)
        if not self._skip_all:
            if self._ordinal < self._skip_below and self._rejoin is not None:
                self._rejoin.shorter(self._ordinal)
            self._last_commit = LastCommit(self._commit_lsn, self._xid, self._commit_us)
            self._lsn = commit.end_lsn
            self._rejoin = self._pending = None
        self._in_transaction = False
        self._shown_lsn = commit.end_lsn
        self._previous_commit_lsn = self._commit_lsn
        self.last_commit_us = self._commit_us
        self.new_batch()
        marked = self.windows.committed(self._xid, self._commit_lsn, self._commit_us)
        if marked is not None:
            table = self._tables.get(marked)
            if table is not None:
                table.changed = self.windows.changes.get(marked)

    def _truncate(self, data: bytes, truncate: Truncate) -> None:
        (lsn,) = _START_LSN(data, 1)
        for oid in truncate.relations:
            if oid not in self._tables:
                raise DecodeError(
                    f"a Truncate of relation {oid}, which no Relation message described", offset=0
                )
            table = self._tables[oid]
            if table is None or self._skip_all or self._ordinal < self._skip_below:
                self._count(data, 1)
                continue
            rows = table.rows or self._rows(table)
            table.sink.append(None, rows.truncate(lsn, self._ordinal))
            self.windows.truncated(oid)
            if self.on_truncate is not None:
                self.on_truncate(oid, self._commit_lsn)
            self._change_lsn = lsn
            self._ordinal += 1
            table.captured += 1
            self.events += 1

    def _message(self, data: bytes, message: Message) -> None:
        own = message.prefix.startswith(OWN_MESSAGE_PREFIX)
        if message.transactional:
            if message.prefix == MARK_PREFIX and not self._skip_all:
                self.windows.mark(message.content)
            if own or self._skip_all or self._ordinal < self._skip_below:
                self._count(data, 1)
                return
            self._publish_message(message, self._commit_lsn, self._ordinal, self._commit_us, self._xid)
            (self._change_lsn,) = _START_LSN(data, 1)
            self._ordinal += 1
            return
        if self._in_transaction:
            raise DecodeError("a non-transactional message inside a transaction", offset=_HEADER_BYTES)
        # Outside a transaction its LSN is where its record ends: a place that the server has written.
        if message.lsn <= self._lsn:
            return
        self.keepalive(message.lsn)
        if not own:
            self._publish_message(message, message.lsn, 0, self._now_us(), None)

    def _publish_message(
        self, message: Message, commit_lsn: int, ordinal: int, commit_us: int, xid: int | None
    ) -> None:
        value = self._messages.message(
            message.prefix,
            message.content,
            lsn=message.lsn,
            ordinal=ordinal,
            commit_us=commit_us,
            xid=xid,
            commit_lsn=commit_lsn,
            previous_commit_lsn=self._previous_commit_lsn,
            now_us=self._now_us(),
            origin=self._origin if xid is not None else None,
        )
        assert self.message_sink is not None  # `_other` hands the message back before
        self.message_sink.append(orjson.dumps({"prefix": message.prefix}), value)
        self.events += 1
