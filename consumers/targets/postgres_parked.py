"""What waits in a Postgres target for a person or for another partition (H23, H24), and for gates.

    parked   (flow, topic, partition, key, sequence): changes of a key that was refused, in their order
    gates    (flow, topic): a held truncate or too many deletes, and what was decided
    deleted  (flow, topic, partition, time): rows deleted, to judge deletes of the last minutes by

Keys stand as bytes, which people read, beside the hash that finds them: an index entry has a limit.
`write` belongs into the rows' transaction; the other functions are statements of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from consumers.apply.checkpoint import Place
from consumers.apply.fold import Version
from consumers.targets import postgres_state as state
from consumers.targets.base import DECIDED, Batch, Gate, Parked, check_wishes
from consumers.targets.postgres_arrays import plain, quoted
from consumers.targets.postgres_catalog import quote

COUNTED_ROWS = 100_000  # counted exactly up to here, in some 20 ms; above it the planner's estimate is used
DELETED_KEEP_S = 3600.0  # counts of deletes: longer than any gate looks back

DDL = (
    """CREATE TABLE IF NOT EXISTS _tailrace.parked (
        flow text, topic text, partition int, key_hash uuid, sequence bigint, key bytea NOT NULL,
        "offset" bigint NOT NULL, epoch int NOT NULL, lsn bigint NOT NULL, ordinal bigint NOT NULL,
        payload bytea NOT NULL, decodes boolean NOT NULL, schema_name text NOT NULL, table_name text NOT NULL,
        waiting boolean NOT NULL, code text NOT NULL, message text NOT NULL, attempts int NOT NULL,
        parked_us bigint NOT NULL, asked text NOT NULL DEFAULT '', asked_by text NOT NULL DEFAULT '',
        PRIMARY KEY (flow, topic, partition, key_hash, sequence))""",
    """CREATE TABLE IF NOT EXISTS _tailrace.gates (
        flow text, topic text, kind text NOT NULL, state text NOT NULL, rows bigint NOT NULL,
        table_rows bigint NOT NULL, since_us bigint NOT NULL, up_to_us bigint NOT NULL,
        decided_by text NOT NULL, PRIMARY KEY (flow, topic))""",
    """CREATE TABLE IF NOT EXISTS _tailrace.deleted (
        flow text, topic text, partition int, at timestamptz NOT NULL DEFAULT now(), rows bigint NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS deleted_at ON _tailrace.deleted (flow, topic, at)",
)

_UNPARK = """DELETE FROM _tailrace.parked p
USING unnest($1::text[], $2::text[], $3::int[], $4::uuid[]) s (flow, topic, partition, key_hash)
WHERE (p.flow, p.topic, p.partition, p.key_hash) = (s.flow, s.topic, s.partition, s.key_hash)"""

_PARK = """INSERT INTO _tailrace.parked (flow, topic, partition, key_hash, sequence, key, "offset", epoch,
lsn, ordinal, payload, decodes, schema_name, table_name, waiting, code, message, attempts, parked_us, asked,
asked_by) SELECT * FROM
unnest($1::text[], $2::text[], $3::int[], $4::uuid[], $5::bigint[], $6::bytea[], $7::bigint[],
$8::int[], $9::bigint[], $10::bigint[], $11::bytea[], $12::boolean[], $13::text[], $14::text[],
$15::boolean[], $16::text[], $17::text[], $18::int[], $19::bigint[], $20::text[], $21::text[])"""

_COUNT_DELETED = """INSERT INTO _tailrace.deleted (flow, topic, partition, rows)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[])"""

_COLUMNS = """p.flow, p.topic, p.partition, p.key, p.sequence, p."offset", p.epoch, p.lsn, p.ordinal,
p.payload, p.decodes, p.schema_name, p.table_name, p.waiting, p.code, p.message, p.attempts, p.parked_us,
p.asked, p.asked_by FROM _tailrace.parked p """
_OF_PLACES = """(p.flow, p.topic, p.partition) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::int[]))"""
_ORDER = " ORDER BY p.flow, p.topic, p.partition, p.key, p.sequence"
_ALL = f"SELECT {_COLUMNS}{_ORDER}"
# All that waits of a key: what has joined since it was marked has no mark.
_MARKED = """EXISTS (SELECT FROM _tailrace.parked a WHERE a.asked <> '' AND (a.flow, a.topic, a.partition,
a.key_hash) = (p.flow, p.topic, p.partition, p.key_hash))"""
_ALL_ASKED = f"SELECT {_COLUMNS}WHERE {_MARKED}{_ORDER}"
_OWN = f"SELECT {_COLUMNS}WHERE {_OF_PLACES}{_ORDER}"
_OWN_ASKED = f"SELECT {_COLUMNS}WHERE {_MARKED} AND {_OF_PLACES}{_ORDER}"

