"""What the apply loop asks of a target, and what passes between them.

A target writes a batch's rows and its checkpoints in one transaction, or neither. It refuses moves
of checkpoints that are not where the batch was read at, and with each only that partition's rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from consumers.apply.checkpoint import Checkpoint, Move, Place, Rewind
from consumers.apply.fold import BOTTOM, PartitionFold, Version, Write
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import BadRecordError, TargetUnavailable
from streamer.resetting import reset_steps


@dataclass(slots=True)
class TableChanges:
    """What a batch does to one table. `floor`: the highest that the batch itself raises."""

    flow: str
    topic: str
    record: SchemaRecord  # of the batch's last event: names and key of the table
    schema: str  # the target's
    table: str
    folds: list[PartitionFold]
    schema_ids: set[str]
    floor: Version = BOTTOM
    floor_partition: int = 0  # where the event was that raises it
    floor_us: int = 0  # its commit time, microseconds since 1970
    ready: object | None = None  # what the target's `prepare` has made of the rows, for its `apply`


@dataclass(slots=True)
class Batch:
    tables: list[TableChanges]
    moves: list[Move]
    records: Mapping[str, SchemaRecord]  # by schema id: every id that the changes name
    cluster_id: str  # of the Kafka cluster that it was read from
    # Written in the transaction of the rows, of places that are not lost: first the keys that are no
    # longer parked, with all that waits for them, then what is parked anew (H24).
    unparks: list[tuple[Place, bytes]] = field(default_factory=list)
    parks: list[Parked] = field(default_factory=list)
    # What operators had asked for of keys that it un-parks, as it was read: another wish by now is AskedAnew.
    wishes: dict[tuple[Place, bytes], str] = field(default_factory=dict)
    deleted: dict[Place, int] = field(default_factory=dict)  # rows deleted, for gates; only where one is set
    # (flow, topic) whose table may be made again though rows of it were written: all of them come again.
    remakes: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class Outcome:
    """`lost`: checkpoints that were elsewhere; nothing of theirs was written."""

    applied: dict[str, int] = field(default_factory=dict)  # flow -> row events
    guarded: dict[str, int] = field(default_factory=dict)  # flow -> writes that a newer version refused
    rereads: dict[str, int] = field(default_factory=dict)  # flow -> keys that wait for a re-read
    lost: list[Place] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Parked:
    """A change of a key that waits in the target, durable, behind what was refused (H24).

    `payload`: an envelope that decode_value reads; of a record that does not decode, its raw bytes.
    `waiting`: refused by a constraint that other partitions may satisfy yet (H23); no dead letter so far.
    """

    place: Place
    key: bytes  # as in Kafka
    sequence: int  # rises within a key; the oldest is the one that was refused
    offset: int
    version: Version
    payload: bytes
    decodes: bool
    schema: str  # the source's names, for people
    table: str
    waiting: bool
    code: str  # SQLSTATE, or the target's own word for the reason
    message: str
    attempts: int
    parked_us: int
    asked: str = ""  # what an operator asks the owner of the partition to do: retry | discard
    asked_by: str = ""


@dataclass(frozen=True, slots=True)
class Unwhole:
    """A row that waits to be read again from the source (H7). `topic` is empty where the target keeps none;
    then schema and table are the target's."""

    flow: str
    topic: str
    schema: str
    table: str
    key: bytes  # as in Kafka
    version: Version  # of the event that left it so


GATE_WINDOW_S = 600.0  # deletes are counted over it; a decision is also of what was captured so long before
DECIDED = ("approved", "refused")  # states of a gate


@dataclass(frozen=True, slots=True)
class Gate:
    """A truncate or too many deletes of a flow, held until a person decides; one a flow and topic.

    A decision holds for every event that was captured up to `up_to_us`; later ones are judged anew.
    """

    flow: str
    topic: str
    kind: str  # truncate | deletes
    state: str  # held | approved | refused
    rows: int  # that would go
    table_rows: int
    since_us: int
    up_to_us: int = 0
    decided_by: str = ""

    @property
    def covered_since_us(self) -> int:
        """A decision that is of anything later is not of all that this gate holds."""
        return self.since_us + round(GATE_WINDOW_S * 1e6)

    def covers(self, held: Gate) -> bool:
        """Whether this decision is of all that the other one holds."""
        in_time = self.since_us <= held.covered_since_us and held.up_to_us <= self.up_to_us
        return self.kind == held.kind and in_time

    def stays(self, gate: Gate) -> bool:
        """Whether this one, which a target has, is kept when another one is to be noted: see Target.hold."""
        if gate.state in DECIDED:
            return True
        return self.state in DECIDED and gate.state == "held" and self.covers(gate)


