"""What waits in a sql target for a person or for another partition (H23, H24), and for gates.

    _tailrace_parked   (flow, topic, partition, key, sequence): changes of a refused key, in their order
    _tailrace_gates    (flow, topic): a held truncate or too many deletes, and what was decided
    _tailrace_deleted  (flow, topic, partition, time): rows deleted, to judge deletes of the last minutes by

`write` belongs into the rows' transaction; what changes something else is a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from consumers.apply.checkpoint import Place
from consumers.apply.fold import Version
from consumers.targets.base import Batch, Gate, Parked, check_wishes
from consumers.targets.sql_state import key_hash, meta

DELETED_KEEP_S = 3600.0  # counts of deletes: longer than any gate looks back

parked = Table(
    "_tailrace_parked",
    meta,
    *(Column(name, kind, primary_key=True, autoincrement=False) for name, kind in (
        ("flow", Text), ("topic", Text), ("partition", Integer), ("key_hash", LargeBinary(16)),
        ("sequence", BigInteger),
    )),
    Column("key", LargeBinary, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("lsn", BigInteger, nullable=False),
    Column("ordinal", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("decodes", Boolean, nullable=False),
    Column("schema_name", Text, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("waiting", Boolean, nullable=False),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("parked_us", BigInteger, nullable=False),
    Column("asked", Text, nullable=False),
    Column("asked_by", Text, nullable=False),
)  # fmt: skip
gates = Table(
    "_tailrace_gates",
    meta,
    Column("flow", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("table_rows", BigInteger, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    Column("up_to_us", BigInteger, nullable=False),
    Column("decided_by", Text, nullable=False),
)
deleted = Table(
    "_tailrace_deleted",
    meta,
    Column("flow", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Index("_tailrace_deleted_at", "flow", "topic", "at_us"),
)

_PLACE = ("flow", "topic", "partition")
_KEY_COLUMNS = tuple(parked.c[name] for name in (*_PLACE, "key_hash"))
_AT_KEY = (
    *(parked.c[name] == bindparam(f"b_{name}") for name in _PLACE),
    parked.c.key_hash == bindparam("b_key_hash"),
)


def _bound(place: Place, key: bytes) -> dict[str, Any]:
    at = dict(zip((f"b_{name}" for name in _PLACE), place, strict=True))
    return {**at, "b_key_hash": key_hash(key)}


# In the rows' transaction


def write(connection: Connection, batch: Batch, lost: set[Place], now_us: int) -> None:
    """What the batch parks, un-parks and counts, of places that are not lost."""
    unparks = [_bound(place, key) for place, key in batch.unparks if place not in lost]
    if unparks:
        connection.execute(delete(parked).where(*_AT_KEY), unparks)
    parks = [_row(entry) for entry in batch.parks if entry.place not in lost]
    if parks:
        connection.execute(insert(parked), parks)
    counts = [
        {**dict(zip(_PLACE, place, strict=True)), "at_us": now_us, "rows": rows}
        for place, rows in batch.deleted.items()
        if place not in lost and rows
    ]
    if counts:
        connection.execute(insert(deleted), counts)


def check(connection: Connection, batch: Batch, lost: set[Place]) -> None:
    """Whether operators ask for what was read; the transaction has the write lock. Raises AskedAnew."""
    asked = {}
    statement = select(parked.c.asked).where(*_AT_KEY, parked.c.asked != "").limit(1)
    for place, key in batch.wishes:
        asked[place, key] = connection.execute(statement, _bound(place, key)).scalar() or ""
    check_wishes(batch, lost, asked)


def _row(entry: Parked) -> dict[str, Any]:
    epoch, lsn, ordinal = entry.version
    return {
        **dict(zip(_PLACE, entry.place, strict=True)),
        "key_hash": key_hash(entry.key),
        "sequence": entry.sequence,
        "key": entry.key,
        "offset": entry.offset,
        "epoch": epoch,
        "lsn": lsn,
        "ordinal": ordinal,
        "payload": entry.payload,
        "decodes": entry.decodes,
        "schema_name": entry.schema,
        "table_name": entry.table,
        "waiting": entry.waiting,
        "code": entry.code,
        "message": entry.message,
        "attempts": entry.attempts,
        "parked_us": entry.parked_us,
        "asked": entry.asked,
        "asked_by": entry.asked_by,
    }


# By themselves


def read(connection: Connection, places: Iterable[Place] | None, *, asked: bool) -> list[Parked]:
    query = select(parked).order_by(*(parked.c[name] for name in (*_PLACE, "key", "sequence")))
    if asked:  # all that waits of a key: what has joined since it was marked has no mark
        marked = select(*_KEY_COLUMNS).where(parked.c.asked != "")
        query = query.where(tuple_(*_KEY_COLUMNS).in_(marked))
    wanted = None if places is None else set(places)
    if wanted is not None:
        query = query.where(parked.c.flow.in_(sorted({place.flow for place in wanted})))
    found = []
    for row in connection.execute(query):
        place = Place(row.flow, row.topic, row.partition)
        if wanted is None or place in wanted:
            found.append(
                Parked(
                    place, row.key, row.sequence, row.offset, (row.epoch, row.lsn, row.ordinal), row.payload,
                    row.decodes, row.schema_name, row.table_name, row.waiting, row.code, row.message,
                    row.attempts, row.parked_us, row.asked, row.asked_by,
                )
            )  # fmt: skip
    return found


def keys_above(connection: Connection, flow: str, topic: str, version: Version) -> list[tuple[Place, bytes]]:
    """Keys with a change above the version."""
    above = tuple_(parked.c.epoch, parked.c.lsn, parked.c.ordinal) > tuple_(*version)
    of_topic = (parked.c.flow == flow) & (parked.c.topic == topic)
    query = select(parked.c.partition, parked.c.key).where(of_topic, parked.c.decodes, above).distinct()
    return [(Place(flow, topic, partition), key) for partition, key in connection.execute(query)]


def ask(connection: Connection, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
    statement = update(parked).where(*_AT_KEY).values(asked=action, asked_by=who)
    return sum(connection.execute(statement, _bound(*key)).rowcount > 0 for key in dict.fromkeys(keys))


def read_gates(connection: Connection) -> list[Gate]:
    query = select(gates).order_by(gates.c.flow, gates.c.topic)
    return [Gate(*row) for row in connection.execute(query)]


def hold(connection: Connection, gate: Gate) -> None:
    at = (gates.c.flow == gate.flow) & (gates.c.topic == gate.topic)
    known = connection.execute(select(gates).where(at)).first()
    since_us = gate.since_us
    if known is not None and Gate(*known).stays(gate):
        return
    if known is not None:
        if (known.state, gate.state) == ("held", "held"):
            since_us = known.since_us
        connection.execute(delete(gates).where(at))
    row = {name: getattr(gate, name) for name in gates.c.keys()}  # noqa: SIM118
    connection.execute(insert(gates), {**row, "since_us": since_us})


def decide(connection: Connection, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
    at = (gates.c.flow == flow) & (gates.c.state == "held")
    topics = [topic for (topic,) in connection.execute(select(gates.c.topic).where(at))]
    connection.execute(update(gates).where(at).values(state=state, decided_by=who, up_to_us=up_to_us))
    return [gate for gate in read_gates(connection) if gate.flow == flow and gate.topic in topics]


def recent_deletes(connection: Connection, flow: str, topic: str, since_us: int) -> int:
    at = (deleted.c.flow == flow) & (deleted.c.topic == topic) & (deleted.c.at_us >= since_us)
    return int(connection.execute(select(func.coalesce(func.sum(deleted.c.rows), 0)).where(at)).scalar_one())


def purge(connection: Connection, now_us: int) -> None:
    """Forget counts of deletes that no gate looks at any more."""
    connection.execute(delete(deleted).where(deleted.c.at_us < now_us - round(DELETED_KEEP_S * 1e6)))