_ABOVE = """SELECT DISTINCT p.flow, p.topic, p.partition, p.key FROM _tailrace.parked p
WHERE (p.flow, p.topic) = ($1, $2) AND p.decodes
AND (p.epoch, p.lsn, p.ordinal) > ($3::int, $4::bigint, $5::bigint)"""

_WISHES = """SELECT p.flow, p.topic, p.partition, p.key, p.asked FROM _tailrace.parked p
JOIN unnest($1::text[], $2::text[], $3::int[], $4::uuid[]) s (flow, topic, partition, key_hash)
ON (p.flow, p.topic, p.partition, p.key_hash) = (s.flow, s.topic, s.partition, s.key_hash)
ORDER BY p.flow, p.topic, p.partition, p.key_hash, p.sequence FOR UPDATE OF p"""
# An operator waits for a batch that writes some of the keys anew, which no UPDATE of the old rows would find;
# a batch that has looked at their marks has this lock from there on, and so never waits for an operator then.
_WRITING = "LOCK TABLE _tailrace.parked IN ROW EXCLUSIVE MODE"
_ALONE = "LOCK TABLE _tailrace.parked IN SHARE ROW EXCLUSIVE MODE"
_ASK = """WITH u AS (UPDATE _tailrace.parked p SET asked = $5, asked_by = $6
FROM unnest($1::text[], $2::text[], $3::int[], $4::uuid[]) s (flow, topic, partition, key_hash)
WHERE (p.flow, p.topic, p.partition, p.key_hash) = (s.flow, s.topic, s.partition, s.key_hash)
RETURNING p.flow, p.topic, p.partition, p.key_hash)
SELECT count(*) FROM (SELECT DISTINCT * FROM u) d"""

_GATE = "flow, topic, kind, state, rows, table_rows, since_us, up_to_us, decided_by"
_GATES = f"SELECT {_GATE} FROM _tailrace.gates ORDER BY flow, topic"
_HOLD = f"""INSERT INTO _tailrace.gates AS g ({_GATE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (flow, topic) DO UPDATE SET kind = excluded.kind, state = excluded.state, rows = excluded.rows,
table_rows = excluded.table_rows, up_to_us = excluded.up_to_us, decided_by = excluded.decided_by,
since_us = CASE WHEN (g.state, excluded.state) = ('held', 'held') THEN g.since_us
ELSE excluded.since_us END
WHERE NOT (excluded.state = ANY ($10::text[]) OR (g.state = ANY ($10::text[]) AND excluded.state = 'held'
AND g.kind = excluded.kind AND g.since_us <= $11::bigint AND excluded.up_to_us <= g.up_to_us))"""
_DECIDE = f"""UPDATE _tailrace.gates SET state = $2, decided_by = $3, up_to_us = $4
WHERE flow = $1 AND state = 'held' RETURNING {_GATE}"""

_RECENT = """SELECT coalesce(sum(rows), 0)::bigint FROM _tailrace.deleted
WHERE flow = $1 AND topic = $2 AND at > now() - make_interval(secs => $3)"""
_FORGET = "DELETE FROM _tailrace.deleted WHERE at < now() - make_interval(secs => $1)"

_RELATION = """SELECT to_regclass(format('%I.%I', $1::text, $2::text))::oid::bigint"""
_ESTIMATE = """SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
WHERE c.oid = $1::oid OR c.oid IN (SELECT relid FROM pg_partition_tree($1::oid::regclass))"""


async def ensure(connection: state.Connection) -> None:
    """Make the tables, also in a target that an earlier program has made."""
    there = await (
        await connection.execute("SELECT to_regclass('_tailrace.deleted') IS NOT NULL", prepare=False)
    ).fetchone()
    if there and there[0]:
        return
    async with state.making(connection):
        await state.create(connection, DDL)


# In the rows' transaction


async def write(connection: state.Connection, batch: Batch, lost: set[Place]) -> None:
    """What the batch parks, un-parks and counts, of places that are not lost."""
    unparks = [(place, key) for place, key in batch.unparks if place not in lost]
    if unparks:
        await connection.execute(_UNPARK, _key_columns(unparks), prepare=True)
    parks = [parked for parked in batch.parks if parked.place not in lost]
    if parks:
        await connection.execute(_PARK, _park_columns(parks), prepare=True)
    deleted = [(place, rows) for place, rows in batch.deleted.items() if place not in lost and rows]
    if deleted:
        places = state.columns_of([place for place, _ in deleted])
        await connection.execute(
            _COUNT_DELETED, (*places, plain([rows for _, rows in deleted])), prepare=True
        )


def _key_columns(keys: list[tuple[Place, bytes]]) -> tuple[str, str, str, str]:
    return *state.columns_of([place for place, _ in keys]), plain([state.key_hash(key) for _, key in keys])


def _bytes(column: Iterable[bytes]) -> str:
    return quoted([f"\\x{value.hex()}" for value in column])


def _texts(column: Iterable[str]) -> str:
    return quoted([value.replace("\0", "\ufffd") for value in column])


