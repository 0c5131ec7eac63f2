"""The shadow at a start: the copy beside the process, brought up to what the topic holds (H20, H12)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aiokafka import TopicPartition

from streamer.kafka import Security, admin, describe_cluster, kafka_errors, offset_ranges, read_batches
from streamer.redis.entities import Entities
from streamer.redis.shadow import Shadow
from streamer.redis.shadow_copies import discard
from streamer.redis.shadow_records import load_value


async def cluster_id(brokers: str, security: Security | None) -> str:
    async with admin(brokers, security) as client:
        with kafka_errors("asking for the cluster's id", brokers=brokers):
            return str((await describe_cluster(client))["cluster_id"])


class ShadowTopic:
    """`next_offset`: where the topic goes on behind what the copy has."""

    def __init__(self, brokers: str, security: Security | None, topic: str) -> None:
        self._brokers = brokers
        self._security = security
        self._place = TopicPartition(topic, 0)
        self.name = topic
        self.next_offset = 0
        self.read = 0  # records, of this start

    async def end(self) -> tuple[int, int]:
        """(first offset, high watermark), open transactions included."""
        ranges = await offset_ranges(self._brokers, self._security, [self._place])
        return ranges[self._place]

    async def open(self, path: Path, entities: Entities, *, since_epoch: int, flush: int) -> Shadow:
        """The shadow as the topic has it now; both transactional ids have been initialised.

        What epochs before `since_epoch` recorded is void: a reset has ended it. `flush`: of the position.
        Raises KafkaUnavailable, FatalError, DecodeError.
        """
        cluster = await cluster_id(self._brokers, self._security)
        start, end = await self.end()

        def made() -> Shadow:
            return Shadow(path, cluster=cluster, fingerprint=entities.fingerprint, place_of=entities.place)

        shadow = made()
        try:
            stamp = shadow.stamp
            if stamp is not None and not start <= stamp.topic_offset <= end:
                shadow.close()
                discard(path)
                shadow, stamp = made(), None
            first = start if stamp is None else stamp.topic_offset
            await self._fill(shadow, first, end, _void_below(since_epoch), flush)
        except BaseException:
            shadow.close()
            raise
        self.next_offset = end
        return shadow

    async def _fill(
        self, shadow: Shadow, first: int, end: int, valid: Callable[[bytes | None], bytes | None], flush: int
    ) -> None:
        ranges = {self._place: (first, end)}
        async for batch in read_batches(self._brokers, self._security, ranges, committed=True):
            shadow.load([(r.key or b"", valid(r.value)) for r in batch], batch[-1].offset + 1, flush)
            self.read += len(batch)
        shadow.loaded(end, flush)


def _void_below(epoch: int) -> Callable[[bytes | None], bytes | None]:
    if not epoch:
        return lambda value: value

    def valid(value: bytes | None) -> bytes | None:
        return value if value is not None and load_value(value)[0] >= epoch else None

    return valid
