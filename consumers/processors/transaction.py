"""How a task's records get into Kafka: one transaction, or (at least once) outputs before the changelog.

    exactly once    outputs, then the changelog with the offsets taken and those consumed: all or nothing
    at least once   outputs acknowledged, then the changelog: a kill between them sends the outputs again

Starting fences whoever had the task before, and ends what they left open. At least once, Kafka fences nobody:
the group is asked before each commit whether the task is ours, so that one who was frozen, or slow to give it
up, does not send older rows behind its successor's. Every batch is acknowledged before
a commit (H1). A transaction begins when the one before is over in every partition: Kafka acknowledges a
commit before it has written the markers, and while it is being stopped it may leave one out (see
streamer.publisher.hanging); were the next transaction aborted, its marker there would take the acknowledged
records along. After any failure the producer is ended and the process with it (H13).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from aiokafka import TopicPartition

from consumers.processors.hanging import Commits
from streamer.errors import FencedError, KafkaUnavailable
from streamer.kafka import Security, client_options, connect, kafka_errors
from streamer.publisher.hanging import Hanging
from streamer.publisher.transactions import (
    FLUSH_DEADLINE_S,
    Queue,
    Sent,
    TransactionalProducer,
    Turns,
)

Guarantee: TypeAlias = Literal["exactly_once", "at_least_once"]
Wrote: TypeAlias = Mapping[TopicPartition, int]  # the last offset taken in a partition


class Transactions:
    """Of one task, whose changelog is at `place`."""

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        transactional_id: str,
        guarantee: Guarantee,
        place: TopicPartition,
        has: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`has`: whether the task is this worker's still; asked only where Kafka does not fence."""
        self._brokers = brokers
        self._security = security
        self._id = transactional_id
        self._place = place
        self._has = has
        self._turns: Turns | None = None
        self._plain: TransactionalProducer | None = None
        if guarantee == "exactly_once":
            self._turns = Turns(brokers, security, prefix=transactional_id, ids=1)
            self._hanging = Hanging(brokers, security, self._turns, Commits())
        self._ended = False

    async def start(self) -> None:
        """From here on nobody else commits under this id. Raises KafkaUnavailable, ConfigError."""
        if self._turns is not None:
            await self._turns.start()
        else:
            options = client_options(self._brokers, self._security)
            self._plain = TransactionalProducer(transactional_id=None, **options)
            await connect(self._plain, self._brokers, self._security)

    async def end_changelog(self) -> None:
        """What Kafka has left open there; before it is read."""
        if self._turns is not None:
            await self._hanging.end_journal(self._place)

    async def end_outputs(self, places: Iterable[TopicPartition], wrote: Wrote) -> None:
        """The same in the outputs, by what the changelog says; before the first transaction."""
        if self._turns is not None:
            await self._hanging.end_written(places, wrote)

    async def commit(self, outputs: Sequence[Queue], changelog: Callable[[Wrote], Queue]) -> int:
        """The offset after the changelog's records. `changelog` is given what the outputs took.

        Raises KafkaUnavailable, FencedError.
        """
        if self._ended:
            raise KafkaUnavailable("the producer has ended", where=self._id)
        try:
            with kafka_errors(f"committing as {self._id}", brokers=self._brokers):
                async with asyncio.timeout(FLUSH_DEADLINE_S):
                    return await self._commit(outputs, changelog)
        except FencedError as error:
            raise FencedError(
                f"another worker has taken over this task: {error.what}",
                where=self._id,
                fix="nothing: what was not committed is done there, and this process starts again",
            ) from error

    async def _commit(self, outputs: Sequence[Queue], changelog: Callable[[Wrote], Queue]) -> int:
        turns = self._turns
        if turns is not None:
            await self.finish()
            await turns.begin([*(TopicPartition(q.topic, q.partition) for q in outputs), self._place])
        elif self._has is not None and not await self._has():
            raise FencedError("the group has given it away", where=self._id)
        taken = await self._send(outputs) if outputs else []
        wrote: dict[TopicPartition, int] = {}
        for sent in taken:
            place = TopicPartition(sent.topic, sent.partition)
            wrote[place] = max(sent.last_offset, wrote.get(place, -1))
        last = max(sent.last_offset for sent in await self._send([changelog(wrote)]))
        if turns is not None:
            await turns.commit()
        return last + 1

    async def finish(self) -> None:
        """Until what is acknowledged is over in every partition, and can be read. Raises KafkaUnavailable."""
        if self._turns is not None:
            await self._hanging.finish()

    async def _send(self, queues: Sequence[Queue]) -> list[Sent]:
        if self._turns is not None:
            return await self._turns.send(queues)
        assert self._plain is not None, "not started"
        return await self._plain.send_queues(queues, self._brokers)

    async def end(self, *, abort: bool) -> None:
        self._ended = True
        if self._turns is not None:
            await self._turns.end(abort=abort)
        elif self._plain is not None:
            await self._plain.end(abort=abort)
