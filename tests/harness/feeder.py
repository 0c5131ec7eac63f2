"""Events of made-up tables, straight into Kafka with the real envelope: a source without a database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import orjson
import psycopg
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumers.apply.loop import run_apply
from streamer.changes.envelope import SWEEP_HEADER, RowTemplate, SourceTemplate
from streamer.changes.schema import Column, SchemaRecord
from streamer.changes.topics import data_topic, partition_for, schemas_topic
from streamer.config import Config, parse
from streamer.status import StatusWriter

WAIT_S = 60.0
POLL_S = 0.02

Row = dict[str, Any]
ColumnSpec = tuple[str, str, str]  # name, type, kind
Pending = tuple[str, int, bytes | None, bytes | None, list[tuple[str, bytes]]]


class Table:
    """One version of a table. Each method appends one event; `await feeder.flush()` publishes them.

    `lsn` stands for a transaction's commit LSN; a row's version is (epoch, lsn, ordinal).
    """

    def __init__(
        self,
        feeder: Feeder,
        name: str,
        columns: Sequence[ColumnSpec],
        key: Sequence[str] = ("id",),
        *,
        schema: str = "public",
        identity: str = "d",
        partitions: int = 2,
    ) -> None:
        self.record = SchemaRecord(
            feeder.source,
            schema,
            name,
            identity,
            tuple(Column(n, t, -1, kind, n in key) for n, t, kind in columns),
        )
        self.topic = data_topic(feeder.source, schema, name)
        self.partitions = partitions
        self.key = tuple(key)
        self._feeder = feeder

    def key_of(self, row: Row) -> bytes | None:
        return orjson.dumps({name: row[name] for name in self.key}) if self.key else None

    def partition_of(self, row: Row) -> int:
        return partition_for(self.key_of(row), self.partitions)

    def create(self, row: Row, lsn: int, ordinal: int = 0, **at: Any) -> None:
        self._send(self.key_of(row), self._template(lsn, **at).create(orjson.dumps(row), lsn, ordinal))

    def read(self, row: Row, lsn: int, **at: Any) -> None:
        value = self._template(lsn, snapshot="true", **at).read(orjson.dumps(row), lsn)
        self._send(self.key_of(row), value)

    def update(self, row: Row, lsn: int, ordinal: int = 0, *, old: Row | None = None, **at: Any) -> None:
        value = self._template(lsn, **at).update(orjson.dumps(old), orjson.dumps(row), lsn, ordinal)
        self._send(self.key_of(row), value)

    def delete(self, row: Row, lsn: int, ordinal: int = 0, *, sweep: int | None = None, **at: Any) -> None:
        """`sweep`: as the reverse pass of a Redis source has it, which found so many rows gone."""
        key = self.key_of(row)
        headers = [] if sweep is None else [(SWEEP_HEADER, b"%d" % sweep)]
        self._send(key, self._template(lsn, **at).delete(orjson.dumps(row), lsn, ordinal), headers)
        if key is not None:
            self._send(key, None)

    def truncate(self, lsn: int, ordinal: int = 0, **at: Any) -> None:
        self._send(None, self._template(lsn, **at).truncate(lsn, ordinal))

    def floor(self, epoch: int) -> None:
        self._send(None, self._source(epoch).floor(lsn=0, commit_us=_now_us(), now_us=_now_us()))

    def raw(self, key: bytes | None, value: bytes) -> None:
        self._send(key, value)

    def _source(self, epoch: int) -> SourceTemplate:
        record = self.record
        return SourceTemplate(
            version="0.1.0",
            name=self._feeder.source,
            db="db",
            schema=record.schema,
            table=record.table,
            schema_id=record.id,
            epoch=epoch,
        )

    def _template(self, lsn: int, *, epoch: int = 1, snapshot: str = "false") -> RowTemplate:
        return self._source(epoch).transaction(
            commit_us=_now_us(),
            xid=700,
            commit_lsn=lsn,
            previous_commit_lsn=None,
            now_us=_now_us(),
            snapshot=snapshot,
        )

    def _send(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        record = self.topic, partition_for(key, self.partitions), key, value, list(headers)
        self._feeder.pending.append(record)


class Feeder:
    """Publishes as capture does: one Kafka transaction a flush, schema records first."""

    def __init__(self, brokers: str, name: str, source: str = "") -> None:
        self.brokers = brokers
        self.name = name
        self.source = source or f"{name}_src"
        self.pending: list[Pending] = []
        self.ends: dict[tuple[str, int], int] = {}  # by topic and partition, behind what was published
        self._tables: list[Table] = []
        self._known: set[str] = set()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=brokers, transactional_id=f"{name}-feeder", acks="all", linger_ms=5
        )
        self._admin = AIOKafkaAdminClient(bootstrap_servers=brokers)

    async def __aenter__(self) -> Self:
        await self._admin.start()
        await self._producer.start()
        await self.make_topic(schemas_topic(self.name), 1, {"cleanup.policy": "compact"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        await self._admin.close()

    async def make_topic(self, topic: str, partitions: int, config: dict[str, str] | None = None) -> None:
        made = NewTopic(topic, partitions, 1, topic_configs=config or {})
        await self._admin.create_topics([made])

    async def delete_topic(self, topic: str) -> None:
        self.ends = {place: end for place, end in self.ends.items() if place[0] != topic}
        await self._admin.delete_topics([topic])

    async def make_topic_again(
        self, topic: str, partitions: int, config: dict[str, str] | None = None
    ) -> None:
        """As soon as the deleted one is gone."""
        deadline = time.monotonic() + WAIT_S
        while True:
            made = NewTopic(topic, partitions, 1, topic_configs=config or {})
            [(_, code, *_)] = (await self._admin.create_topics([made])).topic_errors
            if code == 0:
                return
            assert time.monotonic() < deadline
            await asyncio.sleep(POLL_S)

    async def delete_records(self, topic: str, before: dict[int, int]) -> None:
        from aiokafka import TopicPartition
        from aiokafka.admin import RecordsToDelete

        await self._admin.delete_records(
            {TopicPartition(topic, p): RecordsToDelete(before_offset=at) for p, at in before.items()}
        )

    async def table(self, name: str, columns: Sequence[ColumnSpec], *args: Any, **more: Any) -> Table:
        table = Table(self, name, columns, *args, **more)
        if table.topic not in {known.topic for known in self._tables}:
            await self.make_topic(table.topic, table.partitions)
        self._tables.append(table)
        return table

    async def flush(self) -> None:
        """Publish what was appended, in one transaction."""
        pending, self.pending = self.pending, []
        async with self._producer.transaction():
            for table in self._tables:
                if table.record.id not in self._known:
                    self._known.add(table.record.id)
                    key, value = table.record.dump_key(), table.record.dump()
                    await self._producer.send_and_wait(schemas_topic(self.name), value, key=key, partition=0)
            sent = [
                await self._producer.send(topic, value, key=key, partition=partition, headers=headers)
                for topic, partition, key, value, headers in pending
            ]
            for place in await asyncio.gather(*sent):
                self.ends[place.topic, place.partition] = place.offset + 1


def config_of(
    feeder: Feeder,
    target_url: str,
    *,
    flows: dict[str, str] | None = None,
    batch: str = "{}",
    dead_letters: str = "{}",
) -> Config:
    """`flows`: name -> pattern of tables; all to schema `mirror`."""
    text = config_text(feeder, target_url, flows=flows, batch=batch, dead_letters=dead_letters)
    return parse(text, Path("tailrace.yaml"), environ={})


def config_text(
    feeder: Feeder,
    target_url: str,
    *,
    flows: dict[str, str] | None = None,
    batch: str = "{}",
    dead_letters: str = "{}",
) -> str:
    wanted = flows or {"mirror": "public.*"}
    lines = "\n".join(
        f'  {name}: {{from: "{feeder.source}.{pattern}", to: copy.mirror}}'
        for name, pattern in wanted.items()
    )
    return f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets:
  copy: {{kind: postgres, url: "{target_url}", batch: {batch}, dead_letters: {dead_letters}}}
flows:
{lines}
"""


