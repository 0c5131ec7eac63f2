"""What the apply loop asks of a target, and what passes between them.

A target writes a batch's rows and its checkpoints in one transaction, or neither. It refuses moves
of checkpoints that are not where the batch was read at, and with each only that partition's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from consumers.apply.checkpoint import Checkpoint, Move, Place
from consumers.apply.fold import BOTTOM, PartitionFold, Version
from streamer.changes.schema import SchemaRecord
from streamer.errors import BadRecordError


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
    ready: object | None = None  # what the target's `prepare` has made of the rows, for its `apply`


@dataclass(slots=True)
class Batch:
    tables: list[TableChanges]
    moves: list[Move]
    records: Mapping[str, SchemaRecord]  # by schema id: every id that the changes name
    cluster_id: str  # of the Kafka cluster that it was read from


@dataclass(slots=True)
class Outcome:
    """`lost`: checkpoints that were elsewhere; nothing of theirs was written."""

    applied: dict[str, int] = field(default_factory=dict)  # flow -> row events
    guarded: dict[str, int] = field(default_factory=dict)  # flow -> writes that a newer version refused
    rereads: dict[str, int] = field(default_factory=dict)  # flow -> keys that wait for a re-read
    lost: list[Place] = field(default_factory=list)


class RefusedRow(BadRecordError):
    """The target refuses one row's data; its flow stops."""

    def __init__(self, what: str, *, flow: str, where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.flow = flow


class FlowError(Exception):
    """Something that stops one flow only; `cause` says what to do."""

    def __init__(self, flow: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.flow = flow
        self.cause = cause


class Target(Protocol):
    """One session with a target. Errors: TargetUnavailable (all of it again later), FlowError."""

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

    async def prepare(self, batch: Batch) -> None:
        """What can be done for a batch ahead, without the session, while another one is in the target."""

    async def apply(self, batch: Batch) -> Outcome: ...

    async def findings(self) -> list[str]:
        """What an operator should know: rows that wait for a re-read, by flow and table."""

    async def sweep(self, keep_s: float) -> None:
        """Bounded house-keeping: forget tombstones older than `keep_s`."""

    def details(self) -> Mapping[str, Any]: ...
