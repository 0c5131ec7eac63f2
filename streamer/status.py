"""Heartbeats: one record a second of every process, in the compacted topic `<name>.__status`.

Owns the record's shape, the writer inside each process, and the reader that `status`, `lag` and
`run` share. The writer never blocks or fails the pipeline: while Kafka is away records are dropped,
and the newest one goes out when it is back. Which text and exit code follow from the records is
decided in `consumers.views`, not here.

A record is keyed by {"part", "instance"}. `seen_us` is the time Kafka gave the record (the topic uses
LogAppendTime), so that the clocks of the writing machines do not matter.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streamer.changes.topics import status_topic
from streamer.errors import FatalError, TailraceError
from streamer.kafka import Security, admin, client_options, connect, kafka_errors, reader, shut
from streamer.members import can_be_told, client_id, is_dead
from streamer.publisher.topics import ensure_topic
from streamer.stopping import end_tasks

FORMAT = 1

INTERVAL_S = 1.0
MIN_GAP_S = 0.1  # a change of state is sent at once, but a flapping one ten times a second at most
SILENT_AFTER_S = 5.0  # five heartbeats missed
PROOF_S = 2.5  # what looks silent may be a wrong clock here: two more heartbeats would show it
CLOCKS_US = 1_000_000  # machines that keep time differ by less
FORGET_AFTER_S = 3600.0  # what ended or fell silent longer ago is history, not status
SEND_DEADLINE_S = 5.0  # longer than any broker that is up; then a fresh producer
RATE_RECORDS = 6  # five seconds: steady enough to read, and soon back at zero
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # waits before the next connection; the last one repeats
CLOSE_DEADLINE_S = 2.0  # a process must stop within 10 s even with Kafka gone
END_STEP_S = 0.2  # a cancelled task of the producer ends in the next turn of the loop
READ_DEADLINE_S = 10.0
REASON_LIMIT = 2000  # characters; a whole traceback is not a reason
DETAIL_BYTES_LIMIT = 512 * 1024  # half of Kafka's default message; beyond it only totals are sent

TOPIC_CONFIG: Mapping[str, str] = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(7 * 86_400_000),  # bounds the topic where the cleaner is off
    "message.timestamp.type": "LogAppendTime",
    # A reader reads all of it, so it is kept to a few MB: small segments, cleaned early.
    "segment.bytes": str(2**20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": "600000",
}


class State(StrEnum):
    """What a process says about itself."""

    STARTING = "starting"
    SNAPSHOT = "snapshot"
    STREAMING = "streaming"
    RUNNING = "running"  # of `tailrace run`
    STANDBY = "standby"  # another process has the source; takes over when that one goes
    WAITING = "waiting"  # a server does not answer, or somebody is long in the way: tried again by itself
    IDLE = "idle"
    HELD = "held"  # waits for a person
    ERROR = "error"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class StatusRecord:
    """One heartbeat. Times are microseconds since 1970 UTC; `detail`: docs/status.md."""

    part: str  # capture:shop
    kind: str  # capture | process | apply | serve | run
    name: str  # shop
    instance: str  # <host>-<pid>
    pid: int
    host: str
    started_us: int
    at_us: int
    state: str
    reason: str = ""
    since_us: int = 0
    restarts: int = 0
    ended: bool = False  # the last record of its process: silence after it is no finding
    metrics_port: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    seen_us: int = 0  # Kafka's time of the record; not in the value
    process: str = ""  # by which another on its host can tell whether it lives; empty: it cannot
    place: str = (
        ""  # of the store that it works with, as its config has it; empty: it has none, or cannot tell
    )
    store: str = ""  # what that store says of itself, whatever it is called; empty: it was not asked yet

    def key(self) -> bytes:
        return orjson.dumps({"part": self.part, "instance": self.instance})

    def dump(self) -> bytes:
        raw = asdict(self)
        del raw["seen_us"]
        value = orjson.dumps({"format": FORMAT, **raw}, option=orjson.OPT_NON_STR_KEYS)
        if len(value) > DETAIL_BYTES_LIMIT:
            raw["detail"] = _totals_only(self.detail)
            value = orjson.dumps({"format": FORMAT, **raw}, option=orjson.OPT_NON_STR_KEYS)
        return value

    @classmethod
    def load(cls, value: bytes, *, seen_us: int = 0) -> StatusRecord:
        """Raises FatalError on a newer format, or on what is no status record. Unknown keys are ignored."""
        try:
            raw = orjson.loads(value)
            version = raw.pop("format")
            if version != FORMAT:
                raise FatalError(
                    f"the status topic has format {version}, this program reads {FORMAT}",
                    fix="run the version of Tailrace that writes it, or a newer one",
                )
            known = {name: raw[name] for name in cls.__slots__ if name in raw}
            return cls(**known, seen_us=seen_us)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FatalError(
                f"a record of the status topic cannot be read: {error}",
                fix="something else writes to this topic; give Tailrace a `name` of its own",
            ) from error

    def age_s(self, now_us: int) -> float:
        return (now_us - (self.seen_us or self.at_us)) / 1e6

    def silent(self, now_us: int) -> bool:
        """Whether its process has stopped speaking without saying that it ends."""
        return not self.ended and self.age_s(now_us) > SILENT_AFTER_S

    def old(self, now_us: int) -> bool:
        """Whether it ended or fell silent long ago."""
        return (self.ended or self.silent(now_us)) and self.age_s(now_us) > FORGET_AFTER_S


def _totals_only(detail: dict[str, Any]) -> dict[str, Any]:
    """A detail of thousands of tables, cut to what has no list or map in it; flows keep their totals."""
    kept = {k: v for k, v in detail.items() if not isinstance(v, (dict, list))}
    flows = detail.get("flows")
    if isinstance(flows, dict):
        kept["flows"] = {
            name: {k: v for k, v in f.items() if k == "latency_ms" or not isinstance(v, (dict, list))}
            for name, f in flows.items()
        }
    kept["shortened"] = True
    return kept


def now_us() -> int:
    return time.time_ns() // 1000


class StatusWriter:
    """The heartbeat of one process. `async with`, or start() and close().

    update() may be called from the loop at any rate: it changes memory only. A task of its own sends
    the newest record every second, and at once when the state changes.
    """

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        name: str,
        *,
        kind: str,
        part_name: str,
        replication_factor: int = 1,
        restarts: int = 0,
        place: str = "",
        interval_s: float = INTERVAL_S,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        """`name` is the config's name; `kind` and `part_name` make the part: capture, shop. `place`: of its
        store."""
        self._brokers = brokers
        self._security = security
        self._topic = status_topic(name)
        self._replication_factor = replication_factor
        self._interval_s = interval_s
        self._clock_us = clock_us
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.sent = 0
        self.trouble = ""  # why records are being dropped; empty while they arrive
        host, pid, started_us = socket.gethostname(), os.getpid(), clock_us()
        self._record = StatusRecord(
            part=f"{kind}:{part_name}",
            kind=kind,
            name=part_name,
            instance=f"{host}-{pid}",
            pid=pid,
            host=host,
            started_us=started_us,
            at_us=started_us,
            state=State.STARTING,
            since_us=started_us,
            restarts=restarts,
            process=client_id(kind) if can_be_told() else "",
            place=place,
        )

    def update(
        self, *, state: str | None = None, reason: str | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """A `state` without a `reason` clears the reason. `detail` replaces the top-level keys it names."""
        record = self._record
        changes: dict[str, Any] = {}
        if state is not None:
            changes["reason"] = (reason or "")[:REASON_LIMIT]
            if state != record.state:
                changes.update(state=str(state), since_us=self._clock_us())
                self._wake.set()
        elif reason is not None:
            changes["reason"] = reason[:REASON_LIMIT]
        if detail is not None:
            changes["detail"] = {**record.detail, **detail}
        self._record = replace(record, **changes)

    def serves_metrics(self, port: int) -> None:
        """Say in the records where this process's metrics are."""
        self._record = replace(self._record, metrics_port=port)

    def met(self, store: str) -> None:
        """Say in the records which store it is that this process works with, as that says itself."""
        self._record = replace(self._record, store=store)

    @property
    def record(self) -> StatusRecord:
        """The present record, as it would be sent now."""
        return replace(self._record, at_us=self._clock_us())

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"status of {self._record.part}")

    async def close(self) -> None:
        """Send the last record: `stopped`, or the `error` this process ends with. At most 2 s."""
        if self._record.state != State.ERROR:
            self.update(state=State.STOPPED, reason=self._record.reason)
        self._record = replace(self._record, ended=True)
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_DEADLINE_S)
            await end_tasks(self._task)
            self._task = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self) -> None:
        failures = 0
        while True:
            before = self.sent
            try:
                await self._send_until_closed()
                return
            except TailraceError as error:
                self.trouble = str(error)
            if self._closing:
                return
            failures = 0 if self.sent > before else failures + 1
            await self._rest(RETRY_S[min(failures, len(RETRY_S) - 1)])

    async def _send_until_closed(self) -> None:
        async with admin(self._brokers, self._security) as client:
            await ensure_topic(
                client, self._topic, 1, TOPIC_CONFIG, replication_factor=self._replication_factor
            )
        async with AsyncExitStack() as stack:
            producer = AIOKafkaProducer(
                **client_options(self._brokers, self._security),
                enable_idempotence=True,
                acks="all",
                compression_type=None,
                max_request_size=2 * DETAIL_BYTES_LIMIT,
            )
            stack.push_async_callback(_drop, producer)
            await connect(producer, self._brokers, self._security)
            await self._bury_the_old(producer)
            while True:
                last = self._closing
                self._wake.clear()
                record = self.record
                await self._send(producer, record.key(), record.dump())
                self.sent += 1
                self.trouble = ""
                if last:
                    return
                await asyncio.sleep(MIN_GAP_S)
                await self._pause(self._interval_s - MIN_GAP_S)

    async def _send(self, producer: AIOKafkaProducer, key: bytes, value: bytes | None) -> None:
        with kafka_errors("sending the heartbeat", brokers=self._brokers):
            async with asyncio.timeout(SEND_DEADLINE_S):
                await producer.send_and_wait(self._topic, value, key=key, partition=0)

    async def _bury_the_old(self, producer: AIOKafkaProducer) -> None:
        """Tombstones for what ended or fell silent long ago, so that the topic does not keep every pid.

        Of its part also the word that those ended which were killed here: who looks elsewhere cannot tell
        them from frozen ones.
        """
        async with StatusReader(self._brokers, self._security, self._topic) as topic:
            await topic.poll()
            for record in topic.records():
                if record.part == self._record.part and not record.ended and is_dead(record.process):
                    await self._send(producer, record.key(), replace(record, ended=True).dump())
            for record in topic.forgotten(self._clock_us()):
                await self._send(producer, record.key(), None)

    async def _rest(self, seconds: float) -> None:
        """Kafka is away: only the end cuts it short, however much there is to say meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                while not self._closing:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return

    async def _pause(self, seconds: float) -> None:
        """Until the time is over, or something is worth sending at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return