@dataclass(frozen=True, slots=True)
class Refused:
    """A write that the target refuses, found by splitting the batch until it was alone."""

    place: Place
    key: bytes | None  # None: a table without a key; its flow stops
    write: Write
    code: str
    message: str
    transient: bool  # a unique or foreign key of the target's own: may pass later (H23)


class RowsRefused(BadRecordError):
    """The batch was rolled back; without `rows` it goes through, or shows the next ones."""

    def __init__(self, rows: list[Refused], *, where: str) -> None:
        first = rows[0]
        super().__init__(f"the target refuses {len(rows)} rows, first: {first.message}", where=where)
        self.rows = rows


def deletes_of_no_row(count: int, table: str) -> str:
    """For the log: of deletes that a target passes over."""
    deletes = "1 delete is" if count == 1 else f"{count:,} deletes are"
    return f"{deletes} passed over, as no row of {table} can have such a key: its types do not hold it"


class AskedAnew(Exception):
    """Operators have asked for something else of these keys meanwhile: nothing was written."""

    def __init__(self, keys: Collection[tuple[Place, bytes]]) -> None:
        super().__init__(f"what is asked for of {len(keys)} parked keys has changed")
        self.keys = keys


def check_wishes(batch: Batch, lost: Collection[Place], asked: Mapping[tuple[Place, bytes], str]) -> None:
    """`asked`: of the batch's keys, as the target has it now. Raises AskedAnew."""
    changed = [
        (place, key)
        for (place, key), wish in batch.wishes.items()
        if place not in lost and asked.get((place, key), "") != wish
    ]
    if changed:
        raise AskedAnew(changed)


