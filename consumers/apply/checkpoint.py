"""Where a flow stands in a partition, and whether the topic is still the one it was read from (H14).

The checkpoint lives in the target, is written in the rows' transaction, and moves by compare-and-set
on the offset it was read at. It names the Kafka cluster and the last record that was applied (its
offset and a checksum of its bytes): that record is read again at start and must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from streamer.errors import FatalError

ANYWHERE = -1  # as `expected`: the checkpoint stays where it is, and is locked while the rows are written


class Place(NamedTuple):
    """A flow's part of one partition."""

    flow: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class LastRecord:
    """Identity of an applied record: the next offset may be beyond transaction markers."""

    offset: int
    checksum: int
    epoch: int
    commit_lsn: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    place: Place
    next_offset: int = 0
    cluster_id: str | None = None
    last: LastRecord | None = None
    replay_until: int = 0  # an operator has set it back; records before this offset were applied already

    @property
    def replayed_to(self) -> int:
        """What is up to here comes a second time when the checkpoint is set back now."""
        return max(self.next_offset, self.replay_until)


@dataclass(frozen=True, slots=True)
class Move:
    """A checkpoint on its way: from the offset it was read at to the next. `last` None: unchanged.

    `expected` ANYWHERE: it goes nowhere, `next_offset` means nothing; lost only where there is none.
    """

    place: Place
    expected: int
    next_offset: int
    last: LastRecord | None


class Rewind(NamedTuple):
    """A checkpoint on its way back. `last`: the record right before `next_offset`; None: there is none."""

    place: Place
    next_offset: int
    last: LastRecord | None


def checksum_of(key: bytes | None, value: bytes | None) -> int:
    return crc32(value or b"", crc32(key or b""))


def topic_replaced(checkpoint: Checkpoint, steps: str, why: str) -> FatalError:
    """`steps`: of the reset that publishes everything again; of the others, too."""
    place = checkpoint.place
    return FatalError(
        f"the topic was made again or Kafka lost records: {why}; the checkpoint of flow {place.flow!r} is at"
        f" offset {checkpoint.next_offset}",
        where=f"{place.topic}[{place.partition}]",
        fix=f"to publish the source again {steps}",
    )


def cluster_replaced(checkpoint: Checkpoint, cluster_id: str, steps: str) -> FatalError:
    place = checkpoint.place
    return FatalError(
        f"this is another Kafka cluster ({cluster_id}) than the one that flow {place.flow!r} was applied from"
        f" ({checkpoint.cluster_id})",
        where=f"{place.topic}[{place.partition}]",
        fix=f"correct kafka.brokers; when Kafka was replaced on purpose: {steps}",
    )


def retention_passed(checkpoint: Checkpoint, log_start: int, steps: str) -> FatalError:
    place = checkpoint.place
    missed = log_start - checkpoint.next_offset
    stand = f"its checkpoint is {checkpoint.next_offset}" if checkpoint.last else "it has no checkpoint yet"
    return FatalError(
        f"Kafka's retention has removed {missed} offsets that flow {place.flow!r} has not applied: {stand},"
        f" the log starts at {log_start}",
        where=f"{place.topic}[{place.partition}]",
        fix=f"to publish the source again {steps}; a longer kafka.topics.retention prevents it",
    )
