"""Watchers on real heartbeats: one tells, another takes its place, and a frozen scheduler is seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.alerts.sender import Sender
from consumers.commands import run as run_command
from consumers.commands.run import keep_watch
from consumers.control.database import Database
from consumers.control.feed import Event, Feed
from consumers.demo.verdict import TableName
from consumers.schedule import watch as watching
from consumers.schedule import watchdog
from consumers.schedule.watch import Watch
from streamer.config import Config, load
from streamer.sandbox import KafkaServer
from streamer.status import State, StatusWriter
from tests.harness.pipeline import Pipeline, execute
from tests.harness.receiver import Receiver, Request, receiving

WAIT_S = 60.0
PROMISED_S = 60.0  # from the trouble to the alarm
FROZEN_S = 45.0
PROCESSOR_S = 30.0  # of a processor that stands still


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits that a test can bear."""
    monkeypatch.setattr(watching, "LOOK_S", 0.1)
    monkeypatch.setattr(watching, "START_S", 0.5)
    monkeypatch.setattr(watching, "KAFKA_S", 30.0)
    monkeypatch.setattr("consumers.alerts.sender.POLL_S", 0.1)
    monkeypatch.setattr(watchdog, "HOLD_S", dict.fromkeys(watchdog.HOLD_S, 0.2))
    monkeypatch.setattr(watchdog, "SCHEDULER_HOLD_S", 0.2)
    monkeypatch.setattr(watchdog, "CLEAR_S", 0.2)
    monkeypatch.setattr(watchdog, "START_S", 0.5)


def config_of(folder: Path, name: str, brokers: str, more: str) -> Config:
    url = "postgresql://127.0.0.1/shop"
    path = folder / "tailrace.yaml"
    path.write_text(
        f"name: {name}\nkafka: {{brokers: '{brokers}'}}\n{more}"
        f"sources: {{shop: {{kind: postgres, url: '{url}', tables: {{'*.*': {{}}}}}}}}\n"
        f"targets: {{copy: {{kind: postgres, url: '{url}'}}}}\n"
        "flows: {mirror: {from: 'shop.public.*', to: copy}}\n"
    )
    return load(path)


@contextlib.asynccontextmanager
async def speaking(config: Config, part: str, **detail: Any) -> AsyncIterator[StatusWriter]:
    kind, _, name = part.partition(":")
    writer = StatusWriter(config.kafka.brokers, None, config.name, kind=kind, part_name=name, interval_s=0.2)
    writer.update(state=State.STREAMING, detail=detail)

    async def has_spoken() -> bool:
        return writer.sent > 0

    async with writer:
        await until(has_spoken)
        yield writer


async def until(what: Callable[[], Awaitable[bool]], wait_s: float = WAIT_S) -> None:
    async with asyncio.timeout(wait_s):
        while not await what():  # noqa: ASYNC110 - other processes write it
            await asyncio.sleep(0.05)


class Events:
    def __init__(self, config: Config) -> None:
        self._feed = Feed(Database(config))
        self._feed.open()

    async def all(self) -> list[Event]:
        """The oldest first."""
        return (await asyncio.to_thread(self._feed.last))[::-1]

    async def open(self, subject: str) -> Event:
        return await self._one(subject, is_open=True)

    async def over(self, subject: str) -> Event:
        return await self._one(subject, is_open=False)

    async def _one(self, subject: str, *, is_open: bool) -> Event:
        found: list[Event] = []

        async def there() -> bool:
            found[:] = [
                event
                for event in await self.all()
                if event.subject == subject and (event.resolved_us is None) == is_open
            ]
            return bool(found)

        await until(there)
        return found[-1]


IDLE = {"flows": {"mirror": {"state": "idle", "partitions": [], "lag_records": 0, "rate": 0.0, "parked": 0}}}


