"""The schema `_tailrace` of a Postgres target: what apply keeps beside the rows.

    identity      one row: id of this target, the group bound to it, and the database it was made in (H30)
    checkpoints   (flow, topic, partition): next offset, Kafka cluster, the last record's identity (H14)
    floors        (table): rows and events at or below this version are gone (H5)
    tombstones    (flow, topic, partition, key): version of a delete, kept as long as the topics
    needs_reread  (flow, table, key): rows that are not whole until read again from the source (H7)
    parked, gates, deleted: see postgres_parked; replays: see postgres_replays; columns: see postgres_columns

Made when missing, under an advisory lock, so that several processes may start at once. Keys are kept
as a hash in tombstones, where they are many, and readable in needs_reread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from uuid import UUID, uuid4

from psycopg import AsyncConnection, errors

from consumers.apply.checkpoint import Checkpoint, LastRecord, Place
from consumers.targets.postgres_arrays import plain, quoted
from streamer.config.stores import if_shared
from streamer.errors import ConfigError, FatalError
from streamer.postgres import rights

FORMAT = 1
LOCK = 0x7461696C72616365  # 'tailrace': the advisory lock around every DDL of ours
PURGE_ROWS = 20_000  # a sweep: short enough to wait for in the apply loop

Connection = AsyncConnection[tuple[object, ...]]

_DDL = (
    "CREATE SCHEMA IF NOT EXISTS _tailrace",
    """CREATE TABLE IF NOT EXISTS _tailrace.identity (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        format int NOT NULL, id uuid NOT NULL, consumer_group text NOT NULL,
        system_identifier bigint, database_oid oid NOT NULL, made timestamptz NOT NULL DEFAULT now())""",
    """CREATE TABLE IF NOT EXISTS _tailrace.checkpoints (
        flow text, topic text, partition int, next_offset bigint NOT NULL, cluster_id text,
        last_offset bigint, last_checksum bigint, last_epoch int, last_lsn bigint, last_ordinal bigint,
        updated timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (flow, topic, partition))
        WITH (fillfactor = 50)""",
    """CREATE TABLE IF NOT EXISTS _tailrace.floors (
        schema_name text, table_name text, epoch int NOT NULL, lsn bigint NOT NULL, ordinal bigint NOT NULL,
        PRIMARY KEY (schema_name, table_name)) WITH (fillfactor = 50)""",
    """CREATE TABLE IF NOT EXISTS _tailrace.tombstones (
        flow text, topic text, partition int, key uuid, epoch int NOT NULL, lsn bigint NOT NULL,
        ordinal bigint NOT NULL, deleted timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (flow, topic, partition, key))""",
    "CREATE INDEX IF NOT EXISTS tombstones_deleted ON _tailrace.tombstones (deleted)",
    """CREATE TABLE IF NOT EXISTS _tailrace.needs_reread (
        flow text, topic text, key_hash uuid, schema_name text NOT NULL, table_name text NOT NULL,
        key text NOT NULL, epoch int NOT NULL, lsn bigint NOT NULL, ordinal bigint NOT NULL,
        reason text NOT NULL, noted timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (flow, topic, key_hash))""",
)

_ENSURE_CHECKPOINTS = """INSERT INTO _tailrace.checkpoints (flow, topic, partition, next_offset)
SELECT flow, topic, partition, 0 FROM unnest($1::text[], $2::text[], $3::int[]) s (flow, topic, partition)
ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING"""

_READ_CHECKPOINTS = """SELECT flow, topic, partition, next_offset, cluster_id, coalesce(until_offset, 0),
last_offset, last_checksum, last_epoch, last_lsn, last_ordinal
FROM _tailrace.checkpoints LEFT JOIN _tailrace.replays USING (flow, topic, partition)
WHERE (flow, topic, partition) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::int[]))
ORDER BY 1, 2, 3"""

LOOK = """SELECT flow, topic, partition, next_offset FROM _tailrace.checkpoints
WHERE (flow, topic, partition) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::int[]))"""
IDENTITY = "SELECT id FROM _tailrace.identity"

# A checkpoint that was set back to 0 by hand begins anew, whatever it had applied.
WRITTEN = """SELECT coalesce(max(last_epoch), 0) FROM _tailrace.checkpoints
WHERE flow = $1 AND topic = $2 AND next_offset > 0"""

LOCK_CHECKPOINTS = """SELECT flow, topic, partition, next_offset FROM _tailrace.checkpoints
WHERE (flow, topic, partition) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::int[]))
ORDER BY 1, 2, 3 FOR UPDATE"""

MOVE_CHECKPOINTS = """UPDATE _tailrace.checkpoints c SET next_offset = s.next_offset, cluster_id = $5,
last_offset = coalesce(s.last_offset, c.last_offset), last_checksum = coalesce(s.checksum, c.last_checksum),
last_epoch = coalesce(s.epoch, c.last_epoch), last_lsn = coalesce(s.lsn, c.last_lsn),
last_ordinal = coalesce(s.ordinal, c.last_ordinal), updated = now()
FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $6::bigint[], $7::bigint[], $8::int[],
$9::bigint[], $10::bigint[])
s (flow, topic, partition, next_offset, last_offset, checksum, epoch, lsn, ordinal)
WHERE (c.flow, c.topic, c.partition) = (s.flow, s.topic, s.partition)"""

COUNT_PARTITIONS = "SELECT count(*) FROM _tailrace.checkpoints WHERE flow = $1 AND topic = $2"

_FLOORS = """SELECT schema_name, table_name, epoch, lsn, ordinal FROM _tailrace.floors
WHERE (schema_name, table_name) IN (SELECT * FROM unnest($1::text[], $2::text[])) ORDER BY 1, 2 """
SHARE_FLOORS = _FLOORS + "FOR SHARE"
LOCK_FLOORS = _FLOORS + "FOR UPDATE"

RAISE_FLOOR = """UPDATE _tailrace.floors SET epoch = $3, lsn = $4, ordinal = $5
WHERE schema_name = $1 AND table_name = $2"""
ENSURE_FLOOR = "INSERT INTO _tailrace.floors VALUES ($1, $2, 0, 0, 0) ON CONFLICT DO NOTHING"

BURY = """INSERT INTO _tailrace.tombstones AS t (flow, topic, partition, key, epoch, lsn, ordinal)
SELECT $1, $2, s.* FROM unnest($3::int[], $4::uuid[], $5::int[], $6::bigint[], $7::bigint[]) s
ON CONFLICT (flow, topic, partition, key) DO UPDATE SET epoch = excluded.epoch, lsn = excluded.lsn,
ordinal = excluded.ordinal, deleted = now()
WHERE (t.epoch, t.lsn, t.ordinal) < (excluded.epoch, excluded.lsn, excluded.ordinal)"""

BURIED = """SELECT key, epoch, lsn, ordinal FROM _tailrace.tombstones
WHERE flow = $1 AND topic = $2 AND partition = $3 AND key = ANY ($4::uuid[])"""

HIGHEST_TOMBSTONES = """SELECT DISTINCT ON (topic, partition) topic, partition, epoch, lsn, ordinal
FROM _tailrace.tombstones WHERE flow = $1
ORDER BY topic, partition, epoch DESC, lsn DESC, ordinal DESC"""

NOTE_REREADS = """INSERT INTO _tailrace.needs_reread AS t
(flow, topic, key_hash, schema_name, table_name, key, epoch, lsn, ordinal, reason)
SELECT $1, $2, s.hash, $3, $4, s.key, s.epoch, s.lsn, s.ordinal, s.reason
FROM unnest($5::uuid[], $6::text[], $7::int[], $8::bigint[], $9::bigint[], $10::text[])
s (hash, key, epoch, lsn, ordinal, reason)
ON CONFLICT (flow, topic, key_hash) DO UPDATE SET epoch = excluded.epoch, lsn = excluded.lsn,
ordinal = excluded.ordinal, reason = excluded.reason, noted = now()
WHERE (t.epoch, t.lsn, t.ordinal) <= (excluded.epoch, excluded.lsn, excluded.ordinal)"""

CLEAR_REREADS = """DELETE FROM _tailrace.needs_reread t
USING unnest($3::uuid[], $4::int[], $5::bigint[], $6::bigint[]) s (hash, epoch, lsn, ordinal)
WHERE t.flow = $1 AND t.topic = $2 AND t.key_hash = s.hash
AND (t.epoch, t.lsn, t.ordinal) <= (s.epoch, s.lsn, s.ordinal)"""

FORGET_REREADS = """DELETE FROM _tailrace.needs_reread WHERE schema_name = $1 AND table_name = $2
AND (epoch, lsn, ordinal) <= ($3::int, $4::bigint, $5::bigint)"""

READ_REREADS = """SELECT n.flow, n.topic, n.schema_name, n.table_name, n.key, n.epoch, n.lsn, n.ordinal
FROM (SELECT DISTINCT flow, topic FROM _tailrace.needs_reread WHERE topic = ANY ($1::text[])) f,
LATERAL (SELECT * FROM _tailrace.needs_reread r WHERE r.flow = f.flow AND r.topic = f.topic LIMIT $2) n"""

FLAGGED = "SELECT DISTINCT topic FROM _tailrace.needs_reread WHERE flow = $1"

_PURGE = """DELETE FROM _tailrace.tombstones WHERE ctid = ANY (ARRAY(
SELECT ctid FROM _tailrace.tombstones WHERE deleted < now() - make_interval(secs => $1)
ORDER BY deleted LIMIT $2))"""


def key_hash(key: bytes) -> str:
    """A key's JSON -> the uuid that stands for it."""
    return blake2b(key, digest_size=16).hexdigest()


