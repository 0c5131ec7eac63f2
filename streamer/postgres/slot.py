"""The replication slot, the advisory lock that makes one capture of a source, and the server's identity.

Owns the commands and what they answer; must not decide what follows (see history).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from psycopg import sql

from streamer.changes.lsn import parse_lsn
from streamer.errors import ConfigError, SourceUnavailable
from streamer.postgres.connection import Connection, CopyStream, start_copy


@dataclass(frozen=True, slots=True)
class System:
    """What IDENTIFY_SYSTEM answers."""

    system_id: str
    timeline: int
    flush_lsn: int
    database: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots; LSNs are ints, 0 when the server shows none."""

    name: str
    plugin: str
    database: str
    active_pid: int | None
    restart_lsn: int
    confirmed_flush_lsn: int
    wal_status: str


@dataclass(frozen=True, slots=True)
class Exported:
    """A slot just made, with the snapshot that shows exactly what precedes it."""

    consistent_point: int
    snapshot: str


async def identify_system(replication: Connection) -> System:
    cursor = await replication.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    assert row is not None
    return System(str(row[0]), int(row[1]), parse_lsn(row[2]), str(row[3]))


async def timeline_forks(replication: Connection, timeline: int) -> dict[int, int]:
    """Timeline -> LSN at which it was left, for every ancestor of `timeline` (TIMELINE_HISTORY)."""
    if timeline == 1:
        return {}
    cursor = await replication.execute(f"TIMELINE_HISTORY {int(timeline)}")
    row = await cursor.fetchone()
    assert row is not None
    text = row[1].decode() if isinstance(row[1], bytes) else str(row[1])
    forks = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit():
            forks[int(fields[0])] = parse_lsn(fields[1])
    return forks


async def read_slot(connection: Connection, name: str) -> Slot | None:
    cursor = await connection.execute(
        """SELECT slot_name, coalesce(plugin, ''), coalesce(database, ''), active_pid,
                  coalesce(restart_lsn, '0/0')::text, coalesce(confirmed_flush_lsn, '0/0')::text,
                  coalesce(wal_status, '')
           FROM pg_replication_slots WHERE slot_name = %s""",
        (name,),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    return Slot(row[0], row[1], row[2], row[3], parse_lsn(row[4]), parse_lsn(row[5]), row[6])


async def create_slot(replication: Connection, name: str) -> Exported:
    """Make the slot; its snapshot lives until the next command on this connection."""
    command = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')")
    cursor = await replication.execute(command.format(sql.Identifier(name)))
    row = await cursor.fetchone()
    assert row is not None
    return Exported(consistent_point=parse_lsn(row[1]), snapshot=str(row[2]))


async def drop_slot(connection: Connection, name: str) -> None:
    """Drop the slot if it is there; refused while somebody streams from it."""
    slot = await read_slot(connection, name)
    if slot is None:
        return
    if slot.active_pid is not None:
        raise SourceUnavailable(
            f"slot {name} is in use by server process {slot.active_pid}",
            fix="stop the capture (or other consumer) that streams from it",
        )
    await connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


async def start_replication(
    replication: Connection, slot: str, publications: tuple[str, ...], *, server_version: int
) -> CopyStream:
    """Stream from the slot's own confirmed LSN (0/0 asks for that), pgoutput protocol version 1."""
    names = ",".join('"' + p.replace('"', '""') + '"' for p in publications)
    options = [("proto_version", "1"), ("publication_names", names)]
    if server_version >= 140000:
        options.append(("messages", "true"))
    command = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(
        sql.Identifier(slot),
        sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in options),
    )
    return await start_copy(replication, command.as_bytes(None))


def lock_key(slot: str) -> int:
    """The advisory lock's number: 63 bits of the slot's name, which is unique in the server."""
    digest = blake2b(b"tailrace/capture/" + slot.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


async def try_lock(connection: Connection, slot: str) -> bool:
    """Take the session lock that makes this process the only capture of the slot (H30)."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (lock_key(slot),))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def terminate_leftover(connection: Connection, slot: Slot) -> None:
    """End the walsender of a capture that died: we hold its lock, so its owner is gone or fenced."""
    if slot.active_pid is not None:
        await connection.execute("SELECT pg_terminate_backend(%s)", (slot.active_pid,))


def check_slot(slot: Slot, database: str) -> None:
    """Refuse a slot that is not ours to read."""
    if slot.plugin != "pgoutput" or slot.database != database:
        raise ConfigError(
            f"slot {slot.name} is a {slot.plugin or 'physical'} slot of database "
            f"{slot.database or '(none)'}, not a pgoutput slot of {database}",
            fix="name another slot in `slot: {name: ...}` of this source",
        )
