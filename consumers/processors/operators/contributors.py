"""The hop that keeps what several inputs' rows say of one derived row. Pure.

A derived row that does not hold its input row's key, or whose inputs are several, may be said by any row,
from any partition, in no order. So every input row is a contributor of its own here: it says a row, or that
it says none any more, and the derived row is that of the contributor with the highest rank (see `rank_of`).
A row that goes from one group to another therefore never ends deleted, whichever of the two messages comes
first. One that is only read again, by a backfill, keeps its rank.

    forwarded   key: the place; value: [contributor, rank, row | null, {column: type}, whether it was read]
    place       the derived key; of a table that the body has named: 0x01, table, NUL, the derived key
    table "by"  place, NUL, contributor -> [rank, row, {column: type}]
    table "out" place -> the row that was emitted last

The types are those of values that have none in JSON (Decimal, dates, UUID), for columns whose type is
inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from types import NoneType
from typing import Any, Final
from uuid import UUID

from orjson import loads

from consumers.processors.context import Change, Context, Forwarded, Input, Row
from consumers.processors.fitting import Exact
from consumers.processors.shapes import dumps, inferred

BY = "by"
OUT = "out"

_NAMED: Final = b"\x01"  # no key's JSON begins with it
_PLAIN: Final = frozenset((str, int, float, bool, NoneType, list, dict))
_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "numeric": Exact,
    "date": date.fromisoformat,
    "timestamp without time zone": lambda text: datetime.fromisoformat(text).replace(tzinfo=None),
    "timestamp with time zone": datetime.fromisoformat,
    "uuid": UUID,
}


def place_of(key: bytes, table: str | None) -> bytes:
    """The key to forward; `key`: the derived one."""
    return key if table is None else b"%b%b\x00%b" % (_NAMED, table.encode(), key)


def rank_of(change: Change, inputs: Sequence[str]) -> tuple[int, ...]:
    """Who changed last ranks highest. Versions of one source have its commits' order, those of two none."""
    one_source = len({topic.partition(".")[0] for topic in inputs}) == 1
    return change.version if one_source else (change.commit_us, *change.version)


def contribution(contributor: str, rank: Sequence[int], row: Row | None, *, again: bool = False) -> bytes:
    """The value to forward. `again`: the input's row was read, not changed. Raises BadRecordError."""
    types: dict[str, str] = {}
    if row is not None and not _PLAIN.issuperset(map(type, row.values())):
        found = {name: inferred(name, value).type for name, value in row.items() if type(value) not in _PLAIN}
        types = {name: type_ for name, type_ in found.items() if type_ in _READ}
    return dumps([contributor, rank, row, types, again])


class Contributors:
    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Forwarded)
        contributor, its_rank, row, types, again = loads(record.value)
        by = context.table(BY)
        place = record.key + b"\x00" + contributor.encode()
        if row is None:
            by.delete(place)
        else:
            if again and (noted := by.get(place)) is not None and loads(noted)[1:] == [row, types]:
                return  # a backfill, or a second copy: it did not change
            by.put(place, dumps([its_rank, row, types]))
        _settle(record.key, self._best(record.key, context), context)

    @staticmethod
    def _best(key: bytes, context: Context) -> Row | None:
        best: tuple[tuple[int, ...], bytes] | None = None
        chosen: Row | None = None
        types: Mapping[str, str] = {}
        for place, value in context.table(BY).scan(key + b"\x00"):
            its_rank, row, its_types = loads(value)
            rank = (tuple(its_rank), place)
            if best is None or rank > best:
                best, chosen, types = rank, row, its_types
        if chosen is not None:
            chosen.update({name: _READ[type_](chosen[name]) for name, type_ in types.items()})
        return chosen


def _settle(place: bytes, row: Row | None, context: Context) -> None:
    """Emit the derived row if it is another than the one that was emitted last."""
    out = context.table(OUT)
    noted = out.get(place)
    before = None if noted is None else loads(noted)
    table, key = None, place
    if place.startswith(_NAMED):
        name, _, key = place[1:].rpartition(b"\x00")
        table = name.decode()
    if row is None:
        if noted is not None:
            out.delete(place)
            context.emit(loads(key), None, before=before, table=table)
        return
    bytes_now = dumps(row)
    if bytes_now == noted:
        return
    out.put(place, bytes_now)
    context.emit(loads(key), row, before=before, table=table)
