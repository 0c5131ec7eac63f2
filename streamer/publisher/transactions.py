"""Kafka transactions: two transactional ids, used strictly in turn.

A transaction on the id that has just committed waits 20 ms in aiokafka for the commit markers; the
other id is free at once. Initialising an id fences whoever used it before and aborts what they left
open (H30); what Kafka has ended and yet left open is ended through them (see hanging). Every batch's
future is awaited before a commit (H1); after any failure the producers are ended, never used again (H13).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import Sender

from streamer.changes.topics import source_of
from streamer.errors import ConfigError, KafkaUnavailable
from streamer.kafka import CONNECT_DEADLINE_S, Security, client_options, connect, kafka_errors, translate
from streamer.publisher.batches import Batch
from streamer.publisher.describe_producers import OpenTransaction, open_transactions
from streamer.resetting import reset_steps

IDS = 2
FLUSH_DEADLINE_S = 20.0  # aiokafka retries without a limit; a restart of Kafka takes 2 to 10 s
TRANSACTION_TIMEOUT_MS = 60_000  # the brokers abort an older one; above FLUSH_DEADLINE_S: we give up first
ROUND_BYTES = 16 * 2**20  # sent at once; well under the brokers' socket.request.max.bytes of 100 MiB
END_DEADLINE_S = 1.0  # for cancelled tasks to finish; two producers end within close()'s 5 s
RETRY_BACKOFF_MS = 50
MARKER_POLL_S = 0.02  # aiokafka's own pace in a wait for markers
MARKER_FIRST_S = 0.002  # by then Kafka has mostly written them; doubled after each look, up to that pace
MARKERS_S = 1.0  # Kafka writes them within milliseconds; one that is missing for longer is written by us


class Sent(NamedTuple):
    """Where a batch landed."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class Queue(NamedTuple):
    """The batches of one partition, in order."""

    topic: str
    partition: int
    batches: list[Batch]


class _Sender(Sender):  # type: ignore[misc]
    """aiokafka's sender, which here knows the tasks it has started, so that they can be ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.children: set[asyncio.Task[Any]] = set()

    def _maybe_do_transactional_request(self) -> asyncio.Task[Any] | None:
        task: asyncio.Task[Any] | None = super()._maybe_do_transactional_request()
        if task is not None:
            self._own(task)
        return task

    async def _send_produce_req(self, node_id: int, batches: dict[TopicPartition, MessageBatch]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._own(task)
        await super()._send_produce_req(node_id, batches)

    def _own(self, task: asyncio.Task[Any]) -> None:
        self.children.add(task)
        task.add_done_callback(self.children.discard)


class TransactionalProducer(AIOKafkaProducer):  # type: ignore[misc]
    """One transactional id; None: idempotent only. `end()` returns soon, also when no broker answers."""

    def __init__(self, *, transactional_id: str | None, **options: Any) -> None:
        super().__init__(
            **options,
            transactional_id=transactional_id,
            enable_idempotence=True,
            acks="all",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=int(FLUSH_DEADLINE_S * 1000),
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        self._ended = False
        self._sender = _Sender(
            self.client,
            acks=-1,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            request_timeout_ms=int(FLUSH_DEADLINE_S * 1000),
        )

    def enlist(self, partitions: Iterable[TopicPartition]) -> None:
        """Name the transaction's partitions at once: one request instead of one a round."""
        for partition in partitions:
            self._txn_manager.maybe_add_partition_to_txn(partition)

    def has_partition(self, topic: str, partition: int) -> bool:
        return partition in (self.client.cluster.partitions_for_topic(topic) or ())

    @property
    def producer_id(self) -> int:
        return int(self._txn_manager.producer_id)

    async def send_queues(self, queues: Iterable[Queue], brokers: str) -> list[Sent]:
        """Send all batches and wait until every one is acknowledged (H1)."""
        waiting = [(q.topic, q.partition, deque(q.batches)) for q in queues]
        sent: list[Sent] = []
        while waiting:
            sent += await self._round(waiting, brokers)
            waiting = [queue for queue in waiting if queue[2]]
        return sent

    async def _round(self, waiting: list[tuple[str, int, deque[Batch]]], brokers: str) -> list[Sent]:
        """One batch a partition, as a produce request has it, up to ROUND_BYTES in all."""
        places: list[tuple[str, int, Batch]] = []
        futures: list[asyncio.Future[Any]] = []
        room = ROUND_BYTES
        try:
            for topic, partition, batches in waiting:
                if room <= 0:
                    break
                await self.partitions_for(topic)
                if not self.has_partition(topic, partition):
                    raise ConfigError(
                        f"topic {topic} has no partition {partition} any more",
                        where=f"kafka {brokers}",
                        fix=f"make the topic again with its partitions, then {reset_steps(source_of(topic))}",
                    )
                batch = batches.popleft()
                room -= batch.seal()
                futures.append(await self.send_batch(batch, topic, partition=partition))
                places.append((topic, partition, batch))
        except BaseException:
            asyncio.gather(*futures, return_exceptions=True).cancel()  # not awaited: the deadline may be over
            raise
        results = await asyncio.gather(*futures, return_exceptions=True)
        sent: list[Sent] = []
        for (topic, partition, batch), result in zip(places, results, strict=True):
            if isinstance(result, BaseException):
                doing = f"publishing {batch.seal():,} bytes to {topic}[{partition}]"
                raise translate(result, doing, brokers=brokers) from result
            if result.offset < 0:
                raise KafkaUnavailable(
                    f"Kafka took a batch for {topic}[{partition}] twice and does not say where it is",
                    where=f"kafka {brokers}",
                    fix="nothing: this is read again from the last position by itself",
                )
            sent.append(Sent(topic, partition, result.offset, result.offset + batch.count - 1))
        return sent

    async def end(self, *, abort: bool) -> None:
        """Drop the connections and end every task; before it, `abort` what is open if Kafka answers at once.

        A transaction that stays open holds up its topics' readers until somebody initialises the id,
        or for TRANSACTION_TIMEOUT_MS.
        """
        if self._ended:
            return
        self._ended = self._closed = True
        if abort and self._txn_manager.is_in_transaction():
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(END_DEADLINE_S):
                    await self.abort_transaction()
        sender = self._sender
        tasks: set[asyncio.Task[Any]] = set(sender.children)
        if sender.sender_task is not None:
            tasks.add(sender.sender_task)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_DEADLINE_S)
        waiter = self._txn_manager._transaction_waiter
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()  # read, or asyncio logs it as never retrieved
        closing = asyncio.create_task(self.client.close(), name="kafka-client-close")
        await asyncio.wait({closing}, timeout=END_DEADLINE_S)
        closing.cancel()