async def ensure(connection: Connection, group: str) -> UUID:
    """Make what is missing, and this target's id. Raises FatalError when the target is another's."""
    async with making(connection):
        present = await _one(connection, "SELECT to_regclass('_tailrace.identity') IS NOT NULL")
        row = None
        if present[0]:
            row = await _one(
                connection,
                "SELECT format, id, consumer_group, system_identifier, database_oid FROM _tailrace.identity",
            )
            if row and int(str(row[0])) > FORMAT:
                raise FatalError(
                    f"the target's schema _tailrace has format {row[0]}, this program knows {FORMAT}",
                    fix="run the version of Tailrace that made it, or a newer one",
                )
        place = await _database(connection)
        if not row:
            await create(connection, _DDL)
            row = (FORMAT, uuid4(), group, *place)
            await connection.execute(
                "INSERT INTO _tailrace.identity VALUES (true, $1, $2, $3, $4, $5)", row, prepare=False
            )
        _check(row, place, group)
    assert isinstance(row[1], UUID)
    return row[1]


@asynccontextmanager
async def making(connection: Connection) -> AsyncIterator[None]:
    """A transaction that one process at a time is in, for DDL of the schema _tailrace.

    Raises ConfigError with the SQL that gives the role what it lacks; `doctor` prints the same.
    """
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", (LOCK,))
            yield
    except errors.InsufficientPrivilege as error:
        lack = await rights.own_schema(connection)
        what = f"the role may not make the schema {rights.OWN_SCHEMA} in the target"
        fix = "`tailrace doctor` tries what it needs"
        if lack is not None:
            what, fix = lack.what, rights.as_owner(lack.statements)
        raise ConfigError(f"{what}: {error.diag.message_primary}", fix=fix) from error


