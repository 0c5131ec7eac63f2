"""The first copy: every table as the slot's exported snapshot shows it, by COPY.

Its transaction holds the tables since before the slot was made (copy_start). Rows are op r with version
(epoch, consistent_point, 0).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from psycopg import sql

from streamer.changes.envelope import (
    SNAPSHOT_FIRST,
    SNAPSHOT_LAST,
    SNAPSHOT_LAST_OF_TABLE,
    SNAPSHOT_ROW,
    RowTemplate,
    SourceTemplate,
)
from streamer.postgres.catalog import Table
from streamer.postgres.connection import Connection, CopyStream, start_copy
from streamer.postgres.rows import RowEncoder
from streamer.postgres.transactions import Sink

ROWS_BETWEEN_PAUSES = 500  # lets heartbeats and the flush in hand run; 500 rows are a few milliseconds


@dataclass(frozen=True, slots=True)
class SnapshotTable:
    """A table with what is needed to copy it. `columns` in the stream's order."""

    table: Table
    columns: tuple[str, ...]
    encoder: RowEncoder
    source: SourceTemplate
    sink: Sink


@dataclass(slots=True)
class Progress:
    """Shown in `status` while the copy runs."""

    tables: int
    tables_done: int = 0
    table: str = ""
    rows: int = 0
    copied: dict[str, int] = field(default_factory=dict)  # schema.table -> rows

    def took(self, table: str, rows: int) -> None:
        self.rows += rows
        self.copied[table] = self.copied.get(table, 0) + rows


class SnapshotCopy:
    """Copies tables one after the other; `room` waits until the publisher has room."""

    def __init__(
        self,
        reader: Connection,
        *,
        consistent_point: int,
        now_us: Callable[[], int],
        room: Callable[[], Awaitable[None]],
        progress: Progress,
    ) -> None:
        self._reader = reader
        self._lsn = consistent_point
        self._now_us = now_us
        self._room = room
        self._progress = progress
        self._first = True

    async def copy(self, item: SnapshotTable, *, last_table: bool, floor: bool) -> None:
        """One table; with `floor`, a floor (epoch, 0, 0) after it removes what older epochs left (H3).

        A table without rows gets one in any case, so that the targets make the table.
        """
        self._progress.table = item.table.qualified
        # Rows of a table that inherits are its own in the stream; a partitioned root has none of its own.
        only = sql.SQL("") if item.table.partitioned else sql.SQL("ONLY ")
        command = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, item.columns)), only, item.table.identifier
        )
        stream = await start_copy(self._reader, command.as_bytes(self._reader))
        await self._rows(stream, item, last_table)
        await stream.result()
        if floor or not self._progress.copied[item.table.qualified]:
            now_us = self._now_us()
            item.sink.append(None, item.source.floor(lsn=self._lsn, commit_us=now_us, now_us=now_us))
        self._progress.tables_done += 1
        await self._room()

    async def _rows(self, stream: CopyStream, item: SnapshotTable, last_table: bool) -> None:
        """A row is appended when the next has arrived: only then is it known not to be the last."""
        now_us = self._now_us()
        rows = self._template(item, SNAPSHOT_ROW, now_us)
        waiting: tuple[bytes | None, bytes] | None = None
        copy_row, append, lsn = item.encoder.copy_row, item.sink.append, self._lsn
        taken = 0
        try:
            while True:
                data = stream.take()
                if data is None:
                    await stream.readable()
                    continue
                if waiting is not None:
                    key, after = waiting
                    if self._first:
                        self._first = False
                        append(key, self._template(item, SNAPSHOT_FIRST, now_us).read(after, lsn))
                    else:
                        append(key, rows.read(after, lsn))
                waiting = copy_row(bytes(data))
                taken += 1
                if taken >= ROWS_BETWEEN_PAUSES:
                    self._progress.took(item.table.qualified, taken)
                    taken = 0
                    await self._room()
                    now_us = self._now_us()
                    rows = self._template(item, SNAPSHOT_ROW, now_us)
        except EOFError:
            pass
        self._progress.took(item.table.qualified, taken)
        if waiting is not None:
            key, after = waiting
            mark = SNAPSHOT_LAST if last_table else SNAPSHOT_LAST_OF_TABLE
            append(key, self._template(item, mark, now_us).read(after, lsn))
            self._first = False

    def _template(self, item: SnapshotTable, mark: str, now_us: int) -> RowTemplate:
        return item.source.transaction(
            commit_us=now_us,
            xid=None,
            commit_lsn=self._lsn,
            previous_commit_lsn=None,
            now_us=now_us,
            snapshot=mark,
        )