class Inside:
    """A long-running process inside the test's own. `what`: its name, for messages."""

    what: ClassVar[str]

    def __init__(self, config: Config, status: StatusWriter, task: asyncio.Task[None], stop: asyncio.Event):
        self.config = config
        self.status = status
        self.task = task
        self._stop = stop

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(asyncio.shield(self.task), WAIT_S)

    async def fails(self) -> BaseException:
        """The error that it ends with."""
        await asyncio.wait([self.task], timeout=WAIT_S)
        assert self.task.done(), f"still running: {self.status.record}"
        error = self.task.exception()
        assert error is not None
        return error

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                if self.task.done():
                    self.task.result()
                    raise AssertionError(f"{self.what} has ended before {what}")
                await asyncio.sleep(POLL_S)


class Running(Inside):
    """Apply."""

    what = "apply"

    def flow(self, name: str = "mirror") -> dict[str, Any]:
        detail: dict[str, Any] = self.status.record.detail.get("flows", {}).get(name, {})
        return detail

    async def rows(self, url: str, query: str, expected: list[tuple[Any, ...]]) -> None:
        """Wait until the target gives these rows."""
        found: list[tuple[Any, ...]] | str = []
        deadline = time.monotonic() + WAIT_S
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while time.monotonic() < deadline:
                if self.task.done():
                    self.task.result()
                try:
                    found = await (await connection.execute(query)).fetchall()
                except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
                    found = str(error)
                if found == expected:
                    return
                await asyncio.sleep(POLL_S)
        raise AssertionError(f"{found} is not {expected}; {self.status.record}")

    async def settled(self, feeder: Feeder) -> None:
        """Every record there is has been applied. A report's lag alone does not say so: readers of committed
        records may learn of the last ones after their commit."""
        await self.until(lambda: self.status.record.state == "streaming", "streaming")
        seen = self.status.record.detail.get("flows")
        await self.until(lambda: self.status.record.detail.get("flows") is not seen, "a report")
        await self.until(
            lambda: all(
                f["partitions"]
                and not f["lag_records"]
                and all(
                    p["offset"] >= feeder.ends.get((p["topic"], p["partition"]), 0) for p in f["partitions"]
                )
                for f in self.status.record.detail["flows"].values()
            ),
            "no lag",
        )


@asynccontextmanager
async def applying(config: Config, *, target: str = "copy") -> AsyncIterator[Running]:
    status = StatusWriter(
        config.kafka.brokers, config.kafka.security, config.name, kind="apply", part_name=target
    )
    stop = asyncio.Event()
    task = asyncio.create_task(run_apply(config, target, stop=stop, status=status), name="apply")
    running = Running(config, status, task, stop)
    try:
        yield running
    finally:
        stop.set()
        await asyncio.wait([task], timeout=12)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def _now_us() -> int:
    return time.time_ns() // 1000
