"""How far a source has been published: the records of the positions topic.

Kinds of record that share one partition a source (the topic is compacted):

* key `{"source":"shop"}`: the position itself, written last in every Kafka transaction.
* key `{"source":"shop","topic":"shop.public.orders"}`: what has been written to one data topic:
  its partition count (H26) and the last offset of every partition touched so far (H17).
* key `{"source":"shop","table":16384}`, `{"source":"shop","leaf":16390}`,
  `{"source":"shop","truncated":16384}`, `{"source":"shop","publication":"tailrace"}` and
  `{"source":"shop","missed":"public.orders","instead":""}`: what stands under the capture; see ground.

`Position.lsn` is the place up to which everything is in Kafka: the end LSN of the last whole
transaction, or of an idle advance; of a Redis source the microseconds of its server's clock. Inside a
transaction that spans flushes, `partial` says which transaction it is and how many of its row changes
are published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from streamer.errors import FatalError

FORMAT = 1
# Without a position nobody knows whether targets have rows of an epoch before: Kafka may have been lost, or
# replaced. Seconds since 2020 are above every epoch that was begun so, and counted up by one at each reset or
# gap; they fit the targets' 32-bit columns until 2088.
EPOCH_ORIGIN_S = 1_577_836_800
EPOCH_LIMIT = 2**31 - 1


class Stage(StrEnum):
    """Where in its life a source is."""

    INTENT = "intent"  # the slot may or may not have been made: drop and make again
    SNAPSHOT = "snapshot"  # first rows are being published: killed here, it starts again as a reset
    STREAMING = "streaming"


@dataclass(frozen=True, slots=True)
class Partial:
    """The transaction a flush ended in. `published` counts its row changes (ordinals 0..n-1)."""

    commit_lsn: int
    xid: int
    commit_us: int
    published: int
    change_lsn: int  # LSN of the last published row change, checked when resuming (H29)


@dataclass(frozen=True, slots=True)
class LastCommit:
    """The last whole transaction published; its Begin must match on the way (H4)."""

    commit_lsn: int
    xid: int
    commit_us: int


@dataclass(frozen=True, slots=True)
class Position:
    """All times are microseconds since 1970 UTC; LSNs are ints."""

    source: str
    number: int  # the source's partition of the positions topic
    epoch: int
    stage: Stage
    system_id: str
    timeline: int
    lsn: int
    last_commit: LastCommit | None = None
    partial: Partial | None = None
    flush: int = 0  # rises by one a flush within an epoch (H17)
    # Tables of which only INSERT and TRUNCATE are captured -> UPDATEs and DELETEs that the server had
    # counted before the first copy: what it counts beyond them is missing in the log (H27).
    uncaptured: dict[str, int] = field(default_factory=dict)
    # The epoch of the last copy that ends with floors; 0: there was none, a first copy has nothing to end.
    # What older epochs recorded in a shadow is void.
    since_epoch: int = 0
    # When the last copy of everything was begun, by a reset or for the first time; 0 is not known. What was
    # found wrong before is settled by it: a backfill that failed, a comparison.
    since_us: int = 0
    # Of a Redis source: what was notified up to this moment of its server's clock is in Kafka. `lsn` says
    # less there: a key that was touched earlier may be read later. What was never notified is not meant.
    through_us: int = 0

    def key(self) -> bytes:
        return position_key(self.source)

    def dump(self) -> bytes:
        return orjson.dumps({"format": FORMAT, **_plain(self)})

    @classmethod
    def load(cls, value: bytes) -> Position:
        raw = checked(value)
        last, partial = raw.pop("last_commit"), raw.pop("partial")
        return cls(
            **{**raw, "stage": Stage(raw["stage"])},
            last_commit=LastCommit(**last) if last else None,
            partial=Partial(**partial) if partial else None,
        )


@dataclass(frozen=True, slots=True)
class TopicState:
    """What this source has written to one data topic."""

    source: str
    topic: str
    partitions: int
    last_offsets: dict[int, int]  # partition -> offset of the last record written
    flush: int

    def key(self) -> bytes:
        return orjson.dumps({"source": self.source, "topic": self.topic})

    def dump(self) -> bytes:
        offsets = {str(p): o for p, o in self.last_offsets.items()}
        return orjson.dumps(
            {
                "format": FORMAT,
                "source": self.source,
                "topic": self.topic,
                "partitions": self.partitions,
                "last_offsets": offsets,
                "flush": self.flush,
            }
        )

    @classmethod
    def load(cls, value: bytes) -> TopicState:
        raw = checked(value)
        raw["last_offsets"] = {int(p): o for p, o in raw["last_offsets"].items()}
        return cls(**raw)


def position_key(source: str) -> bytes:
    return orjson.dumps({"source": source})


def epoch_without_position(now_s: float) -> int:
    return int(now_s) - EPOCH_ORIGIN_S


def _plain(position: Position) -> dict[str, Any]:
    raw: dict[str, Any] = orjson.loads(orjson.dumps(position))
    return raw


def checked(value: bytes) -> dict[str, Any]:
    raw: dict[str, Any] = orjson.loads(value)
    version = raw.pop("format", None)
    if version != FORMAT:
        raise FatalError(
            f"the positions topic has format {version}, this program reads {FORMAT}",
            fix="run the version of Tailrace that wrote it, or a newer one",
        )
    return raw
