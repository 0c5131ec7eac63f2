"""Latency across machines on a real Kafka: a remote capture's heartbeats correct its events' times."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
import pytest

from consumers.apply import clocks
from streamer.changes.envelope import SourceTemplate
from streamer.config import Config
from streamer.status import State, StatusWriter
from tests.harness.capture import capturing, run
from tests.harness.feeder import Feeder, Table, applying, config_of

SERVER_AHEAD_S = 30  # of the capture's host
HOST_AHEAD_S = -100  # of ours
COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]


def at_us(seconds: float) -> int:
    """So many seconds from now."""
    return time.time_ns() // 1000 + int(seconds * 1e6)


def event(table: Table, source: str, lsn: int) -> None:
    """Committed ten seconds ago, captured five seconds later, by clocks that are off."""
    record, committed_us = table.record, at_us(-10)
    template = SourceTemplate(
        version="0.1.0",
        name=source,
        db="db",
        schema=record.schema,
        table=record.table,
        schema_id=record.id,
        epoch=1,
    ).transaction(
        commit_us=committed_us + (SERVER_AHEAD_S + HOST_AHEAD_S) * 1_000_000,
        xid=700,
        commit_lsn=lsn,
        previous_commit_lsn=None,
        now_us=committed_us + HOST_AHEAD_S * 1_000_000 + 5_000_000,
        snapshot="false",
    )
    row = {"id": lsn, "name": "n", "note": None}
    table.raw(table.key_of(row), template.create(orjson.dumps(row), lsn, 0))


async def test_latency_is_by_one_clock_when_three_machines_differ(
    kafka: str, kafka_name: str, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "LOOK_S", 0.2)
    async with Feeder(kafka, kafka_name) as feeder:
        table = await feeder.table("people", COLUMNS)
        capture = StatusWriter(
            kafka,
            None,
            kafka_name,
            kind="capture",
            part_name=feeder.source,
            clock_us=lambda: at_us(HOST_AHEAD_S),
        )
        async with applying(config_of(feeder, target_database)) as apply, apply.status:
            await apply.until(lambda: bool(apply.flow()), "a report")
            assert apply.flow()["clock_offset_ms"] is None

            capture.update(state=State.STREAMING, detail={"clock_us": int(SERVER_AHEAD_S * 1e6)})
            async with capture:
                expected_ms = (SERVER_AHEAD_S + HOST_AHEAD_S) * 1000
                await apply.until(
                    lambda: abs((apply.flow()["clock_offset_ms"] or 0) - expected_ms) < 1500, "the offset"
                )
                event(table, feeder.source, 100)
                await feeder.flush()
                await apply.until(lambda: apply.flow()["latency_ms"] is not None, "a latency")
                latency = apply.flow()["latency_ms"]
                assert 8_000 < latency["p50"] < 60_000, "uncorrected it is below zero"
                assert 4_500 < latency["capture_p50"] < 5_500, "uncorrected it is below zero"
                assert 3_000 < latency["kafka_p50"] < 60_000, "uncorrected it is 105 s"
            await apply.settled(feeder)
            assert apply.flow()["clock_offset_ms"] is not None, "the capture has ended: the last known stays"
            await apply.stop()


async def test_a_capture_tells_its_servers_clock(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    async with capturing(make_config(database)) as capture:
        await capture.until(lambda: capture.status.record.detail.get("clock_us") is not None)
        assert abs(capture.status.record.detail["clock_us"]) < 1_000_000, "one machine, one clock"
