"""What apply keeps in a sql target beside the rows: tables `_tailrace_*`, as there are no schemas.

    _tailrace_identity      one row: id of this target, the group bound to it, the file it was made in (H30)
    _tailrace_checkpoints   (flow, topic, partition): next offset, Kafka cluster, the last record (H14),
                            and the highest tombstone
    _tailrace_replays       (flow, topic, partition): up to where records come a second time, who asked
    _tailrace_tables        (table): the topic that is written to it, since names meet without schemas
    _tailrace_floors        (table): rows and events at or below this version are gone (H5)
    _tailrace_tombstones    (flow, topic, partition, key): version of a delete, kept as long as the topics
    _tailrace_versions      (table, key): versions of `version: side`
    _tailrace_needs_reread  (flow, topic, key): rows that are not whole until they are read again (H7)
    _tailrace_parked, _tailrace_gates, _tailrace_deleted: see sql_parked; _tailrace_columns: see sql_columns

Keys are found by a hash of 16 bytes: an index entry has a limit in other databases. Times are
microseconds since 1970, by the clock of the process that writes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    func,
    select,
    update,
)

from consumers.apply.checkpoint import ANYWHERE, Checkpoint, LastRecord, Move, Place, Rewind
from consumers.apply.fold import BOTTOM, Version
from consumers.targets.sql_dialect import Dialect, Shape
from streamer.config.stores import if_shared
from streamer.errors import FatalError

FORMAT = 1
PURGE_ROWS = 20_000  # a sweep: short enough to wait for in the apply loop

meta = MetaData()


def _key(name: str, kind: Any) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _place() -> list[Column[Any]]:
    return [_key("flow", Text), _key("topic", Text), _key("partition", Integer)]


def _version() -> list[Column[Any]]:
    return [
        Column("epoch", BigInteger, nullable=False),
        Column("lsn", BigInteger, nullable=False),
        Column("ordinal", BigInteger, nullable=False),
    ]


identity = Table(
    "_tailrace_identity",
    meta,
    _key("only_row", Integer),
    Column("format", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("consumer_group", Text, nullable=False),
    Column("made_in", Text, nullable=False),
    Column("made_us", BigInteger, nullable=False),
)
checkpoints = Table(
    "_tailrace_checkpoints",
    meta,
    *_place(),
    Column("next_offset", BigInteger, nullable=False),
    Column("cluster_id", Text),
    Column("last_offset", BigInteger),
    Column("last_checksum", BigInteger),
    Column("last_epoch", BigInteger),
    Column("last_lsn", BigInteger),
    Column("last_ordinal", BigInteger),
    Column("buried_epoch", BigInteger, nullable=False),
    Column("buried_lsn", BigInteger, nullable=False),
    Column("buried_ordinal", BigInteger, nullable=False),
    Column("updated_us", BigInteger),
)
replays = Table(
    "_tailrace_replays",
    meta,
    *_place(),
    Column("until_offset", BigInteger, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("asked_us", BigInteger, nullable=False),
)
tables = Table("_tailrace_tables", meta, _key("table_name", Text), Column("topic", Text, nullable=False))
floors = Table("_tailrace_floors", meta, _key("table_name", Text), *_version())
tombstones = Table(
    "_tailrace_tombstones",
    meta,
    *_place(),
    _key("key_hash", LargeBinary(16)),
    *_version(),
    Column("deleted_us", BigInteger, nullable=False),
    Index("_tailrace_tombstones_deleted", "deleted_us"),
)
versions = Table(
    "_tailrace_versions",
    meta,
    _key("table_name", Text),
    _key("key_hash", LargeBinary(16)),
    *_version(),
    Column("key", LargeBinary, nullable=False),
)
needs_reread = Table(
    "_tailrace_needs_reread",
    meta,
    _key("flow", Text),
    _key("topic", Text),
    _key("key_hash", LargeBinary(16)),
    *_version(),
    Column("table_name", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("noted_us", BigInteger, nullable=False),
)

_PARTS = ("epoch", "lsn", "ordinal")


def shape_of(table: Table) -> Shape:
    """Rows with every column of a state table, guarded by its version where it has one."""
    names = tuple(column.name for column in table.columns)
    key = tuple(column.name for column in table.primary_key.columns)
    version = _PARTS if "epoch" in names else ()
    replaces = tuple(name for name in names if name not in key and name not in version)
    return Shape(table.name, names, key, version, replaces)


BURY, NOTE, VERSION = shape_of(tombstones), shape_of(needs_reread), shape_of(versions)
PLACE, FLOOR, REPLAY = shape_of(checkpoints), shape_of(floors), shape_of(replays)
_PLACE_OF_REPLAY = replays.c.flow, replays.c.topic, replays.c.partition


def key_hash(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()


# Identity


def ensure(connection: Connection, dialect: Dialect, group: str, file: Path, now_us: int) -> str:
    """Make what is missing; this target's id. Raises FatalError when the target is another's."""
    here = str(file.resolve())
    dialect.begin(connection)
    try:
        meta.create_all(connection)
        row = connection.execute(select(identity)).first()
        if row is None:
            made = {"only_row": 1, "format": FORMAT, "id": str(uuid4()), "consumer_group": group}
            made |= {"made_in": here, "made_us": now_us}
            connection.execute(identity.insert(), made)
            row = connection.execute(select(identity)).one()
        _check(row, group, here)
        if row.made_in != here:
            connection.execute(update(identity).values(made_in=here))
    except BaseException:
        dialect.end(connection, commit=False)
        raise
    dialect.end(connection, commit=True)
    return str(row.id)


def _check(row: Any, group: str, here: str) -> None:
    if row.format > FORMAT:
        raise FatalError(
            f"the target's tables _tailrace_* have format {row.format}, this program knows {FORMAT}",
            where=here,
            fix="run the version of Tailrace that made them, or a newer one",
        )
    if row.made_in != here and _is_original(Path(row.made_in), Path(here), row.id):
        drops = "; ".join(f"DROP TABLE {table.name}" for table in meta.sorted_tables)
        raise FatalError(
            f"this file is a copy of {row.made_in}, which is there still and may be applied to",
            where=here,
            fix=f"move the other one away when it is no longer used; to copy everything anew into this one:"
            f" {drops};",
        )
    if row.consumer_group != group:
        raise FatalError(
            f"this target belongs to the consumer group {row.consumer_group!r}, not to {group!r}",
            where=here,
            fix=f"{if_shared(row.consumer_group, group, 'sql')}give the target the name it had in the config"
            " (and `name:` too), or, to hand it over: "
            f"UPDATE _tailrace_identity SET consumer_group = '{group}';",
        )


def _is_original(other: Path, here: Path, id_: str) -> bool:
    """A file that was moved leaves nothing behind; one that was copied does."""
    try:
        if not other.is_file() or os.path.samefile(other, here):
            return False
        uri = f"{other.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True)
    except (OSError, sqlite3.Error):
        return False
    try:
        return bool(connection.execute("SELECT id FROM _tailrace_identity").fetchone() == (id_,))
    except sqlite3.Error:
        return False
    finally:
        connection.close()


# Checkpoints


@dataclass(frozen=True, slots=True)
class Stand:
    """A checkpoint, and the highest tombstone there has been in its place: above it nothing is looked up."""

    checkpoint: Checkpoint
    buried: Version


def read_stands(connection: Connection, places: Iterable[Place]) -> dict[Place, Stand]:
    """Those that are there."""
    found = {}
    wanted = set(places)
    flows = sorted({place.flow for place in wanted})
    for row in connection.execute(select(checkpoints).where(checkpoints.c.flow.in_(flows))):
        place = Place(row.flow, row.topic, row.partition)
        if place in wanted:
            parts = row.last_offset, row.last_checksum, row.last_epoch, row.last_lsn, row.last_ordinal
            last = None if None in parts else LastRecord(*parts)
            checkpoint = Checkpoint(place, row.next_offset, row.cluster_id, last)
            found[place] = Stand(checkpoint, (row.buried_epoch, row.buried_lsn, row.buried_ordinal))
    until = replays.c.until_offset
    for row in connection.execute(select(*_PLACE_OF_REPLAY, until).where(replays.c.flow.in_(flows))):
        place = Place(row.flow, row.topic, row.partition)
        if place in found:
            stand = found[place]
            found[place] = replace(stand, checkpoint=replace(stand.checkpoint, replay_until=row.until_offset))
    return found


def rewind(
    connection: Connection, dialect: Dialect, rewinds: Iterable[Rewind], who: str, now_us: int
) -> dict[Place, Checkpoint]:
    """As Target.rewind has it, in a transaction that has the write lock."""
    wanted = {rewind.place: rewind for rewind in rewinds}
    moved, rows, noted = {}, [], []
    for place, stand in read_stands(connection, wanted).items():
        was, rewind = stand.checkpoint, wanted[place]
        if was.next_offset <= rewind.next_offset:
            continue
        moved[place] = was
        rows.append(_row(place, rewind.next_offset, was.cluster_id, rewind.last, stand.buried, now_us))
        noted.append((*place, was.replayed_to, who, now_us))
    dialect.put(connection, PLACE, rows)
    dialect.put(connection, REPLAY, noted)
    return moved


def written_epoch(connection: Connection, flow: str, topic: str) -> int:
    """The highest epoch that the flow has applied of the topic, by any process; 0: nothing so far. A
    checkpoint that was set back to 0 by hand begins anew, whatever it had applied."""
    at = checkpoints.c
    of_topic = (at.flow == flow) & (at.topic == topic) & (at.next_offset > 0)
    return connection.execute(select(func.max(at.last_epoch)).where(of_topic)).scalar() or 0


def move(
    connection: Connection,
    dialect: Dialect,
    moves: Iterable[Move],
    stands: Mapping[Place, Stand],
    buried: Mapping[Place, Version],
    cluster_id: str,
    now_us: int,
) -> None:
    """In the rows' transaction, as its last part but for the commit."""
    rows = []
    for step in moves:
        stand = stands[step.place]
        stays = step.expected == ANYWHERE
        next_offset = stand.checkpoint.next_offset if stays else step.next_offset
        last = step.last or stand.checkpoint.last
        highest = max(stand.buried, buried.get(step.place, BOTTOM))
        rows.append(_row(step.place, next_offset, cluster_id, last, highest, now_us))
    dialect.put(connection, PLACE, rows)


