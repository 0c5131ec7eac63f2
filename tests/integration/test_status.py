"""Heartbeats on a real Kafka: written, read, missed, ended, and a writer that survives Kafka's absence."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consumers.cli import app
from streamer import status as heartbeat
from streamer.changes.topics import status_topic
from streamer.cli import run_command
from streamer.errors import EXIT_FINDING, FatalError, KafkaUnavailable
from streamer.members import client_id
from streamer.sandbox import KafkaServer
from streamer.status import State, StatusReader, StatusRecord, StatusWriter, read_status

FAST_S = 0.15


def writer(brokers: str, name: str, part_name: str = "shop", *, kind: str = "capture") -> StatusWriter:
    return StatusWriter(brokers, None, name, kind=kind, part_name=part_name, interval_s=FAST_S)


async def records_when(reader: StatusReader, wanted: int = 1) -> list[StatusRecord]:
    """Polls until so many instances are there."""
    async with asyncio.timeout(60):
        while True:
            await reader.poll()
            if len(reader.records()) >= wanted:
                return reader.records()
            await asyncio.sleep(0.02)


async def state_when(reader: StatusReader, state: str, part: str = "capture:shop") -> StatusRecord:
    async with asyncio.timeout(60):
        while True:
            await reader.poll()
            for record in reader.records():
                if record.state == state and record.part == part:
                    return record
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the writer's memory is looked at from outside
            await asyncio.sleep(0.02)


async def put(brokers: str, topic: str, key: bytes, value: bytes | None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=brokers, enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, key=key, partition=0)
    finally:
        await producer.stop()


async def test_a_kafka_that_is_away_is_tried_at_intervals_however_much_there_is_to_say(
    kafka_name: str,
) -> None:
    tries = 0

    async def refuse(_: asyncio.StreamReader, peer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        peer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with writer(f"{host}:{port}", kafka_name) as status:
            await until(lambda: bool(status.trouble))
            at_first, began = tries, time.monotonic()
            status.update(state=State.STREAMING)
            await until(lambda: time.monotonic() - began > heartbeat.RETRY_S[0] / 2)
            assert tries <= at_first + 1


async def test_nothing_is_known_before_the_first_process(kafka: str, kafka_name: str) -> None:
    assert await read_status(kafka, None, kafka_name) == []


async def test_a_record_arrives_with_state_reason_and_detail(kafka: str, kafka_name: str) -> None:
    async with (
        writer(kafka, kafka_name) as status,
        StatusReader(kafka, None, status_topic(kafka_name)) as reader,
    ):
        status.update(state=State.WAITING, reason="source away", detail={"lsn": 12, "slot": {"wal_bytes": 5}})
        record = await state_when(reader, State.WAITING)
        assert (record.part, record.kind, record.name) == ("capture:shop", "capture", "shop")
        assert record.reason == "source away"
        assert (record.detail["lsn"], record.detail["slot"]) == (12, {"wal_bytes": 5})
        since_us = record.since_us

        status.update(detail={"lsn": 13, "published": 40})
        status.update(state=State.STREAMING)
        record = await state_when(reader, State.STREAMING)
        assert record.reason == ""
        assert record.since_us > since_us
        assert (record.detail["lsn"], record.detail["slot"]) == (13, {"wal_bytes": 5})
        assert record.detail["rate"] > 0, "reckoned from the heartbeats before"
        assert not record.silent(heartbeat.now_us())


async def test_the_topic_is_compacted_and_bounded(kafka: str, kafka_name: str) -> None:
    topic = status_topic(kafka_name)
    async with writer(kafka, kafka_name), StatusReader(kafka, None, topic) as reader:
        await records_when(reader)
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    try:
        [answer] = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        settings = {entry[0]: entry[1] for entry in answer.resources[0][4]}
        assert "compact" in settings["cleanup.policy"]
        assert settings["message.timestamp.type"] == "LogAppendTime"
    finally:
        await client.close()


async def test_close_says_stopped_and_an_error_stays(kafka: str, kafka_name: str) -> None:
    well, ill = writer(kafka, kafka_name), writer(kafka, kafka_name, "crm")
    async with well, ill:
        well.update(state=State.STREAMING)
        ill.update(state=State.ERROR, reason="slot gone\n  -> tailrace reset crm")
    by_part = {record.part: record for record in await read_status(kafka, None, kafka_name)}
    assert by_part["capture:shop"].state == State.STOPPED
    assert by_part["capture:crm"].state == State.ERROR
    assert by_part["capture:crm"].reason.endswith("tailrace reset crm")
    assert all(record.ended for record in by_part.values())


async def test_a_killed_process_is_silent_and_a_wrong_clock_is_not(kafka: str, kafka_name: str) -> None:
    topic = status_topic(kafka_name)
    async with writer(kafka, kafka_name) as status, StatusReader(kafka, None, topic) as reader:
        [live] = await records_when(reader)
        killed = replace(live, instance="elsewhere-1", pid=1, host="elsewhere")
        await put(kafka, topic, killed.key(), killed.dump())
        await records_when(reader, 2)
        # As a reader sees it whose clock is a minute ahead of Kafka's.
        for key, record in list(reader._latest.items()):
            reader._latest[key] = replace(record, seen_us=record.seen_us - 60_000_000)
        assert all(record.silent(heartbeat.now_us()) for record in reader.records())
        await reader.prove_silence()
        silent = {record.instance: record.silent(heartbeat.now_us()) for record in reader.records()}
        assert silent == {status.record.instance: False, "elsewhere-1": True}


async def test_who_begins_says_which_of_its_part_were_killed_here(kafka: str, kafka_name: str) -> None:
    """And not of one that is frozen."""
    topic = status_topic(kafka_name)
    killed, frozen = sleeps = [await asyncio.create_subprocess_exec("sleep", "600") for _ in range(2)]
    try:
        async with writer(kafka, kafka_name, "crm") as first:
            for sleep in sleeps:
                process = client_id("capture", sleep.pid)
                other = replace(
                    first.record,
                    part="capture:shop",
                    name="shop",
                    instance=f"x-{sleep.pid}",
                    process=process,
                )
                await put(kafka, topic, other.key(), other.dump())
        frozen.send_signal(signal.SIGSTOP)
        killed.kill()
        await killed.wait()
        async with writer(kafka, kafka_name), StatusReader(kafka, None, topic) as reader:
            records = {record.instance: record for record in await records_when(reader, 4)}
        assert records[f"x-{killed.pid}"].ended
        assert not records[f"x-{frozen.pid}"].ended
    finally:
        for sleep in sleeps:
            with contextlib.suppress(ProcessLookupError):
                sleep.kill()
            await sleep.wait()


async def test_who_reads_on_needs_no_right_clock(
    kafka: str, kafka_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last poll did not see is of now, without a wait for the next heartbeat."""
    ahead_us = 60_000_000
    clock = heartbeat.now_us
    async with (
        writer(kafka, kafka_name) as status,
        StatusReader(kafka, None, status_topic(kafka_name)) as reader,
    ):
        monkeypatch.setattr(heartbeat, "now_us", lambda: clock() + ahead_us)
        [first] = await records_when(reader)
        sent = status.sent

        async def heard() -> bool:
            await reader.poll()
            return reader.records()[0].at_us > first.at_us

        while not await heard():
            await until(lambda: status.sent > sent)
        assert not reader.records()[0].silent(heartbeat.now_us())


