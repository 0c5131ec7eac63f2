"""Parts of apply that need no server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from consumers.apply.feed import topic_pattern
from consumers.apply.latency import Latency
from consumers.targets.postgres_arrays import encoder_for, plain, quoted
from streamer.config import parse
from streamer.errors import BadRecordError
from streamer.members import client_id, is_dead


@pytest.mark.parametrize(
    "pattern", ["shop.public.*", "shop.*.orders", "shop.public.o?ders", "shop.pub lic.a.b"]
)
def test_the_topic_pattern_is_what_the_flow_matches(pattern: str) -> None:
    text = f"""
name: acme
sources: {{shop: {{kind: postgres, url: "postgresql://h/d", tables: {{"public.*": {{}}}}}}}}
targets: {{copy: {{kind: postgres, url: "postgresql://h/d"}}}}
flows: {{one: {{from: "{pattern}", to: copy.mirror}}}}
"""
    flow = parse(text, Path("t.yaml"), environ={}).flows["one"]
    expression = re.compile(topic_pattern([flow]))
    topics = [
        "shop.public.orders", "shop.public.a.b", "shop.x.orders", "shop.pub_lic.a.b", "shopXpublic.orders",
        "other.public.orders", "shop.public", "shop.pub.x.orders", "acme.__schemas",
    ]  # fmt: skip
    for topic in topics:
        assert bool(expression.match(topic)) == flow.matches(topic), topic


@pytest.mark.parametrize(
    ("column", "literal"),
    [
        ([], "{}"),
        (["a", "b"], '{"a","b"}'),
        (['q"', "b\\", "", "NULL", "{,}"], '{"q\\"","b\\\\","","NULL","{,}"}'),
        (["a", None], '{"a",NULL}'),
    ],
)
def test_literals_of_text(column: list[str | None], literal: str) -> None:
    assert quoted(column) == literal


def test_literals_of_numbers() -> None:
    assert plain([1, None, -5]) == "{1,NULL,-5}"
    assert encoder_for("bool")([True, False, None]) == "{t,f,NULL}"
    assert encoder_for("timestamp")(["2026-11-22T05:00:00Z", "0044-03-15T00:00:00Z BC"]) == (
        '{"2026-11-22 05:00:00","0044-03-15 00:00:00 BC"}'
    )


@pytest.mark.parametrize(("kind", "value"), [("number", "1"), ("text", 1), ("bool", 1), ("text", "a\0b")])
def test_values_of_another_shape_are_bad_records(kind: str, value: object) -> None:
    with pytest.raises(BadRecordError):
        encoder_for(kind)([value, value])


def test_only_an_ended_process_of_this_host_is_dead() -> None:
    assert not is_dead(client_id("apply"))
    code = "from streamer.members import client_id; print(client_id('apply'))"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert is_dead(ended)
    assert not is_dead(ended.replace("tailrace-apply/", "tailrace-apply/elsewhere."))
    assert is_dead(client_id("apply") + "0")  # the pid is another process's by now
    assert not is_dead("aiokafka-0.14.0")
    assert str(os.getpid()) in client_id("apply")


def test_latency_is_split_and_forgotten() -> None:
    latency = Latency()
    samples = [(1_000_000, 1_002_000, 50), (1_000_000, 1_090_000, 1)]
    latency.add(samples, received_us=1_005_000, committed_us=1_010_000, now_s=5.0)
    found = latency.snapshot(6.0)
    assert found is not None
    assert 9 < found["p50"] < 12
    assert 1.8 < found["capture_p50"] < 2.3
    assert 2.7 < found["kafka_p50"] < 3.4
    assert 4.5 < found["apply_p50"] < 5.6
    assert found["capture_p99"] > 80
    assert orjson.dumps(found)
    assert latency.snapshot(66.0) is None