async def test_one_of_two_watchers_tells_and_the_other_takes_its_place(
    tmp_path: Path, kafka: str, kafka_name: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part stops, the watcher that told it is gone, and the other sees that the part is back."""
    async with receiving() as ops:
        channels = f"channels: {{ops: {{webhook: '{ops.url}'}}}}, rules: [{{when: [stalled], to: [ops]}}]"
        config = config_of(tmp_path, kafka_name, kafka, f"alerts: {{{channels}}}\n")
        events, stop = Events(config), asyncio.Event()
        async with (
            asyncio.TaskGroup() as tasks,
            speaking(config, "capture:shop", tables={}),
            contextlib.AsyncExitStack() as stack,
        ):
            apply = await stack.enter_async_context(speaking(config, "apply:copy", **IDLE))
            await stack.enter_async_context(speaking(config, f"serve:{kafka_name}", elected=True))
            one, other = Watch(config, holder="one"), Watch(config, holder="other")
            first = tasks.create_task(one.run(stop))
            await until(lambda: _is(one))
            tasks.create_task(other.run(stop))
            apply.update(state=State.ERROR, reason="the table is gone")
            told = await events.open("apply:copy")
            assert (told.rule, told.seen_by, told.text) == ("stalled", "one", "apply:copy: the table is gone")
            assert not other.is_watching
            first.cancel()
            monkeypatch.setattr("consumers.control.lease.SILENT_S", 0.5)
            await until(lambda: _is(other))
            assert (await events.open("apply:copy")).event == told.event
            apply.update(state=State.STREAMING)
            assert (await events.over("apply:copy")).event == told.event
            await until(lambda: _last_is(ops, "resolved"))
            stop.set()
        assert [event.subject for event in await events.all()] == ["apply:copy"]
        kinds = [r.json["kind"] for r in ops.requests]  # what was on its way when its sender went comes again
        assert [kind for kind, _ in groupby(kinds)] == ["open", "resolved"]


async def _last_is(receiver: Receiver, kind: str) -> bool:
    return bool(receiver.requests) and receiver.requests[-1].json["kind"] == kind


async def _is(watch: Watch) -> bool:
    return watch.is_watching


async def test_nobody_runs_the_jobs_and_a_kafka_that_is_away_are_told(
    tmp_path: Path, kafka: str, kafka_name: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = "schedules: {jobs: {tidy: {exec: 'a:b', every: 1h}}}\n"
    config = config_of(tmp_path, kafka_name, kafka, jobs)
    events, stop = Events(config), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        async with speaking(config, "capture:shop", tables={}), speaking(config, "apply:copy", **IDLE):
            tasks.create_task(Watch(config).run(stop))
            told = await events.open("scheduler")
            assert told.rule == "missed_job"
            assert "has not run yet: start it with `tailrace run`, or `tailrace serve`" in told.text
            async with speaking(config, f"serve:{kafka_name}", elected=True):
                await events.over("scheduler")
        stop.set()
    monkeypatch.setattr(watching, "KAFKA_S", 0.5)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Watch(config, brokers=lambda _: "127.0.0.1:9").run(stop))
        assert "no heartbeat can be read" in (await events.open("kafka")).text
        stop.set()


async def test_a_look_that_fails_is_an_event_and_the_ping_stops(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a bug that nobody has foreseen; the next look comes, and all is well again."""
    monkeypatch.setattr(watching, "BLIND_S", 0.5)
    async with receiving() as outside:
        more = (
            f"alerts: {{dead_man: {{ping: '{outside.url}', every: 100ms}}}}\n"
            "schedules: {jobs: {tidy: {exec: 'a:b', every: 1h}}}\n"
        )
        config = config_of(tmp_path, "acme", "127.0.0.1:9", more)
        events, stop = Events(config), asyncio.Event()
        watch = Watch(config, brokers=lambda _: "127.0.0.1:9")

        looks: list[None] = []

        def fails(*_: object) -> None:
            looks.append(None)
            raise OverflowError("date value out of range")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.run(stop))
            await outside.got(2)
            with monkeypatch.context() as broken:
                broken.setattr("consumers.schedule.alarms.of_jobs", fails)
                told = await events.open(watching.WATCHER)
                assert (told.rule, "OverflowError" in told.text) == ("stalled", True)
                await until(lambda: _is_not(watch))
                count = len(outside.requests) + 1  # one may be on its way
                before = len(looks)
                await until(lambda: _holds(looks, before + 5))
                assert len(outside.requests) <= count
            assert (await events.over(watching.WATCHER)).event == told.event
            await outside.got(count + 2)
            stop.set()


async def _is_not(watch: Watch) -> bool:
    return not watch.is_watching


async def _holds(found: list[None], count: int) -> bool:
    return len(found) >= count


async def alarm(receiver: Receiver, pipeline: Pipeline) -> Request:
    """The first message, within what is promised."""
    try:
        return (await receiver.got(1, PROMISED_S))[0]
    except TimeoutError:
        raise AssertionError(f"no alarm within {PROMISED_S:.0f} s\n{pipeline.tails()}") from None


