"""Two configs of one `name` on one Kafka: what the other's processes tell stands for none of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers import views
from streamer.config import Config, parse
from streamer.config.stores import database_of
from streamer.status import StatusRecord

NOW_US = 1_800_000_000_000_000
S = 1_000_000
OURS, THEIRS = "postgres://db1:5432/copy", "postgres://db2:5432/copy"


def config_of(target: str = "postgresql://u:hunter2@db1/copy") -> Config:
    text = (
        "name: acme\n"
        "sources: {shop: {kind: postgres, url: 'postgresql://u:hunter2@db/shop', tables: {'*.*': {}}}}\n"
        f"targets: {{copy: {{kind: postgres, url: '{target}'}}}}\n"
        "flows: {mirror: {from: 'shop.public.*', to: copy}}\n"
    )
    return parse(text, Path("tailrace.yaml"), environ={})


def beat(part: str, *, age_s: float = 0.0, **changes: Any) -> StatusRecord:
    kind, name = part.split(":")
    at_us = NOW_US - int(age_s * S)
    known: dict[str, Any] = {"instance": "vm-7", "pid": 7, "host": "vm", "state": "streaming"}
    known |= {"started_us": at_us - 100 * S, "at_us": at_us, "seen_us": at_us, **changes}
    return StatusRecord(part, kind, name, **known)


def apply(place: str, store: str, **changes: Any) -> StatusRecord:
    flow = {"state": "idle", "partitions": [], "lag_records": 0, "rate": 0.0, "parked": 0, "applied": 5}
    return beat("apply:copy", place=place, store=store, detail={"flows": {"mirror": flow}}, **changes)


def refused(place: str, store: str, **changes: Any) -> StatusRecord:
    error = "the consumer group 'acme.copy' belongs to another target"
    return apply(place, store, state="error", reason=error, ended=True, **changes)


def looked(*records: StatusRecord, config: Config | None = None) -> views.Status:
    return views.build(config or config_of(), [beat("capture:shop"), *records], NOW_US)


def test_another_ones_live_heartbeat_does_not_stand_for_ours() -> None:
    ours = refused(OURS, "B", instance="here-1", pid=1, host="here", age_s=10)
    found = looked(ours, apply(THEIRS, "A"))
    assert found.exit_code == 1
    [flow] = found.flows
    assert (flow["state"], "belongs to another target" in flow["reason"]) == ("ERROR", True)
    [stranger] = [f for f in found.findings if "two configs" in f.text]
    assert (stranger.subject, stranger.counts) == ("apply:copy", True)
    assert "process 7 on vm works with postgres://db2:5432/copy" in stranger.text
    assert "this file names postgres://db1:5432/copy" in stranger.text
    assert "-> give one of the two another `name`" in stranger.text
    assert [part["instance"] for part in found.parts if part["part"] == "apply:copy"] == ["here-1"]
    assert flow["applied"] == 5, "the other's rows are not counted"


def test_who_was_there_first_is_told_and_stays_well() -> None:
    """`tailrace run` starts the other's again and again: between two of them it is told, and not for long."""
    ours = apply(OURS, "A")
    there = {"instance": "there-9", "pid": 9, "host": "there"}
    its_parts = {"apply:copy": {"state": "error", "reason": "run `tailrace adopt copy`"}}
    run = beat("run:acme", detail={"parts": its_parts, "places": {"apply:copy": THEIRS}}, **there)
    found = looked(ours, refused(THEIRS, "B", age_s=31, **there), refused(THEIRS, "B", age_s=1, **there), run)
    assert [flow["state"] for flow in found.flows] == ["IDLE"]
    assert ["two configs" in f.text for f in found.findings] == [True], "once, and no advice for the other"
    assert found.exit_code == 1
    assert looked(ours, refused(THEIRS, "B", age_s=61)).exit_code == 0
    assert looked(ours, refused(THEIRS, "B", age_s=61)).findings == []


@pytest.mark.parametrize(
    "record",
    [
        apply("", ""),  # of a version that did not tell
        apply(OURS, "B"),  # the store was made again
        apply("postgres://db1.lan:6432/copy", ""),  # an alias, which was not met yet
        apply("postgres://db1.lan:6432/copy", "A"),
        apply("postgres://pooler:6432/pool", "A"),  # a pooler that calls the database otherwise
    ],
)
def test_a_server_of_many_names_is_one(record: StatusRecord) -> None:
    before = apply(OURS, "A", instance="vm-1", age_s=500, ended=True, state="stopped")
    found = looked(record, before)
    assert ([flow["state"] for flow in found.flows], found.findings) == (["IDLE"], [])


def test_another_database_is_another_store_though_nothing_was_met() -> None:
    """Ours never ran: that is what is said of it."""
    found = looked(apply("postgres://db1:5432/other", ""))
    assert [flow["state"] for flow in found.flows] == ["UNKNOWN"]
    assert "apply:copy has not run yet" in found.flows[0]["reason"]
    assert any("two configs" in f.text for f in found.findings)
    gone = looked(apply("postgres://db1:5432/other", "", age_s=20))
    assert not any("two configs" in f.text for f in gone.findings), "who is silent takes nothing"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://u:hunter2@db1/copy", OURS),
        ("postgresql://else:hunter3@DB1:5432/copy?application_name=x", OURS),
        ("postgresql://u:hunter2@db2:6432,db1/copy", "postgres://db1:5432,db2:6432/copy"),
        ("postgresql://u:hunter2@127.0.0.1/copy", "postgres://vm:5432/copy"),
        ("postgresql://u:hunter2@/copy?host=/run/postgresql", "postgres://vm:5432/copy"),
        ("postgresql://u:hunter2@db1", ""),  # the database depends on the environment
    ],
)
def test_a_place_has_no_login(url: str, place: str) -> None:
    assert config_of(url).place("apply", "copy", "vm") == place


@pytest.mark.parametrize(
    ("kind", "url", "place", "database"),
    [
        ("redis", "redis://:hunter2@cache:6380/3", "redis://cache:6380/3", "3"),
        ("redis", "unix:///run/redis.sock?db=2", "redis://vm/run/redis.sock/2", "2"),
        ("redis", "rediss://cache", "redis://cache:6379/0", "0"),
        ("sql", "sqlite:////data/copy.db", "sqlite://vm/data/copy.db", "copy.db"),
    ],
)
def test_a_place_of_each_kind(kind: str, url: str, place: str, database: str) -> None:
    text = (
        "name: acme\n"
        "sources: {shop: {kind: postgres, url: 'postgresql://u:p@db/shop', tables: {'*.*': {}}}}\n"
        f"targets: {{copy: {{kind: {kind}, url: '{url}'}}}}\n"
    )
    config = parse(text, Path("tailrace.yaml"), environ={})
    assert config.place("apply", "copy", "vm") == place
    assert database_of(place)[1] == database
    assert config.place("serve", "acme", "vm") == ""
    assert views.places(config)["capture:shop"] == "postgres://db:5432/shop"


def test_a_record_keeps_both_and_an_older_one_has_neither() -> None:
    record = apply(OURS, "A")
    loaded = StatusRecord.load(record.dump())
    assert (loaded.place, loaded.store) == (OURS, "A")
    older = record.dump().replace(b'"place"', b'"was"').replace(b'"store"', b'"were"')
    assert StatusRecord.load(older).place == ""