async def _drop(producer: AIOKafkaProducer) -> None:
    """End the producer's tasks and connections at once: stop() would wait for a broker that is away.

    Nothing is lost by it, as every record is awaited before the next. The second cancel reaches the
    request that the sender waits for after the first.
    """
    producer._closed = True
    sender = producer._sender.sender_task
    for _ in range(2):
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait([sender], timeout=END_STEP_S)
    await shut(producer.client.close)


class StatusReader:
    """The status topic, latest record per key, read on from where the last poll ended."""

    def __init__(self, brokers: str, security: Security | None, topic: str) -> None:
        self._brokers = brokers
        self._security = security
        self._topic = topic
        self._partition = TopicPartition(topic, 0)
        self._client: AIOKafkaConsumer | None = None
        self._stack = AsyncExitStack()
        self._latest: dict[bytes, StatusRecord] = {}
        self._counts: dict[bytes, deque[tuple[int, dict[str, int]]]] = {}
        self._assigned = False
        self._polled_us: int | None = None  # this clock's time of the last poll

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(
            reader(self._brokers, self._security, committed=False)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def poll(self) -> None:
        """Read to the end as it is now. A topic that is not there has no records."""
        client = self._client
        assert client is not None, "use `async with`"
        with kafka_errors(f"reading {self._topic}", brokers=self._brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                if not self._assigned and self._topic not in await client.topics():
                    return
                end = (await client.end_offsets([self._partition]))[self._partition]
                if not self._assigned:
                    client.assign([self._partition])
                    await client.seek_to_beginning(self._partition)
                    self._assigned = True
                client.resume(self._partition)
                fresh: dict[bytes, deque[tuple[bytes | None, int]]] = {}
                while await client.position(self._partition) < end:
                    for batch in (await client.getmany(timeout_ms=50)).values():
                        for message in batch:
                            last = fresh.setdefault(message.key or b"", deque(maxlen=RATE_RECORDS))
                            last.append((message.value, message.timestamp * 1000))
                client.pause(self._partition)  # else each heartbeat is fetched alone, as it comes
                for key, values in fresh.items():  # no more than these count, of a topic's many
                    for value, seen_us in values:
                        self._take(key, value, self._of_now(seen_us))
                self._polled_us = now_us()

    def _of_now(self, seen_us: int) -> int:
        """What the last poll did not see was written since, whatever the clocks say of it."""
        since_us, at_us = self._polled_us, now_us()
        if since_us is None or since_us - CLOCKS_US <= seen_us <= at_us + CLOCKS_US:
            return seen_us
        return at_us

    def _take(self, key: bytes, value: bytes | None, seen_us: int) -> None:
        if value is None:
            self._latest.pop(key, None)
            self._counts.pop(key, None)
            return
        record = StatusRecord.load(value, seen_us=seen_us)
        earlier = self._counts.setdefault(key, deque(maxlen=RATE_RECORDS))
        earlier.append((record.at_us, counts(record)))
        _fill_rates(record, earlier)
        self._latest[key] = record

    def records(self) -> list[StatusRecord]:
        """Latest per instance, sorted by part and start; without the forgotten ones."""
        gone = self.forgotten(now_us())
        shown = [r for r in self._latest.values() if r not in gone]
        return sorted(shown, key=lambda r: (r.part, r.started_us, r.instance))

    def forgotten(self, at_us: int) -> list[StatusRecord]:
        """What ended or fell silent an hour ago, but for the last instance of each part: it says why."""
        last: dict[str, StatusRecord] = {}
        for record in self._latest.values():
            if record.part not in last or record.started_us > last[record.part].started_us:
                last[record.part] = record
        return [r for r in self._latest.values() if r.old(at_us) and r is not last[r.part]]

    async def prove_silence(self) -> None:
        """Wait a little when a live record looks old, or from the future: this clock may be the wrong one.

        A heartbeat that comes meanwhile is stamped with this machine's time of seeing it.
        """
        at = now_us()
        doubtful = {
            key: record
            for key, record in self._latest.items()
            if not record.ended and not record.old(at) and not 0 <= record.age_s(at) <= SILENT_AFTER_S
        }
        deadline = time.monotonic() + PROOF_S
        while doubtful and time.monotonic() < deadline:
            await asyncio.sleep(INTERVAL_S / 4)
            await self.poll()
            for key, old in list(doubtful.items()):
                record = self._latest.get(key)
                if record is None or record.at_us != old.at_us:
                    del doubtful[key]
                    if record is not None:
                        self._latest[key] = replace(record, seen_us=now_us())


def counts(record: StatusRecord) -> dict[str, int]:
    """What is counted in the record: "" for a capture's events, a flow's name for its rows."""
    if record.kind == "capture":
        return {"": record.detail.get("published") or 0}
    return {name: flow.get("applied") or 0 for name, flow in (record.detail.get("flows") or {}).items()}


def _fill_rates(record: StatusRecord, earlier: Sequence[tuple[int, dict[str, int]]]) -> None:
    """`rate` (a second) where the process does not give it: the rise over its last few heartbeats."""
    (began_us, before), (ended_us, after) = earlier[0], earlier[-1]
    seconds = (ended_us - began_us) / 1e6
    for name, count in after.items():
        place = record.detail["flows"][name] if name else record.detail
        rise = count - before.get(name, 0)  # below zero: counted from nought again
        if place.get("rate") is None and seconds > 0:
            place["rate"] = round(max(0, rise) / seconds, 1)


async def read_status(brokers: str, security: Security | None, name: str) -> list[StatusRecord]:
    """Everything known of the processes of `name` now. Raises KafkaUnavailable, ConfigError, FatalError."""
    async with StatusReader(brokers, security, status_topic(name)) as topic:
        await topic.poll()
        await topic.prove_silence()
        return topic.records()
