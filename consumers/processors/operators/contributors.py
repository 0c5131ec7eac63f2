"""The hop that keeps what several inputs' rows say of one derived row. Pure.

A derived row that does not hold its input row's key may be said by any of them, from any partition, in no
order. So every input row is a contributor of its own here: it says a row, or that it says none any more, and
the derived row is that of the contributor with the highest version. A row that goes from one group to another
therefore never ends deleted, whichever of the two messages comes first.

    forwarded   key: the derived key; value: [contributor, version, row | null]
    table "by"  derived key, NUL, contributor -> [version, row]
    table "out" derived key -> the row that was emitted last
"""

from __future__ import annotations

from orjson import dumps, loads

from consumers.processors.context import Context, Forwarded, Input, Row, Version

BY = "by"
OUT = "out"


def contribution(contributor: str, version: Version, row: Row | None) -> bytes:
    """The value to forward."""
    return dumps([contributor, version, row])


class Contributors:
    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Forwarded)
        contributor, version, row = loads(record.value)
        by = context.table(BY)
        place = record.key + b"\x00" + contributor.encode()
        if row is None:
            by.delete(place)
        else:
            by.put(place, dumps([version, row]))
        settle(record.key, self._best(record.key, context), context)

    @staticmethod
    def _best(key: bytes, context: Context) -> Row | None:
        best: tuple[Version, bytes] | None = None
        chosen: Row | None = None
        for place, value in context.table(BY).scan(key + b"\x00"):
            version, row = loads(value)
            rank = (tuple(version), place)
            if best is None or rank > best:
                best, chosen = rank, row
        return chosen


def settle(key: bytes, row: Row | None, context: Context) -> None:
    """Emit the derived row if it is another than the one that was emitted last."""
    out = context.table(OUT)
    noted = out.get(key)
    if row is None:
        if noted is not None:
            out.delete(key)
            context.emit(loads(key), None, before=loads(noted))
        return
    bytes_now = dumps(row)
    if bytes_now == noted:
        return
    out.put(key, bytes_now)
    context.emit(loads(key), row, before=None if noted is None else loads(noted))
