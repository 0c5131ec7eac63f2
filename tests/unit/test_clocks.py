"""How far other machines' clocks are off: the estimate from heartbeats, the capture's measure, the report."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.apply import clocks as comparing
from consumers.apply.ages import Mark
from consumers.apply.assemble import Prepared
from consumers.apply.checkpoint import LastRecord, Move, Place
from consumers.apply.clocks import LOOKS, Clocks, Offset, estimate, instance_of
from consumers.apply.epochs import Epochs
from consumers.apply.report import Report
from consumers.targets.base import Batch, Outcome
from streamer.postgres.watch import ServerClock
from streamer.status import State, StatusRecord

KAFKA_US = 1_790_000_000_000_000  # Kafka's clock at the first look
LOOK_US = 3_000_000
S = 1_000_000
MS = 1_000


def beat(
    part: str = "capture:shop",
    *,
    look: int = 0,
    host: str = "there",
    ahead_us: int = 0,
    delay_us: int = 2 * MS,
    server_us: int | None = 0,
    heard_us: int = 0,
    **more: Any,
) -> StatusRecord:
    """A heartbeat that Kafka has at the time of the look, by a host whose clock is so much ahead of it."""
    kind, name = part.split(":")
    seen_us = KAFKA_US + look * LOOK_US + heard_us
    known = {
        "state": State.STREAMING,
        "detail": {"clock_us": server_us} if kind == "capture" else {},
        **more,
    }
    at_us = seen_us - delay_us + ahead_us
    return StatusRecord(
        part, kind, name, f"{host}-1", 1, host, started_us=1, at_us=at_us, seen_us=seen_us, **known
    )


def own(**more: Any) -> StatusRecord:
    return beat("apply:copy", host="here", **more)


OWN = instance_of(own())


def test_nothing_is_known_before_a_capture_has_spoken() -> None:
    assert estimate([], OWN, {}) == {}
    assert estimate([[]], OWN, {}) == {}
    assert estimate([[own()]], OWN, {}) == {}


def test_on_one_machine_with_its_server_nothing_is_corrected() -> None:
    looks = [[own(delay_us=40 * MS), beat(server_us=1_900)]]
    assert estimate(looks, OWN, {}) == {"shop": Offset(0, 0)}


def test_the_servers_clock_counts_above_its_noise() -> None:
    assert estimate([[own(), beat(server_us=-7 * S)]], OWN, {}) == {"shop": Offset(-7 * S, 0)}
    assert estimate([[own(), beat(server_us=3 * MS)]], OWN, {}) == {"shop": Offset(3 * MS, 0)}


def test_hosts_are_compared_by_kafkas_clock() -> None:
    looks = [[own(ahead_us=-10 * S), beat(ahead_us=20 * S, server_us=5 * S)]]
    assert estimate(looks, OWN, {}) == {"shop": Offset(35 * S, 30 * S)}


def test_a_server_and_a_host_that_are_off_the_other_way_cancel_out() -> None:
    looks = [[own(), beat(ahead_us=20 * S, server_us=-20 * S)]]
    assert estimate(looks, OWN, {}) == {"shop": Offset(0, 20 * S)}


def test_delayed_heartbeats_are_no_difference_of_clocks() -> None:
    delays = [(900 * MS, 3 * MS), (5 * MS, 700 * MS), (800 * MS, 2 * MS), (300 * MS, 400 * MS)]
    looks = [
        [own(look=n, delay_us=ours), beat(look=n, delay_us=theirs)] for n, (ours, theirs) in enumerate(delays)
    ]
    assert estimate(looks, OWN, {}) == {"shop": Offset(0, 0)}


def test_without_our_own_heartbeat_the_servers_part_alone_counts() -> None:
    assert estimate([[beat(ahead_us=20 * S, server_us=S)]], OWN, {}) == {"shop": Offset(S, 0)}
    looks = [[beat("apply:copy", host="elsewhere", ahead_us=S), beat(ahead_us=20 * S, server_us=S)]]
    assert estimate(looks, OWN, {}) == {"shop": Offset(S, 0)}, "another process of the target is not us"


def test_a_silent_capture_keeps_what_was_known_of_it() -> None:
    known = {"shop": Offset(S, 0)}
    gone = beat(server_us=9 * S)
    assert estimate([[own(look=1), gone]], OWN, known) == {"shop": Offset(9 * S, 0)}, "3 s is not silent"
    assert estimate([[own(look=2), gone]], OWN, known) == known
    assert estimate([[own(look=2), gone]], OWN, {}) == {}


def test_silence_is_by_kafkas_clock() -> None:
    looks = [[own(ahead_us=-3600 * S), beat(ahead_us=-3600 * S, server_us=S)]]
    assert estimate(looks, OWN, {}) == {"shop": Offset(S, 0)}


def test_a_capture_that_does_not_stream_keeps_what_was_known_of_it() -> None:
    known = {"shop": Offset(S, 0)}
    for odd in (
        beat(server_us=9 * S, state=State.WAITING),
        beat(server_us=9 * S, state=State.SNAPSHOT),
        beat(server_us=9 * S, ended=True),
        beat(server_us=None),
        beat(detail={}),
        beat(detail={"clock_us": "soon"}),
    ):
        assert estimate([[own(), odd]], OWN, known) == known
        assert estimate([[own(), odd]], OWN, {}) == {}


def test_of_two_captures_the_streaming_one_counts() -> None:
    standby = beat(host="spare", ahead_us=60 * S, server_us=None, state=State.STANDBY)
    active = beat(ahead_us=S, server_us=2 * S)
    for records in ([own(), standby, active], [own(), active, standby]):
        assert estimate([records], OWN, {}) == {"shop": Offset(3 * S, S)}


def test_when_a_standby_has_taken_over_it_counts_at_once() -> None:
    killed = beat(server_us=2 * S)
    taker = beat(host="spare", ahead_us=60 * S, server_us=-60 * S, heard_us=S)
    for records in ([own(), taker, killed], [own(), killed, taker]):
        assert estimate([records], OWN, {"shop": Offset(2 * S, 0)}) == {"shop": Offset(0, 60 * S)}


def test_sources_are_apart() -> None:
    looks = [[own(), beat(server_us=S), beat("capture:crm", host="far", ahead_us=-S)]]
    assert estimate(looks, OWN, {"old": Offset(1, 1)}) == {
        "shop": Offset(S, 0),
        "crm": Offset(-S, -S),
        "old": Offset(1, 1),
    }


async def test_without_kafka_it_tries_again_and_what_is_known_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, closed_port: int
) -> None:
    monkeypatch.setattr(comparing, "RETRY_S", 0.01)
    caplog.set_level(logging.DEBUG, logger=comparing.__name__)
    clocks = Clocks(f"127.0.0.1:{closed_port}", None, "acme", {"mirror": "shop", "other": "crm"}, own())
    clocks._look([own(), beat(server_us=S)])
    watch = asyncio.create_task(clocks.watch(), name="clocks")
    async with asyncio.timeout(60):
        while len(caplog.messages) < 3:  # noqa: ASYNC110 - the log is looked at from outside
            await asyncio.sleep(0.01)
    assert not watch.done()
    assert clocks.of("mirror") == Offset(S, 0)
    assert clocks.of("other") is None
    watch.cancel()
    await asyncio.wait([watch])
    assert watch.cancelled()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else takes it, and not listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_the_captures_measure_is_the_middle_of_the_round_trip_and_the_median() -> None:
    clock = ServerClock()
    assert clock.add(asked_us=1000, round_trip_us=400, server_us=6200) == 5000
    for _ in range(LOOKS):
        clock.add(asked_us=1000, round_trip_us=400, server_us=6200)
    for _ in range(2):  # a server that was slow to ask, or slow to answer
        assert clock.add(asked_us=1000, round_trip_us=2 * S, server_us=6200 + 2 * S) == 5000
    for _ in range(3):  # the server's clock was set
        found = clock.add(asked_us=1000, round_trip_us=400, server_us=6200 - S)
    assert found == 5000 - S


def report_of(offset: Offset | None, *, age_us: int, capture_us: int) -> dict[str, Any]:
    """What is said of one event, committed `age_us` ago and captured `capture_us` ago by their own clocks."""
    observed: dict[str, float] = {}

    class Metrics:
        def observe(self, flow: str, stage: str, seconds: float, weight: int = 1) -> None:
            observed[stage] = seconds

    epochs = Epochs({"mirror": "shop"}, lambda flow: None)
    report = Report(["mirror"], Metrics(), lambda flow: offset, epochs)
    now_us = time.time_ns() // 1000
    partition = TopicPartition("shop.public.people", 0)
    move = Move(Place("mirror", *partition), 0, 1, LastRecord(0, 0, 1, 2, 3))
    prepared = Prepared(Batch([], [move], {}, "cluster"), now_us - 10 * MS)
    prepared.times["mirror"] = [(now_us - age_us, now_us - capture_us, 1)]
    prepared.marks[move.place] = [Mark(1, now_us - age_us)]
    report.applied(prepared, Outcome(applied={"mirror": 1}), now_us)
    report.read(prepared)
    report.ended({partition: 5})
    flow: dict[str, Any] = report.detail()["flows"]["mirror"]
    return {**flow, "observed": observed}


def test_latency_and_lag_are_by_our_own_clock() -> None:
    """Committed 60 ms ago by a server 10 s ahead, captured 40 ms ago by a host 4 s behind."""
    skewed = {"age_us": 60 * MS - 10 * S, "capture_us": 40 * MS + 4 * S}
    flow = report_of(Offset(10 * S, -4 * S), **skewed)
    observed = flow["observed"]
    assert {stage: round(seconds, 3) for stage, seconds in observed.items()} == {
        "total": 0.06,
        "capture": 0.02,
        "kafka": 0.03,
        "apply": 0.01,
    }
    assert 55 < flow["latency_ms"]["p50"] < 70
    assert 18 < flow["latency_ms"]["capture_p50"] < 25
    assert 0.06 <= flow["lag_s"] < 5
    assert flow["clock_offset_ms"] == 10_000.0


def test_without_an_offset_times_are_as_they_came_and_never_negative() -> None:
    flow = report_of(None, age_us=-10 * S, capture_us=40 * MS)
    assert flow["clock_offset_ms"] is None
    assert flow["observed"]["total"] == 0
    assert flow["lag_s"] == 0
    assert flow["latency_ms"]["p50"] < 0.1
    late = report_of(Offset(), age_us=7 * S, capture_us=7 * S)
    assert late["clock_offset_ms"] == 0
    assert late["observed"]["total"] == 7
    assert 7 <= late["lag_s"] < 12