class Turns:
    """The two producers. Any exception out of `begin`, `send` or `commit` means: `end()`, make another."""

    def __init__(self, brokers: str, security: Security | None, *, prefix: str, ids: int = IDS) -> None:
        """`ids`: one is enough where transactions are more than 20 ms apart."""
        self._ids = ids
        self._brokers = brokers
        self._security = security
        self._prefix = prefix
        self._producers: deque[TransactionalProducer] = deque()
        self._begun: list[TopicPartition] = []
        self._ending: dict[TransactionalProducer, asyncio.Task[list[OpenTransaction]]] = {}

    async def start(self) -> None:
        """Initialise both ids: from here on no other process can commit with them."""
        for number in range(self._ids):
            transactional_id = f"{self._prefix}.{number}"
            producer = TransactionalProducer(
                transactional_id=transactional_id, **client_options(self._brokers, self._security)
            )
            self._producers.append(producer)
            await connect(producer, self._brokers, self._security)

    async def know(self, topics: Iterable[str]) -> None:
        """Fetch the metadata of topics that exist, so that no flush waits for it."""
        with kafka_errors("reading metadata", brokers=self._brokers):
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                for producer in tuple(self._producers):  # a flush turns them meanwhile
                    for topic in topics:
                        await producer.partitions_for(topic)

    async def left_open(self, partitions: Iterable[TopicPartition]) -> list[OpenTransaction]:
        """What is open of both ids. While none is in a transaction, that is what Kafka has left so."""
        places = list(partitions)
        if not places:
            return []
        await self.know({place.topic for place in places})
        return await self._open(list(self._producers), places)

    async def _open(
        self, producers: Sequence[TransactionalProducer], places: list[TopicPartition]
    ) -> list[OpenTransaction]:
        """Asked over the first one's connections."""
        ours = {producer.producer_id for producer in producers}
        with kafka_errors("describing producers", brokers=self._brokers):
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                found = await open_transactions(producers[0].client, places)
        return [transaction for transaction in found if transaction.producer_id in ours]

    async def unmarked(self) -> list[OpenTransaction]:
        """Where commits have no marker MARKERS_S after them: of the id whose turn it is, and what
        is known of the other by now. It is looked for while the ids wait. Raises KafkaUnavailable."""
        turn = self._producers[0]
        ended = [self._ending.pop(p) for p, task in list(self._ending.items()) if p is turn or task.done()]
        return [transaction for task in ended for transaction in await task]

    async def _markers(
        self, producer: TransactionalProducer, places: list[TopicPartition]
    ) -> list[OpenTransaction]:
        now_s = asyncio.get_running_loop().time
        until_s, pause_s = now_s() + MARKERS_S, MARKER_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            left = await self._open([producer], places)
            if not left or now_s() > until_s:
                return left
            pause_s = min(2 * pause_s, MARKER_POLL_S)

    async def settle(self, ends: Mapping[OpenTransaction, bool]) -> None:
        """Commit (True) or abort what is left open: a transaction of the same producer that writes nothing
        leaves the marker that is missing. Returns when Kafka has written them all."""
        with kafka_errors("ending what was left open", brokers=self._brokers):
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                for producer in tuple(self._producers):
                    for commit in (True, False):
                        places = [
                            t.place
                            for t, committed in ends.items()
                            if committed is commit and t.producer_id == producer.producer_id
                        ]
                        if places:
                            await producer.begin_transaction()
                            producer.enlist(places)
                            await (producer.commit_transaction if commit else producer.abort_transaction)()
                ended = {transaction.place for transaction in ends}
                while True:
                    if not await self.left_open(ended):
                        return
                    await asyncio.sleep(MARKER_POLL_S)

    async def begin(self, partitions: Iterable[TopicPartition]) -> None:
        producer = self._producers[0]
        self._begun = list(partitions)
        await producer.begin_transaction()
        producer.enlist(self._begun)

    async def send(self, queues: Iterable[Queue]) -> list[Sent]:
        """Send all batches and wait until every one is acknowledged (H1)."""
        return await self._producers[0].send_queues(queues, self._brokers)

    async def commit(self) -> None:
        """Commit, and let the other id go next. The caller sets the deadline: aiokafka has none."""
        producer = self._producers[0]
        await producer.commit_transaction()
        markers = self._markers(producer, self._begun)
        self._ending[producer] = asyncio.create_task(markers, name="kafka-markers")
        self._producers.rotate(1)

    async def end(self, *, abort: bool) -> None:
        """`abort`: Kafka is thought to answer, so tell it that an open transaction is off."""
        ending = list(self._ending.values())
        self._ending.clear()
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._producers:
            await asyncio.gather(*(producer.end(abort=abort) for producer in self._producers))
