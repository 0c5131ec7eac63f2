"""Transactions that Kafka has ended and yet left open in some partitions; ends them as they ended (H13).

A coordinator that finds no leader for a partition takes it for deleted: it writes no marker there and
calls the transaction complete. So it goes with every partition of a Kafka that stands alone, for the
moment in which it is stopped in good order, and with any whose replicas are all away. What is open
there is ended by nothing: not by initialising the id, not by the transaction's timeout. Readers stand
before it for good, and the next marker of the same producer in this partition decides for it, whatever
that says: an acknowledged flush would be aborted, or a void one committed.

Each of our transactions has a position record, written last, that says which offsets it took. From
that follows how it ended: it is committed where a position that stands covers it, and else aborted.
Owns this decision; `Turns` has the producers that carry it out. No transaction of the source may be in
flight meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson
from aiokafka import ConsumerRecord, TopicPartition

from streamer.changes.position import Position, TopicState
from streamer.kafka import Security, offset_ranges, read_to_end
from streamer.logs import Log
from streamer.publisher.describe_producers import OpenTransaction
from streamer.publisher.transactions import Turns

Ends = Mapping[OpenTransaction, bool]  # True: commit, False: abort

log = Log(__name__)


class Hanging:
    """Of one source. `deadline_s` is for each reading of the positions."""

    def __init__(
        self, brokers: str, security: Security | None, turns: Turns, *, source: str, deadline_s: float
    ) -> None:
        self._brokers = brokers
        self._security = security
        self._turns = turns
        self._source = source
        self._deadline_s = deadline_s

    async def end_positions(self, place: TopicPartition) -> None:
        """Before the positions are read: after it they can be. Both ids are initialised."""
        left = sorted(await self._turns.left_open([place]), key=lambda t: t.first_offset)
        if not left:
            return
        start, end = (await offset_ranges(self._brokers, self._security, [place]))[place]
        standing = await self._read({place: (start, left[0].first_offset)}, committed=True)
        tail = await self._read({place: (left[0].first_offset, end)}, committed=False)
        recorded = latest_offsets(self._source, standing)
        ends: dict[OpenTransaction, bool] = {}
        for transaction, following in zip(left, [*left[1:], None], strict=True):
            wrote = whole_flush(self._source, tail, transaction.first_offset)
            # A flush begins only when the one before is acknowledged as committed.
            ends[transaction] = wrote is not None and (
                following is not None or await self._none_aborted(wrote, recorded)
            )
        await self._end(ends)

    async def _none_aborted(
        self, wrote: Mapping[TopicPartition, int], recorded: Mapping[TopicPartition, int]
    ) -> bool:
        """Whether the flush may be committed: where it has ended already, it has not been aborted."""
        rows = {place: last for place, last in wrote.items() if last > recorded.get(place, -1)}
        still_open = {t.place for t in await self._turns.left_open(rows)}
        ended = {place: (last, last + 1) for place, last in rows.items() if place not in still_open}
        return len(await self._read(ended, committed=True)) == len(ended)

    async def end_rows(self, states: Iterable[TopicState], places: Iterable[TopicPartition]) -> None:
        """Of the partitions that hold rows. `states`: what the position that stands has recorded."""
        recorded = {TopicPartition(s.topic, p): last for s in states for p, last in s.last_offsets.items()}
        left = await self._turns.left_open(places)
        await self._end({t: t.first_offset <= recorded.get(t.place, -1) for t in left})

    async def end_acknowledged(self, places: Iterable[TopicPartition]) -> None:
        """Of a publisher at work: every flush that it has begun was acknowledged as committed."""
        await self._end(dict.fromkeys(await self._turns.left_open(places), True))

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
    ) -> list[ConsumerRecord[bytes, bytes]]:
        return await read_to_end(
            self._brokers, self._security, ranges, committed=committed, deadline_s=self._deadline_s
        )


def latest_offsets(source: str, records: Iterable[ConsumerRecord[bytes, bytes]]) -> dict[TopicPartition, int]:
    """The last offset in each partition that the source's topic states say it has written. Pure."""
    last: dict[TopicPartition, int] = {}
    for record in records:
        if record.key is None or record.value is None:
            continue
        names = orjson.loads(record.key)
        if names.get("source") == source and "topic" in names:
            state = TopicState.load(record.value)
            last |= {TopicPartition(state.topic, p): offset for p, offset in state.last_offsets.items()}
    return last


def whole_flush(
    source: str, tail: Sequence[ConsumerRecord[bytes, bytes]], first_offset: int
) -> dict[TopicPartition, int] | None:
    """The last offsets that the flush which begins at `first_offset` says it took; None: it was not
    written to its end, which is the position, so nobody has asked for its commit. Pure.

    `tail`: records of the positions topic in order, of other sources too.
    """
    key = orjson.dumps({"source": source})
    of_flush: list[ConsumerRecord[bytes, bytes]] = []
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


def _is_state(source: str, record: ConsumerRecord[bytes, bytes]) -> bool:
    names = orjson.loads(record.key) if record.key is not None else {}
    return names.get("source") == source and "topic" in names