def _row(
    place: Place,
    next_offset: int,
    cluster_id: str | None,
    last: LastRecord | None,
    buried: Version,
    now_us: int,
) -> tuple[Any, ...]:
    """Of the table of checkpoints."""
    parts: tuple[int | None, ...] = (None,) * 5
    if last is not None:
        parts = last.offset, last.checksum, last.epoch, last.commit_lsn, last.ordinal
    return (*place, next_offset, cluster_id, *parts, *buried, now_us)


def start(connection: Connection, dialect: Dialect, places: Iterable[Place]) -> None:
    """Checkpoints at offset 0."""
    dialect.put(connection, PLACE, [(*place, 0, *(None,) * 6, *BOTTOM, None) for place in places])


def partitions(connection: Connection, flow: str, topic: str) -> int:
    of_topic = (checkpoints.c.flow == flow) & (checkpoints.c.topic == topic)
    return len(connection.execute(select(checkpoints.c.partition).where(of_topic)).all())


# Floors, tombstones, what is to be read again


def read_floors(connection: Connection, names: Iterable[str]) -> dict[str, Version]:
    rows = connection.execute(select(floors).where(floors.c.table_name.in_(sorted(names))))
    return {row.table_name: (row.epoch, row.lsn, row.ordinal) for row in rows}


def has_flagged(connection: Connection, flow: str, topic: str) -> bool:
    """Whether a key waits for a re-read."""
    there = (needs_reread.c.flow == flow) & (needs_reread.c.topic == topic)
    return connection.execute(select(needs_reread.c.topic).where(there).limit(1)).first() is not None


def purge(connection: Connection, before_us: int) -> None:
    """Forget tombstones of before then, at most PURGE_ROWS a call."""
    query = select(tombstones.c.deleted_us).where(tombstones.c.deleted_us < before_us)
    last = connection.execute(
        query.order_by(tombstones.c.deleted_us).offset(PURGE_ROWS - 1).limit(1)
    ).scalar()
    until = tombstones.c.deleted_us < before_us if last is None else tombstones.c.deleted_us <= last
    connection.execute(delete(tombstones).where(until))
