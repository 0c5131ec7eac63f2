"""Events and messages in SQLite and Postgres, to receivers that take, refuse and hang."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from consumers.alerts import sender as sending
from consumers.alerts import webhook
from consumers.alerts.sender import Sender
from consumers.cli import app
from consumers.control.database import Database
from consumers.control.feed import CLAIM_US, Feed, Wrong
from consumers.control.lease import Lease, LeaseLost
from streamer.cli import run_command
from streamer.config import Config
from streamer.status import now_us
from tests.harness.control import control_config
from tests.harness.receiver import HANG, receiving

STALLED = Wrong("stalled", "flow mirror", "nothing moves")
HELD = Wrong("held", "flow mirror", "it waits")
SECRET = "s3cret-key"

Make = Callable[[str], Config]


@pytest.fixture
def make(tmp_path: Path, control_url: str) -> Make:
    return maker(tmp_path, control_url)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """With waits that a test can bear."""
    monkeypatch.setattr(sending, "POLL_S", 0.02)
    monkeypatch.setattr(webhook, "RETRY_S", (0.05, 0.05))
    return maker(tmp_path, "sqlite:///control.db")


def maker(folder: Path, url: str) -> Make:
    return lambda alerts: control_config(folder, f"alerts: {{{alerts}}}\n", url=url)


def feed_of(config: Config) -> Feed:
    feed = Feed(Database(config))
    feed.open()
    return feed


def rules(to: str, repeat: str = "1h") -> str:
    return f"rules: [{{when: [stalled], to: [{to}], repeat: {repeat}}}]"


@asynccontextmanager
async def sent_by(*configs: Config, is_watching: bool = True) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for config in configs:
            tasks.create_task(Sender(config, feed_of(config), is_watching=lambda: is_watching).run(stop))
        try:
            yield
        finally:
            stop.set()


# The feed


def test_what_is_wrong_is_one_event_until_it_is_over(make: Make) -> None:
    feed = feed_of(make(""))
    begun, over = feed.note([STALLED, HELD], "one", 1)
    assert ([event.rule for event in begun], over) == (["stalled", "held"], [])
    assert feed.note([Wrong("stalled", "flow mirror", "longer"), HELD], "other", 2) == ([], [])
    begun, over = feed.note([HELD], "other", 3)
    assert (begun, [event.text for event in over]) == ([], ["longer"])
    (again,), _ = feed.note([STALLED, HELD], "other", 4)
    assert [(event.rule, event.resolved_us) for event in feed.last()] == [
        ("stalled", None),
        ("held", None),
        ("stalled", 3),
    ]
    assert {event.event for event in feed.last(open_only=True)} == {again.event, again.event - 1}


def test_who_has_lost_the_lease_writes_nothing(make: Make) -> None:
    config = make("")
    database, feed, now_s = Database(config), feed_of(config), 0.0
    one, other = (Lease(database, "watch", name, clock_s=lambda: now_s) for name in ("one", "other"))
    one.open()
    assert one.beat()
    feed.note([HELD], "one", 1, one)
    assert not other.beat()
    now_s = 60.0
    assert other.beat()
    with pytest.raises(LeaseLost):
        feed.note([STALLED], "one", 2, one)
    assert [event.rule for event in feed.last(open_only=True)] == ["held"]
    assert feed.note([HELD], "one", 2, one) == ([], []), "there is nothing to write"


def test_a_delivery_is_taken_by_one_and_by_another_when_that_is_gone(make: Make) -> None:
    config = make("")
    one, other = feed_of(config), feed_of(config)
    (event,), _ = one.note([STALLED], "one", 0)
    for feed in (one, other):
        feed.owe([(event.event, "ops", "open", 0), (event.event, "ops", "repeat", 1)], 10)
    one.owe([(event.event, "ops", "resolved", 0)], 10)
    assert one.take({"ops": 5, "log": 5}, 9) == []
    (first,) = one.take({"ops": 5, "log": 5}, 10)
    assert (first.kind, first.tries) == ("open", 1)
    assert other.take({"ops": 5}, 11) == []
    (first,) = other.take({"ops": 5}, 11 + CLAIM_US)
    assert (first.kind, first.tries) == ("open", 2)
    other.failed(first, "no answer", 30 + CLAIM_US, 20 + CLAIM_US)
    assert other.problems()[0]["problem"] == "no answer"
    assert one.take({"ops": 5}, 29 + CLAIM_US) == [], "the repeat waits for what comes before it"
    (first,) = one.take({"ops": 5}, 30 + CLAIM_US)
    one.sent(first, 31 + CLAIM_US)
    assert one.problems() == []
    (repeat,) = one.take({"ops": 5}, 32 + CLAIM_US)
    assert repeat.kind == "repeat"
    one.failed(repeat, "500", None, 33 + CLAIM_US)
    (resolved,) = one.take({"ops": 5}, 34 + CLAIM_US)
    assert resolved.kind == "resolved"


# Messages


async def test_signed_messages_of_the_beginning_and_the_end_come_once_from_two_processes(quick: Make) -> None:
    async with receiving(500) as ops:
        config = quick(f"channels: {{ops: {{webhook: '{ops.url}', secret: {SECRET}}}}}, {rules('ops')}")
        feed = feed_of(config)
        feed.note([STALLED, HELD], "one", now_us())
        async with sent_by(config, config):
            await ops.got(2)
            feed.note([], "one", now_us())
            await ops.got(3)
        assert [(r.json["kind"], r.status) for r in ops.requests] == [
            ("open", 500),
            ("open", 200),
            ("resolved", 200),
        ]
        first, _, last = ops.requests
        assert first.body == ops.requests[1].body
        wanted = {"format": 1, "name": "acme", "rule": "stalled", "subject": "flow mirror", "number": 0}
        assert {key: first.json[key] for key in wanted} == wanted
        assert (first.json["text"], first.json["resolved_us"]) == ("nothing moves", None)
        assert last.json["event"] == first.json["event"]
        assert last.json["resolved_us"] > last.json["since_us"]
        sent = dict(part.split("=") for part in first.headers["tailrace-signature"].split(","))
        signed = hmac.new(SECRET.encode(), f"{sent['t']}.".encode() + first.body, "sha256").hexdigest()
        assert sent["v1"] == signed


async def test_one_that_hangs_delays_no_other_and_one_that_refuses_is_given_up(
    quick: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 600.0)
    async with receiving(*[HANG] * 50) as hung, receiving(500, 302, 500) as bad, receiving() as good:
        channels = {"hung": hung.url, "bad": bad.url, "good": good.url}
        text = ", ".join(f"{name}: {{webhook: '{url}'}}" for name, url in channels.items())
        config = quick(f"channels: {{{text}}}, {rules('hung, bad, good')}")
        feed = feed_of(config)
        feed.note([Wrong("stalled", f"flow {number}", "x") for number in range(30)], "one", now_us())
        async with sent_by(config):
            await good.got(30)
            await bad.got(33)
            await hung.got(sending.AT_ONCE)
            assert len(hung.requests) == sending.AT_ONCE
        assert not any("tailrace-signature" in request.headers for request in good.requests)
        assert all("/other" not in request.line for request in bad.requests), "no redirect is followed"
    assert "hunter2" not in caplog.text
    assert "the receiver answers 500" in str([vars(r).get("fields") for r in caplog.records])


async def test_what_never_arrives_is_given_up_and_told(
    quick: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    async with receiving(*[500] * 9) as ops:
        config = quick(f"channels: {{ops: {{webhook: '{ops.url}'}}}}, {rules('ops')}")
        feed = feed_of(config)
        feed.note([STALLED], "one", now_us())
        async with sent_by(config):
            await ops.got(3)
            async with asyncio.timeout(60):
                while feed.problems()[0]["done_us"] is None:  # noqa: ASYNC110 - another thread writes it
                    await asyncio.sleep(0.02)
        assert len(ops.requests) == 3
    code, out = await command(capfd, config, "alerts")
    assert code == 1
    assert "OPEN" in out
    assert "did not reach ops: the receiver answers 500 (3 tries, given up)" in out


async def test_it_is_repeated_while_it_is_open(quick: Make) -> None:
    async with receiving() as ops:
        config = quick(
            f"channels: {{ops: {{webhook: '{ops.url}'}}, quiet: {{}}}}, {rules('ops, quiet', '100ms')}"
        )
        feed = feed_of(config)
        feed.note([STALLED], "one", now_us())
        async with sent_by(config):
            await ops.got(3)
        assert [(r.json["kind"], r.json["number"]) for r in ops.requests[:3]] == [
            ("open", 0),
            ("repeat", 1),
            ("repeat", 2),
        ]


async def test_the_ping_outwards_stops_with_the_watch(quick: Make) -> None:
    async with receiving(500) as outside:
        config = quick(f"dead_man: {{ping: '{outside.url}', every: 50ms}}")
        async with sent_by(config):
            await outside.got(3)
        assert {request.line.split()[0] for request in outside.requests} == {"GET"}
        count = len(outside.requests)
        async with sent_by(config, is_watching=False), receiving() as other:
            beside = quick(f"channels: {{ops: {{webhook: '{other.url}'}}}}, {rules('ops')}")
            feed_of(beside).note([STALLED], "one", now_us())
            async with sent_by(beside):
                await other.got(1)
        assert len(outside.requests) == count


# The command


async def command(capfd: pytest.CaptureFixture[str], config: Config, *words: str) -> tuple[int, str]:
    code = await asyncio.to_thread(run_command, app, [*words, "-c", str(config.path)])
    return code, "".join(capfd.readouterr())


async def test_channels_are_tested(
    quick: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as good, receiving(HANG) as hung:
        config = quick(
            f"channels: {{ops: {{webhook: '{good.url}', secret: {SECRET}}}, hung: {{webhook: '{hung.url}'}},"
            " quiet: {}, odd: {webhook: 'ops.example'}, away: {webhook: 'http://127.0.0.1:9/'}}"
        )
        code, out = await command(capfd, config, "alerts", "test", "ops")
        assert (code, out.strip()) == (0, "ops (webhook): reached")
        assert good.requests[0].json["kind"] == "test"
        assert good.requests[0].headers["tailrace-signature"].startswith("t=")
        monkeypatch.setattr(webhook, "TIMEOUT_S", 1.5)
        code, out = await command(capfd, config, "alerts", "test", "--json")
    assert code == 1
    told, _ = json.JSONDecoder().raw_decode(out)  # then the log channel's line
    found = {each["channel"]: each["problem"] for each in told["channels"]}
    assert found.pop("away").startswith("ConnectError")
    assert found == {
        "ops": "",
        "quiet": "",
        "hung": "no answer within 1.5 s",
        "odd": "it is no URL of http or https",
    }
    code, out = await command(capfd, config, "alerts", "test", "opps")
    assert (code, "did you mean 'ops'" in out, "hunter2" in out) == (64, True, False)


@pytest.mark.parametrize(("columns", "lines"), [("80", 2), ("200", 1)])
async def test_what_is_wrong_has_room_in_a_narrow_terminal(
    quick: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, lines: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    config = quick("")
    feed = feed_of(config)
    feed.note([Wrong("slot_at_risk", "source shop, wal_stop", "its disk fills: look [why]")], "one", now_us())
    _, out = await command(capfd, config, "alerts")
    drawn = [line.strip() for line in out.splitlines() if "slot_at_risk" in line or "[why]" in line]
    assert len(drawn) == lines, out
    assert drawn[0].endswith("its disk fills: look [why]" if lines == 1 else "source shop, wal_stop:")
    assert drawn[-1].endswith("its disk fills: look [why]")


async def test_the_feed_is_listed_open_first(quick: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = quick("")
    code, out = await command(capfd, config, "alerts")
    assert (code, "nothing is wrong" in out, "nobody is told" in out) == (0, True, True)
    feed = feed_of(config)
    feed.note([STALLED, HELD], "one", 1_000_000)
    feed.note([STALLED], "one", 2_000_000)
    code, out = await command(capfd, config, "alerts", "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["open"]) == (1, 1)
    assert [(event["rule"], event["resolved_us"]) for event in found["events"]] == [
        ("stalled", None),
        ("held", 2_000_000),
    ]
