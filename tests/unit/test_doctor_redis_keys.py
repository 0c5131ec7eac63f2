"""What doctor says of a Redis target's keys by the catalogue is what apply says of the first record."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.apply.mapping import map_columns
from consumers.targets.redis_layout import Plan
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Flow
from streamer.doctor import Level
from streamer.doctor.check import Findings
from streamer.doctor.postgres import Server
from streamer.doctor.redis_keys import check_keys
from streamer.doctor.source import SourceFacts
from streamer.errors import ConfigError
from streamer.postgres.catalog import Table

COLUMNS = (
    ("tenant", "text", "text", True),
    ("id", "bigint", "number", True),
    ("name", "text", "text", False),
    ("points", "integer", "number", False),
    ("rank", "numeric(10,2)", "numeric", False),
)
SERVER = Server("app", "shop", 180000, False, ("shop",))


def facts(keyed: bool) -> dict[str, SourceFacts]:
    table = Table("public", "users", 1, "d", ("tenant", "id") if keyed else (), keyed)
    columns = [(name, type_, key and keyed) for name, type_, _, key in COLUMNS]
    return {"shop": SourceFacts(SERVER, (table,), {("public", "users"): columns})}


def record(keyed: bool) -> SchemaRecord:
    columns = tuple(Column(name, type_, -1, kind, key and keyed) for name, type_, kind, key in COLUMNS)
    return SchemaRecord("shop", "public", "users", "d", columns)


def flow_of(keys: dict[str, Any]) -> Flow:
    return Flow.model_validate({"__name__": "f", "from": "shop.public.users", "to": "cache", **keys})


def apply_says(flow: Flow, keyed: bool) -> str:
    try:
        Plan(flow, "public", "users", map_columns(flow, record(keyed), None))
    except ConfigError as error:
        return error.what
    return ""


def doctor_says(flow: Flow, keyed: bool) -> list[str]:
    findings = Findings("target cache")
    check_keys(findings, [flow], facts(keyed))
    assert all(check.level is Level.FAIL and check.fix for check in findings.checks)
    return [check.what for check in findings.checks]


WHOLE = "user:{tenant}:{id}"


@pytest.mark.parametrize(
    ("keys", "keyed", "word"),
    [
        ({}, True, ""),
        ({"key": WHOLE}, True, ""),
        ({"key": "user:{id}"}, True, "one place in Redis"),
        ({"key": "user:{tenant}:{id}:{name}"}, True, "'name'"),
        ({"key": "user:{tenant}:{idd}"}, True, "'idd'"),
        ({"key": "user:{who}:{id}", "columns": {"tenant": "who"}}, True, ""),
        ({"key": WHOLE, "columns": {"tenant": "who"}}, True, "'tenant'"),
        ({"key": "{kind}:{tenant}:{id}", "columns": {"kind": {"value": "u"}}}, True, ""),
        ({"as": "set", "member": "{tenant}/{id}"}, True, ""),
        ({"as": "set", "member": "id"}, True, "one place in Redis"),
        ({"as": "set", "member": "name", "key": WHOLE}, True, "'name'"),
        ({"as": "set", "member": "id", "key": "of:{tenant}"}, True, ""),
        ({"as": "zset", "member": "id", "key": "of:{tenant}", "score": "points"}, True, ""),
        ({"as": "zset", "member": "id", "key": "of:{tenant}", "score": "rank"}, True, ""),
        ({"as": "zset", "member": "id", "key": "of:{tenant}", "score": "name"}, True, "no number"),
        ({"as": "zset", "member": "id", "key": "of:{tenant}", "score": "pts"}, True, "'pts'"),
        ({"as": "zset", "member": "id", "key": "of:{tenant}", "score": "n", "columns": {"n": {"value": 1}}},
         True, ""),
        ({"unmapped": "ignore", "columns": {"name": "n"}, "key": f"{WHOLE}:{{points}}"}, True, "'points'"),
        ({"columns": {"id": {"to": "id", "cast": "text"}}}, True, "Redis keeps text"),
        ({}, False, "has no key"),
        ({"write": "append"}, False, ""),
        ({"key": "log:{name}", "write": "append"}, False, "'name'"),
    ],
)  # fmt: skip
def test_a_key_is_refused_by_doctor_where_apply_refuses_it(
    keys: dict[str, Any], keyed: bool, word: str
) -> None:
    flow = flow_of(keys)
    found = doctor_says(flow, keyed)
    assert bool(found) == bool(apply_says(flow, keyed)) == bool(word), apply_says(flow, keyed)
    if word:
        assert any(word in what for what in found)


def test_a_flow_that_takes_nothing_and_a_source_that_did_not_answer() -> None:
    findings = Findings("target cache")
    check_keys(findings, [flow_of({"from": "shop.public.orders"})], facts(True))
    assert "takes no captured table" in findings.checks[0].what
    check_keys(findings, [flow_of({"key": "user:{name}"})], {})
    assert len(findings.checks) == 1