async def create(connection: Connection, statements: Sequence[str]) -> None:
    """Run DDL of the schema _tailrace, inside `making`."""
    # IF NOT EXISTS asks for the right to make it even where it is there, made by an administrator.
    there = await _one(connection, "SELECT to_regnamespace('_tailrace') IS NOT NULL")
    for statement in statements:
        if not (there[0] and statement.startswith("CREATE SCHEMA")):
            await connection.execute(statement, prepare=False)


async def add(connection: Connection, table: str, statements: Sequence[str]) -> None:
    """A table of `_tailrace` that came later: made also in a target that an earlier program has made."""
    present = await _one(connection, f"SELECT to_regclass('_tailrace.{table}') IS NOT NULL")
    if not (present and present[0]):
        async with making(connection):
            await create(connection, statements)


async def _one(connection: Connection, query: str) -> tuple[object, ...]:
    row = await (await connection.execute(query, prepare=False)).fetchone()
    return row or ()


async def _database(connection: Connection) -> tuple[int | None, int]:
    """(system identifier, oid of the database); the first is None where the role may not read it."""
    oid = await _one(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    try:
        async with connection.transaction():
            system = await _one(connection, "SELECT system_identifier FROM pg_control_system()")
    except errors.InsufficientPrivilege:
        system = (None,)
    return None if system[0] is None else int(str(system[0])), int(str(oid[0]))


def _check(row: tuple[object, ...], place: tuple[int | None, int], group: str) -> None:
    _, _, bound, system, oid = row
    moved = int(str(oid)) != place[1] or (None not in (system, place[0]) and system != place[0])
    if moved:
        raise FatalError(
            "this target is a copy of another: its schema _tailrace was made in another database"
            f" (system {system}, database {oid}; here {place[0]}, {place[1]}), which may still be applied to",
            fix="when the other one is no longer used: UPDATE _tailrace.identity SET id = gen_random_uuid(), "
            f"system_identifier = {'NULL' if place[0] is None else place[0]}, database_oid = {place[1]};"
            " to copy everything anew: DROP SCHEMA _tailrace CASCADE;",
        )
    if bound != group:
        raise FatalError(
            f"this target belongs to the consumer group {bound!r}, not to {group!r}",
            fix=f"{if_shared(str(bound), group, 'postgres')}give the target the name it had in the config"
            " (and `name:` too), or, to hand it over: "
            f"UPDATE _tailrace.identity SET consumer_group = '{group}';",
        )


async def read_checkpoints(connection: Connection, places: list[Place]) -> dict[Place, Checkpoint]:
    await connection.execute(_ENSURE_CHECKPOINTS, columns_of(places))
    return await stands(connection, places)


async def stands(connection: Connection, places: list[Place]) -> dict[Place, Checkpoint]:
    """Those that are there."""
    found = {}
    for row in await (await connection.execute(_READ_CHECKPOINTS, columns_of(places))).fetchall():
        flow, topic, partition, next_offset, cluster, replay_until, *last = row
        place = Place(str(flow), str(topic), int(str(partition)))
        record = None if None in last else LastRecord(*[int(str(part)) for part in last])
        known = None if cluster is None else str(cluster)
        found[place] = Checkpoint(place, int(str(next_offset)), known, record, int(str(replay_until)))
    return found


async def look(connection: Connection, places: list[Place]) -> tuple[str, dict[Place, int]]:
    """The target's id, and where checkpoints are."""
    found = await connection.execute(IDENTITY)
    id_ = await found.fetchone()
    rows = await (await connection.execute(LOOK, columns_of(places))).fetchall()
    stands = {Place(str(f), str(t), int(str(p))): int(str(at)) for f, t, p, at in rows}
    return str(id_[0]) if id_ else "", stands


async def written_epoch(connection: Connection, flow: str, topic: str) -> int:
    """The highest epoch that the flow has applied of the topic, by any process; 0: nothing so far."""
    row = await (await connection.execute(WRITTEN, (flow, topic))).fetchone()
    return int(str(row[0])) if row else 0


def columns_of(places: list[Place]) -> tuple[str, str, str]:
    """Array literals of flows, topics and partitions."""
    return (
        quoted([place.flow for place in places]),
        quoted([place.topic for place in places]),
        plain([place.partition for place in places]),
    )


async def purge(connection: Connection, keep_s: float) -> int:
    """Forget tombstones older than `keep_s`, at most PURGE_ROWS a call; how many that were."""
    return (await connection.execute(_PURGE, (keep_s, PURGE_ROWS))).rowcount
