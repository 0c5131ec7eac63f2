"""Transactions that Kafka has ended and yet left open in some partitions; ends them as they ended (H13).

A coordinator that finds no leader for a partition takes it for deleted: it writes no marker there and
calls the transaction complete. So it goes with every partition of a Kafka that stands alone, for the
moment in which it is stopped in good order, and with any whose replicas are all away. What is open
there is ended by nothing: not by initialising the id, not by the transaction's timeout. Readers stand
before it for good, and the next marker of the same producer in this partition decides for it, whatever
that says: an acknowledged flush would be aborted, or a void one committed.

Each of our transactions has a record in a journal, written last, that says which offsets it took: a source's
position, a task's commit record. From that follows how it ended: it is committed where a record that stands
covers it, and else aborted. Owns this decision; `Turns` has the producers that carry it out. No transaction
of theirs may be in flight meanwhile, and one begins only when the one before is acknowledged as committed,
and that of the same id before is over in every partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

import orjson
from aiokafka import ConsumerRecord, TopicPartition

from streamer.changes.position import Position, TopicState
from streamer.kafka import READ_DEADLINE_S, Security, offset_ranges, read_to_end
from streamer.logs import Log
from streamer.publisher.describe_producers import OpenTransaction
from streamer.publisher.transactions import Turns

Ends = Mapping[OpenTransaction, bool]  # True: commit, False: abort
LastOffsets = Mapping[TopicPartition, int]
Record: TypeAlias = "ConsumerRecord[bytes, bytes]"

log = Log(__name__)


class Journal(Protocol):
    """Reads the records that say which offsets a transaction took. Pure."""

    def recorded(self, standing: Sequence[Record]) -> LastOffsets:
        """The last offset in each partition that the committed records say was taken."""

    def wrote(self, tail: Sequence[Record], first_offset: int, until: int) -> LastOffsets | None:
        """What the transaction whose records are in [first_offset, until) says it took; None: it was not
        written to its end, which is its record, so nobody has asked for its commit. `tail`: in order, of
        other writers too."""


class Hanging:
    """Of one writer, whose ids are initialised. `deadline_s` is for each reading of the journal."""

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        turns: Turns,
        journal: Journal,
        *,
        deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        self._brokers = brokers
        self._security = security
        self._turns = turns
        self._journal = journal
        self._deadline_s = deadline_s

    async def end_journal(self, place: TopicPartition) -> None:
        """Before it is read: after this it can be."""
        left = sorted(await self._turns.left_open([place]), key=lambda t: t.first_offset)
        if not left:
            return
        start, end = (await offset_ranges(self._brokers, self._security, [place]))[place]
        standing = await self._read({place: (start, left[0].first_offset)}, committed=True)
        tail = await self._read({place: (left[0].first_offset, end)}, committed=False)
        recorded = self._journal.recorded(standing)
        ends: dict[OpenTransaction, bool] = {}
        for transaction, following in zip(left, [*left[1:], None], strict=True):
            until = end if following is None else following.first_offset
            wrote = self._journal.wrote(tail, transaction.first_offset, until)
            ends[transaction] = wrote is not None and (
                following is not None or await self._none_aborted(wrote, recorded)
            )
        await self._end(ends)

    async def _none_aborted(self, wrote: LastOffsets, recorded: LastOffsets) -> bool:
        """Whether it may be committed: where it has ended already, it has not been aborted."""
        taken = {place: last for place, last in wrote.items() if last > recorded.get(place, -1)}
        still_open = {t.place for t in await self._turns.left_open(taken)}
        ended = {place: (last, last + 1) for place, last in taken.items() if place not in still_open}
        return len(await self._read(ended, committed=True)) == len(ended)

    async def end_written(self, places: Iterable[TopicPartition], recorded: LastOffsets) -> None:
        """Of the partitions that hold rows. `recorded`: by the journal's record that stands."""
        left = await self._turns.left_open(places)
        await self._end({t: t.first_offset <= recorded.get(t.place, -1) for t in left})

    async def finish(self) -> None:
        """Before a transaction begins: the last one of its id is over in every partition. Kafka acknowledges
        a commit before it has written the markers; were the next one aborted where one is missing, its
        marker would take the acknowledged records along. Raises KafkaUnavailable."""
        await self._end(dict.fromkeys(await self._turns.unmarked(), True))

    async def _end(self, ends: Ends) -> None:
        if not ends:
            return
        await self._turns.settle(ends)
        for transaction, commit in ends.items():
            topic, partition = transaction.place
            log.warning(
                "Kafka had left a transaction open that it had ended: "
                + ("its records are committed" if commit else "its records are void"),
                topic=topic,
                partition=partition,
                first_offset=transaction.first_offset,
            )

    async def _read(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, committed: bool
    ) -> list[Record]:
        return await read_to_end(
            self._brokers, self._security, ranges, committed=committed, deadline_s=self._deadline_s
        )


class Positions:
    """The journal of one source."""

    def __init__(self, source: str) -> None:
        self._source = source

    def recorded(self, standing: Sequence[Record]) -> LastOffsets:
        return latest_offsets(self._source, standing)

    def wrote(self, tail: Sequence[Record], first_offset: int, until: int) -> LastOffsets | None:
        return whole_flush(self._source, tail, first_offset)


def offsets_of(states: Iterable[TopicState]) -> dict[TopicPartition, int]:
    """What topic states have recorded: the last offset of each partition."""
    return {TopicPartition(s.topic, p): last for s in states for p, last in s.last_offsets.items()}


def latest_offsets(source: str, records: Iterable[Record]) -> dict[TopicPartition, int]:
    """The last offset in each partition that the source's topic states say it has written. Pure."""
    last: dict[TopicPartition, int] = {}
    for record in records:
        if record.key is None or record.value is None:
            continue
        names = orjson.loads(record.key)
        if names.get("source") == source and "topic" in names:
            last |= offsets_of([TopicState.load(record.value)])
    return last


def whole_flush(source: str, tail: Sequence[Record], first_offset: int) -> dict[TopicPartition, int] | None:
    """The last offsets that the flush which begins at `first_offset` says it took; None: it was not
    written to its end, which is the position, so nobody has asked for its commit. Pure.

    `tail`: records of the positions topic in order, of other sources too.
    """
    key = orjson.dumps({"source": source})
    of_flush: list[Record] = []
    for record in tail:
        if record.offset < first_offset:
            continue
        of_flush.append(record)
        if record.key == key and record.value is not None:
            flush = Position.load(record.value).flush
            states = [r for r in of_flush if r.value is not None and _is_state(source, r)]
            if any(TopicState.load(r.value).flush != flush for r in states if r.value is not None):
                return None  # the position is of a later flush
            return latest_offsets(source, states)
    return None


def _is_state(source: str, record: Record) -> bool:
    names = orjson.loads(record.key) if record.key is not None else {}
    return names.get("source") == source and "topic" in names