async def test_a_deleted_topic_is_made_again(
    kafka: str, kafka_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SEND_DEADLINE_S", 1.0)
    topic = status_topic(kafka_name)
    async with writer(kafka, kafka_name) as status:
        async with StatusReader(kafka, None, topic) as reader:
            await records_when(reader)
        client = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await client.start()
        try:
            await client.delete_topics([topic])
        finally:
            await client.close()
        await until(lambda: bool(status.trouble))
        await until(lambda: not status.trouble)
        assert len(await read_status(kafka, None, kafka_name)) == 1


@pytest.mark.thorough
async def test_kafka_away_at_start_and_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka comes late, dies and comes back: records are dropped, then arrive; nothing is raised."""
    monkeypatch.setattr(heartbeat, "SEND_DEADLINE_S", 1.0)
    server = KafkaServer(tmp_path / "kafka", keep=False)
    try:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.kill)
        async with writer(server.bootstrap, "away") as status:
            await until(lambda: bool(status.trouble))
            with pytest.raises(KafkaUnavailable):
                await read_status(server.bootstrap, None, "away")
            await asyncio.to_thread(server.start)
            async with StatusReader(server.bootstrap, None, status_topic("away")) as reader:
                await records_when(reader)
            await asyncio.to_thread(server.kill)
            await until(lambda: bool(status.trouble))
            status.update(state=State.WAITING, reason="Kafka is away")
            await asyncio.to_thread(server.start)
            async with StatusReader(server.bootstrap, None, status_topic("away")) as reader:
                record = await state_when(reader, State.WAITING)
            assert record.reason == "Kafka is away"
            await asyncio.to_thread(server.kill)
            began = time.monotonic()
        assert time.monotonic() - began < heartbeat.CLOSE_DEADLINE_S + 3, "close() waits for a dead Kafka"
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert tasks == [], "a dropped producer leaves tasks behind"
    finally:
        await asyncio.to_thread(server.close)


async def test_what_ended_long_ago_is_buried(kafka: str, kafka_name: str) -> None:
    """But for the last of its part, which says how that one ended."""
    topic = status_topic(kafka_name)
    async with writer(kafka, kafka_name), StatusReader(kafka, None, topic) as reader:
        [record] = await records_when(reader)
    older = replace(record, instance="long-ago", started_us=record.started_us - 1, ended=True)
    await put(kafka, topic, older.key(), older.dump())
    later_us = heartbeat.now_us() + int(heartbeat.FORGET_AFTER_S * 1e6) + 60_000_000
    successor = StatusWriter(
        kafka, None, kafka_name, kind="capture", part_name="crm", interval_s=FAST_S, clock_us=lambda: later_us
    )
    async with successor, StatusReader(kafka, None, topic) as reader:
        await state_when(reader, State.STARTING, part="capture:crm")
        instances = {r.part: r.instance for r in reader.records()}
        assert len(reader.records()) == 2
    assert instances == {"capture:shop": record.instance, "capture:crm": record.instance}


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(FatalError, match="format 2"):
        StatusRecord.load(orjson.dumps({"format": 2}))


def test_what_is_no_status_record_is_refused() -> None:
    for value in (b"", b"[]", b"{", b'{"format":1}', b"null"):
        with pytest.raises(FatalError, match="cannot be read"):
            StatusRecord.load(value)


def test_a_detail_of_thousands_of_tables_is_shortened() -> None:
    tables = {f"public.t{n}": {"captured": n} for n in range(30_000)}
    flows = {"mirror": {"applied": 5, "tables": tables, "latency_ms": {"p50": 3.0}}}
    detail = {"published": 7, "tables": tables, "flows": flows}
    base = StatusWriter("localhost:1", None, "x", kind="capture", part_name="shop").record
    value = replace(base, detail=detail).dump()
    assert len(value) < heartbeat.DETAIL_BYTES_LIMIT
    assert StatusRecord.load(value).detail == {
        "published": 7,
        "flows": {"mirror": {"applied": 5, "latency_ms": {"p50": 3.0}}},
        "shortened": True,
    }


def test_the_commands_on_a_pipeline_that_does_not_run(
    kafka: str, kafka_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(
        f"""
name: {kafka_name}
kafka: {{brokers: "{kafka}"}}
sources:
  shop: {{kind: postgres, url: "postgresql://u:hunter2@h/db", tables: {{"public.*": {{}}}}}}
targets:
  warehouse: {{kind: postgres, url: "postgresql://u:hunter2@h/db"}}
flows:
  mirror: {{from: "shop.public.*", to: warehouse.mirror}}
"""
    )
    for command in ("status", "lag"):
        assert run_command(app, [command, "-c", str(path)]) == EXIT_FINDING
        assert "has not run yet" in capsys.readouterr().out
        assert run_command(app, [command, "-c", str(path), "--json"]) == EXIT_FINDING
        captured = capsys.readouterr()
        found = orjson.loads(captured.out)
        assert (found["format"], found["ok"], found["name"]) == (1, False, kafka_name)
        assert [flow["state"] for flow in found["flows"]] == ["UNKNOWN"]
        assert "hunter2" not in captured.out + captured.err