class RefusedRow(BadRecordError):
    """The target refuses one row's data; its flow stops."""

    def __init__(self, what: str, *, flow: str, where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.flow = flow


def reread_cure(flow: Flow | None) -> str:
    """How a person makes rows whole whose large value the log does not have (H7)."""
    source = "SOURCE" if flow is None else flow.source  # the file may name the flow no more
    return (
        "\n  -> nothing while apply and the capture run: they are asked for (see `tailrace backfills`);"
        f" if that fails, `tailrace backfill {source} TABLE --keys FILE`"
    )


class FlowError(Exception):
    """Something that stops one flow only; `cause` says what to do."""

    def __init__(self, flow: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.flow = flow
        self.cause = cause


class TableLost(TargetUnavailable):
    """A table that the flow has written rows to is not there: what it makes in its place lacks those rows.

    `epoch`: the highest that was written. A copy of a newer one brings every row again.
    """

    def __init__(self, flow: Flow, topic: str, table: str, epoch: int, *, where: str) -> None:
        super().__init__(
            f"the table {table} is missing, and flow {flow.name!r} has written rows of {topic} to it: made"
            " again now, it would hold the later ones only",
            where=where,
            fix="restore it (or give it back its name), and the flow goes on by itself; or"
            f" {reset_steps(flow.source)}, which makes it again and copies everything",
        )
        self.flow = flow.name
        self.topic = topic
        self.epoch = epoch


class ColumnLost(TableLost):
    """A column that the flow has written values to is not there. `add`: the statement that adds it, empty."""

    def __init__(
        self, flow: Flow, topic: str, table: str, columns: Sequence[str], add: str, epoch: int, *, where: str
    ) -> None:
        super().__init__(flow, topic, table, epoch, where=where)
        names, them = ", ".join(map(repr, columns)), "it" if len(columns) == 1 else "them"
        self.what = (
            f"column {names} of {table} is missing, and flow {flow.name!r} has written rows of {topic} with"
            f" {them}: added again now, it would hold what later rows have only"
        )
        filled = (
            f"{add} and `tailrace backfill {flow.source} {topic.removeprefix(f'{flow.source}.')}`, which"
            f" fills {them}; or {reset_steps(flow.source)}, which adds {them} and copies everything"
        )
        kept = f"{add} which leaves {them} null in rows that are there, as write: {flow.write} does"
        self.fix = (
            f"restore {them} with what was in {them}, and the flow goes on by itself; or"
            f" {filled if flow.write == 'upsert' else kept}"
        )


@dataclass(frozen=True, slots=True)
class Look:
    """`id`: of the store as it is now. `stands`: next offsets of checkpoints; those that are gone are not
    in it."""

    id: str
    stands: dict[Place, int]


Versions = dict[tuple[Place, bytes], Version]  # by place and Kafka key


class Target(Protocol):
    """One session with a target. Errors: TargetUnavailable (all of it again later), FlowError.

    Made by consumers.targets.make_target from the config; it knows its flows (names, mapping, modes).
    """

    @property
    def id(self) -> str:
        """Identity kept in the target: a consumer group is bound to it (H30)."""

    @property
    def clock_offset_s(self) -> float:
        """The target server's clock minus this machine's, estimated."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        """The checkpoints, made at offset 0 where they are missing."""

    async def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        """Set checkpoints back, all in one transaction, whoever moves them at that moment: what was read
        from where they were is refused. Gives them as they were; one that is not there, or not beyond its
        new offset, stays and is not among them. The next `checkpoints` say up to where it is a replay."""

    async def look(self, places: Iterable[Place]) -> Look:
        """What the store has of these, found in a moment, every few seconds; nothing is made."""

    async def prepare(self, batch: Batch) -> None:
        """What can be done for a batch ahead, without the session, while another one is in the target."""

    async def apply(self, batch: Batch) -> Outcome:
        """Rows, checkpoints, parks and counts of deletes, in one transaction. Raises RowsRefused and
        AskedAnew, too."""

    async def versions(self, batch: Batch) -> Versions | None:
        """What the target has of the batch's keys: the highest version of the row, of its delete and of the
        table's truncates; a key that it knows nothing of is not among them. None: it cannot tell, of this
        kind or of a flow that writes in this way. Only reads."""

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        """What waits, by place, key and sequence; None: of all places. `asked`: only of keys that an
        operator has asked something for, which the owner looks up every second."""

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        """An operator's wish (retry, discard, or "" to take it back) on parked keys; how many keys have it.

        Carried out by the apply process that owns the partition, the only one to write of a key.
        """

    async def gates(self) -> list[Gate]: ...

    async def hold(self, gate: Gate) -> None:
        """Note a held change, or more of it; keeps `since_us` of a gate that is held already. At once with
        a look at what is there, which may have come since `gates`: a decision that covers the gate stays, and
        one that is given here, for a store that was emptied, replaces nothing."""

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        """Approve or refuse what the flow holds; the gates as they are now, empty when none was held."""

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        """Rows deleted in the last `window_s`, by every process of the group."""

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        """Rows of the table, estimated where counting is slow; 0 when it is not there."""

    async def count_below(self, changes: TableChanges, limit: int) -> int:
        """Rows of the flow that `changes.floor` would take: those at or below it, without those that a soft
        delete has marked already; counted up to `limit` at least. May make the table. Raises FlowError."""

    async def findings(self) -> list[str]:
        """What an operator should know: rows that wait for a re-read, by flow and table."""

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        """Rows that wait for a re-read, of these topics (of all, where the target keeps no topic); at most
        about `limit` a table."""

    async def sweep(self, keep_s: float) -> None:
        """Bounded house-keeping: forget tombstones older than `keep_s`."""

    def details(self) -> Mapping[str, Any]: ...


@runtime_checkable
class Lockable(Protocol):
    """A target whose server makes a transaction wait for other sessions."""

    place: str

    async def held_up_by(self) -> str:
        """The sessions that the one of this target waits for, in words; empty: none, or it is not known.
        Asked while that session is in use; never raises for a server that does not answer."""
