"""Transactions of a task that Kafka has ended and yet left open in some partitions; ends them as they ended.

How it comes to them, and why nothing else ends them, is told in streamer.publisher.hanging. What a position
is there, the changelog's commit record is here: it is written last, when the outputs are acknowledged, and
says which offsets they took. A transaction begins only when the one before is acknowledged as committed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from aiokafka import ConsumerRecord, TopicPartition

from consumers.processors.changelog import COMMIT_KEY, Commit
from streamer.kafka import Security, offset_ranges, read_to_end
from streamer.publisher.describe_producers import OpenTransaction
from streamer.publisher.transactions import Turns

log = logging.getLogger(__name__)

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"


class Hanging:
    """Of one task, whose id is initialised; none of its transactions is in flight."""

    def __init__(self, brokers: str, security: Security | None, turns: Turns, place: TopicPartition) -> None:
        """`place`: of the changelog."""
        self._brokers = brokers
        self._security = security
        self._turns = turns
        self._place = place

    async def end_changelog(self) -> None:
        """Before it is read: after this it can be."""
        place = self._place
        left = sorted(await self._turns.left_open([place]), key=lambda t: t.first_offset)
        if not left:
            return
        start, end = (await offset_ranges(self._brokers, self._security, [place]))[place]
        first = left[0].first_offset
        before = commits(await self._read({place: (start, first)}, committed=True))
        tail = await self._read({place: (first, end)}, committed=False)
        recorded = before[-1].wrote if before else {}
        ends: dict[OpenTransaction, bool] = {}
        for transaction, following in zip(left, [*left[1:], None], strict=True):
            until = end if following is None else following.first_offset
            whole = commits(r for r in tail if transaction.first_offset <= r.offset < until)
            # Without its commit record it was not written to its end, and nobody has asked for its commit.
            ends[transaction] = bool(whole) and (
                following is not None or await self._none_aborted(whole[0].wrote, recorded)
            )
        await self._end(ends)

    async def _none_aborted(
        self, wrote: Mapping[TopicPartition, int], recorded: Mapping[TopicPartition, int]
    ) -> bool:
        """Whether it may be committed: where it has ended already, it has not been aborted."""
        taken = {place: last for place, last in wrote.items() if last > recorded.get(place, -1)}
        still_open = {t.place for t in await self._turns.left_open(taken)}
        ended = {place: (last, last + 1) for place, last in taken.items() if place not in still_open}
        return len(await self._read(ended, committed=True)) == len(ended)

    async def end_outputs(
        self, places: Iterable[TopicPartition], wrote: Mapping[TopicPartition, int]
    ) -> None:
        """`wrote`: of the commit record that stands."""
        left = await self._turns.left_open(places)
        await self._end({t: t.first_offset <= wrote.get(t.place, -1) for t in left})

    async def end_acknowledged(self, places: Iterable[TopicPartition]) -> None:
        """Of a task at work: every transaction that it has begun was acknowledged as committed."""
        await self._end(dict.fromkeys(await self._turns.left_open([self._place, *places]), True))

    async def _end(self, ends: Mapping[OpenTransaction, bool]) -> None:
        if not ends:
            return
        await self._turns.settle(ends)
        for transaction, commit in ends.items():
            log.warning(
                "Kafka had left a transaction open that it had ended: its records are %s (%s[%d] from %d on)",
                "committed" if commit else "void", *transaction.place, transaction.first_offset,
            )  # fmt: skip

    async def _read(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, committed: bool
    ) -> list[Record]:
        return await read_to_end(self._brokers, self._security, ranges, committed=committed)


def commits(records: Iterable[Record]) -> list[Commit]:
    """The commit records among them. Pure."""
    return [
        Commit.load(record.value, f"{record.topic}[{record.partition}]@{record.offset}")
        for record in records
        if record.key == COMMIT_KEY and record.value is not None
    ]
