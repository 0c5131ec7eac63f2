"""The topic `<target>.dead_letters`: a record of each change that a target refused, or a person dropped.

    {"format":1,"target":..,"flow":..,"topic":..,"partition":..,"offset":..,"key":..,"table":..,
     "reason":{"code":..,"message":..},"version":[epoch,lsn,ordinal],"payload":..,"at_us":..,"action":..}

`key` is the event's key as text; `payload` the change's envelope, or, of a record that is none, its bytes
in base64 (then `payload_encoding` says so, and `key_encoding` for a key). A payload that is too large for
the topic is left out (`payload_bytes` says how large it was): the target has it whole. `action`: parked (it
waits in the target), discarded (by an operator, from there) or refused (by an operator, at a gate).

Acknowledged by all replicas before the row's transaction commits, so that a kill between the two writes
one letter more, never one less. The topic is made by the first letter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from aiokafka import AIOKafkaProducer
from msgspec import Raw

from consumers.apply.checkpoint import Place
from consumers.apply.fold import Version
from streamer.changes.topics import dead_letters_topic
from streamer.config import Kafka
from streamer.kafka import admin, client_options, connect, kafka_errors, shut
from streamer.publisher.topics import data_config, describe, ensure_topic

FORMAT = 1
PARTITIONS = 1  # letters are few, and read in the order of their time
SEND_DEADLINE_S = 20.0
ENVELOPE_BYTES = 64 * 2**10  # beside the payload: place, key and reason
MESSAGE_LIMIT = 4096  # characters of a reason: a server's message may repeat the value it refuses

log = logging.getLogger(__name__)

PARKED, DISCARDED, REFUSED = "parked", "discarded", "refused"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    place: Place
    offset: int
    key: bytes | None
    table: str  # the source's, with its schema
    code: str
    message: str
    version: Version
    payload: bytes
    action: str
    decodes: bool = True  # the payload is an envelope

    def dump(self, target: str, at_us: int, payload_limit: int) -> bytes:
        letter: dict[str, Any] = {
            "format": FORMAT,
            "target": target,
            "flow": self.place.flow,
            "topic": self.place.topic,
            "partition": self.place.partition,
            "offset": self.offset,
        }
        letter["key"], encoded = (None, False) if self.key is None else _text(self.key)
        if encoded:
            letter["key_encoding"] = "base64"
        letter["table"] = self.table
        letter["reason"] = {"code": self.code, "message": self.message[:MESSAGE_LIMIT]}
        letter["version"] = list(self.version)
        if len(self.payload) > payload_limit:
            letter["payload"] = None
            letter["payload_bytes"] = len(self.payload)
        elif self.decodes:
            letter["payload"] = Raw(self.payload)
        else:
            letter["payload"] = b2a_base64(self.payload, newline=False).decode()
            letter["payload_encoding"] = "base64"
        letter["at_us"] = at_us
        letter["action"] = self.action
        return msgspec.json.encode(letter)


def _text(key: bytes) -> tuple[str, bool]:
    try:
        return key.decode(), False
    except UnicodeDecodeError:
        return b2a_base64(key, newline=False).decode(), True


class Letters(Protocol):
    """Where letters go: DeadLetters, or what a test keeps them in."""

    target: str
    topic: str

    async def publish(self, letters: Iterable[DeadLetter]) -> None: ...


async def publish(to: Letters, letters: list[DeadLetter]) -> None:
    """And say so in the log, each."""
    await to.publish(letters)
    for letter in letters:
        place = letter.place
        key = letter.key.decode(errors="replace") if letter.key is not None else "(none)"
        log.error(
            "%s: key %s of %s is %s: %s [%s] (flow %s, %s[%d]@%d)",
            to.topic, key, letter.table, letter.action, letter.message, letter.code,
            place.flow, place.topic, place.partition, letter.offset,
        )  # fmt: skip


class DeadLetters:
    """One producer, started by the first letter. A failure closes it: the next call starts another one."""

    def __init__(self, kafka: Kafka, target: str) -> None:
        self._kafka = kafka
        self.target = target
        self.topic = dead_letters_topic(target)
        self.published = 0
        self._producer: AIOKafkaProducer | None = None

    async def publish(self, letters: Iterable[DeadLetter]) -> None:
        """Returns when all replicas have them. Raises KafkaUnavailable, ConfigError."""
        # Base64 makes it a third larger; the topic takes twice the largest message.
        limit = self._kafka.topics.max_message_bytes
        at_us = time.time_ns() // 1000
        records = [(letter.key, letter.dump(self.target, at_us, limit)) for letter in letters]
        if not records:
            return
        try:
            producer = self._producer or await self._start()
            with kafka_errors(f"writing to {self.topic}", brokers=self._kafka.brokers):
                async with asyncio.timeout(SEND_DEADLINE_S):
                    await self._send(producer, records)
        except BaseException:
            await self.close()
            raise
        self.published += len(records)

    async def _send(self, producer: AIOKafkaProducer, records: Sequence[tuple[bytes | None, bytes]]) -> None:
        sent = [await producer.send(self.topic, value, key=key) for key, value in records]
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _start(self) -> AIOKafkaProducer:
        kafka = self._kafka
        topics = kafka.topics
        largest = 2 * topics.max_message_bytes + ENVELOPE_BYTES
        async with admin(kafka.brokers, kafka.security) as client:
            if self.topic not in await describe(client, [self.topic]):
                config = {**data_config(topics), "max.message.bytes": str(largest)}
                factor = topics.replication_factor
                await ensure_topic(client, self.topic, PARTITIONS, config, replication_factor=factor)
        async with AsyncExitStack() as stack:
            producer = AIOKafkaProducer(
                **client_options(kafka.brokers, kafka.security),
                enable_idempotence=True,
                acks="all",
                compression_type=None if topics.compression == "none" else topics.compression,
                max_request_size=largest,
            )
            stack.push_async_callback(shut, producer.stop)
            await connect(producer, kafka.brokers, kafka.security)
            stack.pop_all()
        self._producer = producer
        return producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await shut(producer.stop)