def tell_of_all(pipeline: Pipeline, channel: dict[str, str]) -> None:
    """A job each hour, and a channel that is told of it and of every part."""
    pipeline.config |= {
        "control": {"http": "127.0.0.1:0"},
        "schedules": {"jobs": {"tidy": {"exec": "time:time", "every": "1h"}}},
        "alerts": {
            "channels": {"ops": channel},
            "rules": [{"when": ["missed_job", "stalled"], "to": ["ops"]}],
        },
    }
    pipeline.write_config()


async def test_a_watch_of_run_that_fails_as_nobody_foresaw_begins_again(
    tmp_path: Path, kafka: str, kafka_name: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender raises once: what happens afterwards is told all the same."""
    run, failed = Sender.run, list[Sender]()

    async def fails_once(sender: Sender, stop: asyncio.Event) -> None:
        if not failed:
            failed.append(sender)
            raise RuntimeError("nobody foresaw it")
        await run(sender, stop)

    monkeypatch.setattr(Sender, "run", fails_once)
    monkeypatch.setattr(run_command, "WATCH_AGAIN_S", 0.1)
    config = config_of(tmp_path, kafka_name, kafka, "")
    events, stop = Events(config), asyncio.Event()
    async with speaking(config, "apply:copy", **IDLE) as apply, asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_watch(config, stop))
        apply.update(state=State.ERROR, reason="the table is gone")
        assert (await events.open("apply:copy")).text == "apply:copy: the table is gone"
        stop.set()
    assert failed


@pytest.mark.thorough
async def test_a_frozen_scheduler_is_seen_by_run_within_a_minute(pipeline: Pipeline) -> None:
    async with receiving() as ops:
        tell_of_all(pipeline, {"webhook": ops.url, "secret": "s3cret"})
        run = pipeline.start("run", "--json")
        serve = await pipeline.state("serve", "running")
        events = Events(load(pipeline.config_path))
        os.kill(serve.pid, signal.SIGSTOP)
        frozen_s = time.monotonic()
        try:
            request = await alarm(ops, pipeline)
            took_s = time.monotonic() - frozen_s
            assert (request.json["rule"], request.json["subject"]) == ("missed_job", "scheduler"), (
                request.json
            )
            assert f"serve:{pipeline.name} is silent since" in request.json["text"]
            assert request.headers["tailrace-signature"].startswith("t=")
            told = await events.open("scheduler")
            assert told.seen_by.split(":")[1] == str(run.pid)
            assert took_s < PROMISED_S
            code, out = await pipeline.run("alerts")
            assert (code, "scheduler" in out) == (1, True)
        finally:
            os.kill(serve.pid, signal.SIGCONT)
        async with asyncio.timeout(PROMISED_S):
            while ops.requests[-1].json["kind"] != "resolved":
                await ops.got(len(ops.requests) + 1)
        assert ops.requests[-1].json["event"] == told.event
        assert await run.stop() == 0


@pytest.mark.slow
async def test_a_frozen_kafka_is_one_event_and_no_dead_process(
    pipeline: Pipeline, kafka_server: KafkaServer
) -> None:
    async with receiving() as ops:
        tell_of_all(pipeline, {"webhook": ops.url})
        await execute(pipeline.source_url, "CREATE TABLE orders (id int PRIMARY KEY)")
        pipeline.start("run", "--json")
        await pipeline.state("serve", "running")
        await pipeline.equal()
        await asyncio.sleep(watchdog.START_S)
        assert kafka_server.pid is not None
        os.kill(kafka_server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            os.kill(kafka_server.pid, signal.SIGCONT)
        async with asyncio.timeout(PROMISED_S):
            while not ops.requests or ops.requests[-1].json["kind"] != "resolved":
                await ops.got(len(ops.requests) + 1)
        told = [(r.json["kind"], r.json["subject"]) for r in ops.requests]
        assert told == [("open", "kafka"), ("resolved", "kafka")], [r.json for r in ops.requests]
        assert "no heartbeat can be read" in ops.requests[0].json["text"]


@pytest.mark.thorough
async def test_a_frozen_watcher_that_runs_the_jobs_is_seen_by_another_serve(pipeline: Pipeline) -> None:
    """It held both: another one takes the jobs and the watch, and tells of the frozen process."""
    async with receiving() as ops:
        tell_of_all(pipeline, {"webhook": ops.url})
        for role in ("capture", "apply"):
            await pipeline.state(role, "streaming", child=pipeline.start(role))
        one = pipeline.start("serve")
        await pipeline.state("serve", "running", child=one)
        other = pipeline.start("serve")
        await pipeline.state("serve", "standby", child=other)
        one.popen.send_signal(signal.SIGSTOP)
        try:
            await pipeline.state("serve", "running", child=other, timeout_s=PROMISED_S)
            request = await alarm(ops, pipeline)
            assert request.json["rule"] == "stalled"
            assert request.json["subject"].startswith(f"serve:{pipeline.name} ")
            assert f"-{one.pid}" in request.json["subject"]
            assert "another does its work" in request.json["text"]
        finally:
            one.popen.send_signal(signal.SIGCONT)


@pytest.mark.thorough
async def test_a_stuck_flow_and_a_silent_process_are_events_within_a_minute(pipeline: Pipeline) -> None:
    """A trigger of the target that does not end holds its rows up while more come; then a lock, whose holder
    is named; then the process that applies is frozen."""
    rules = [{"when": ["stalled"], "to": ["log"]}]
    pipeline.config |= {
        "control": {"http": "127.0.0.1:0"},
        "alerts": {"channels": {"log": {}}, "rules": rules},
    }
    pipeline.write_config()
    await execute(
        pipeline.source_url, "CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item VALUES (0)"
    )
    _, apply = await pipeline.start_both()
    pipeline.start("serve")
    events = Events(load(pipeline.config_path))
    await execute(
        pipeline.target_url,
        "CREATE FUNCTION mirror.endless() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END'",
        "CREATE TRIGGER endless BEFORE INSERT ON mirror.item FOR EACH ROW EXECUTE FUNCTION mirror.endless()",
        "ALTER TABLE mirror.item ENABLE ALWAYS TRIGGER endless",
    )
    began_s, number = time.monotonic(), 0
    while not (told := await events.all()):
        assert time.monotonic() - began_s < PROMISED_S
        number += 1
        await execute(pipeline.source_url, f"INSERT INTO item VALUES ({number})")
        await asyncio.sleep(0.5)
    assert [(event.rule, event.subject) for event in told] == [("stalled", "flow mirror")]
    await execute(
        pipeline.target_url,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        "DROP FUNCTION mirror.endless CASCADE",
    )
    assert (await events.over("flow mirror")).event == told[0].event
    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as locked:
        await locked.execute("LOCK TABLE mirror.item")
        await execute(pipeline.source_url, f"INSERT INTO item VALUES ({number + 1})")
        async with asyncio.timeout(PROMISED_S):
            assert "LOCK TABLE mirror.item" in (await events.open("apply:copy")).text
    await events.over("apply:copy")
    apply.popen.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(PROMISED_S):
            assert "is silent since" in (await events.open("apply:copy")).text
    finally:
        apply.popen.send_signal(signal.SIGCONT)
    await events.over("apply:copy")


BLOCKS = """
import time
from consumers.processors import agent

@agent
async def blocks(change):
    if change.key["id"] == 7:
        time.sleep(600)
    return change.after
"""


@pytest.mark.thorough
async def test_a_processor_that_blocks_is_an_event_within_30_s_and_its_status_says_so(
    pipeline: Pipeline,
) -> None:
    """No heartbeat tells of it; `tailrace run` starts it again and again, and each says that it works."""
    (pipeline.config_path.parent / "blocks.py").write_text(BLOCKS)
    topic, out = f"{pipeline.source}.public.item", f"{pipeline.name}_blocks"
    pipeline.config |= {
        "processors": {out: {"agent": "blocks:blocks", "in": [topic], "out": out}},
        "flows": {"mirror": {"from": out, "to": "copy.mirror.item"}},
        "alerts": {"channels": {"log": {}}, "rules": [{"when": ["stalled"], "to": ["log"]}]},
    }
    pipeline.write_config()
    await execute(
        pipeline.source_url, "CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item VALUES (1)"
    )
    run = pipeline.start("run", "--json")
    await pipeline.equal(pairs=[(TableName("public", "item"), TableName("mirror", "item"))])
    events = Events(load(pipeline.config_path))
    began_s = time.monotonic()
    await execute(pipeline.source_url, "INSERT INTO item VALUES (7)")
    while not (told := await events.all()):
        assert time.monotonic() - began_s < PROCESSOR_S
        await asyncio.sleep(0.2)
    assert [(event.rule, event.subject) for event in told] == [("stalled", f"process:{out}")]
    assert "the event loop stood still for 15 s" in told[0].text
    while time.monotonic() - began_s < PROCESSOR_S:  # whatever its processes are doing
        code, shown = await pipeline.run("status")
        assert (code, f"process:{out}" in shown, "start it with" in shown) == (1, True, False), shown
    assert await run.stop() == 0