def _park_columns(parks: list[Parked]) -> tuple[Any, ...]:
    return (
        *_key_columns([(p.place, p.key) for p in parks]),
        plain([p.sequence for p in parks]),
        _bytes(p.key for p in parks),
        plain([p.offset for p in parks]),
        *(plain(column) for column in zip(*[p.version for p in parks], strict=True)),
        _bytes(p.payload for p in parks),
        plain(["t" if p.decodes else "f" for p in parks]),
        _texts(p.schema for p in parks),
        _texts(p.table for p in parks),
        plain(["t" if p.waiting else "f" for p in parks]),
        _texts(p.code for p in parks),
        _texts(p.message for p in parks),
        plain([p.attempts for p in parks]),
        plain([p.parked_us for p in parks]),
        _texts(p.asked for p in parks),
        _texts(p.asked_by for p in parks),
    )


async def check(connection: state.Connection, batch: Batch, lost: set[Place]) -> None:
    """Whether operators ask for what was read, from here on until the end. Raises AskedAnew."""
    keys = [key for key in batch.wishes if key[0] not in lost]
    if not keys:
        return
    await connection.execute(_WRITING)
    cursor = await connection.execute(_WISHES, _key_columns(keys), prepare=True)
    rows: list[tuple[Any, ...]] = await cursor.fetchall()
    asked = {(Place(*place), bytes(key)): wish for *place, key, wish in rows if wish}
    check_wishes(batch, lost, asked)


# Statements of their own


async def read(connection: state.Connection, places: Iterable[Place] | None, *, asked: bool) -> list[Parked]:
    if places is None:
        cursor = await connection.execute(_ALL_ASKED if asked else _ALL)
    else:
        statement = _OWN_ASKED if asked else _OWN
        cursor = await connection.execute(statement, state.columns_of(sorted(places)))
    return [_parked(row) for row in await cursor.fetchall()]


def _parked(row: tuple[Any, ...]) -> Parked:
    flow, topic, partition, key, sequence, offset, epoch, lsn, ordinal, payload, *rest = row
    place, version = Place(flow, topic, partition), (epoch, lsn, ordinal)
    return Parked(place, bytes(key), sequence, offset, version, bytes(payload), *rest)


async def keys_above(
    connection: state.Connection, flow: str, topic: str, version: Version
) -> list[tuple[Place, bytes]]:
    """Keys with a change above the version."""
    cursor = await connection.execute(_ABOVE, (flow, topic, *version), prepare=True)
    rows: list[tuple[Any, ...]] = await cursor.fetchall()
    return [(Place(flow, topic, partition), bytes(key)) for flow, topic, partition, key in rows]


async def ask(
    connection: state.Connection, keys: Iterable[tuple[Place, bytes]], action: str, who: str
) -> int:
    async with connection.transaction():
        await connection.execute(_ALONE)
        cursor = await connection.execute(_ASK, (*_key_columns(list(keys)), action, who))
        return await _number(cursor)


async def gates(connection: state.Connection) -> list[Gate]:
    return [Gate(*row) for row in await (await connection.execute(_GATES)).fetchall()]  # type: ignore[arg-type]


async def hold(connection: state.Connection, gate: Gate) -> None:
    place = gate.flow, gate.topic, gate.kind, gate.state
    numbers = gate.rows, gate.table_rows, gate.since_us, gate.up_to_us
    stays = quoted(DECIDED), gate.covered_since_us  # as Gate.stays has it
    await connection.execute(_HOLD, (*place, *numbers, gate.decided_by, *stays))


async def decide(
    connection: state.Connection, flow: str, decision: str, who: str, up_to_us: int
) -> list[Gate]:
    cursor = await connection.execute(_DECIDE, (flow, decision, who, up_to_us))
    return [Gate(*row) for row in await cursor.fetchall()]  # type: ignore[arg-type]


async def recent_deletes(connection: state.Connection, flow: str, topic: str, window_s: float) -> int:
    return await _number(await connection.execute(_RECENT, (flow, topic, window_s)))


async def count_rows(connection: state.Connection, schema: str, table: str) -> int:
    """Exact up to COUNTED_ROWS, then what the catalogue estimates, which is not less than that."""
    row = await (await connection.execute(_RELATION, (schema, table))).fetchone()
    if row is None or row[0] is None:
        return 0
    relation = f"{quote(schema)}.{quote(table)}"
    some = f"SELECT count(*) FROM (SELECT FROM {relation} LIMIT {COUNTED_ROWS}) s"
    counted = await _number(await connection.execute(some, prepare=False))
    if counted < COUNTED_ROWS:
        return counted
    return max(counted, await _number(await connection.execute(_ESTIMATE, (row[0],))))


async def purge(connection: state.Connection) -> None:
    """Forget counts of deletes that no gate looks at any more."""
    await connection.execute(_FORGET, (DELETED_KEEP_S,))


async def _number(cursor: Any) -> int:
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
