"""`processors:` of the config: what is said of inputs, `out` and queries, and by which parts rows come."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumers.apply.feed import topic_pattern
from consumers.commands.run import command_of
from consumers.reconcile.job import jobs_of, query_job, query_of
from consumers.views import expected_parts
from consumers.views.processors import Way, way_of
from streamer.config import Config, ConfigFileError, parse, unbuilt_flow, unbuilt_sections
from streamer.config.derived import query_source

TEXT = """
name: acme
sources:
  shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{public.orders: {{}}, "crm.*": {{}}}}}}
  game: {{kind: redis, url: "redis://h", entities: {{scores: {{pattern: "s:{{id}}", type: string}}}}}}
processors:
{processors}
targets:
  copy: {{kind: postgres, url: "postgresql://u@h/e"}}
  cache: {{kind: redis, url: "redis://h:1"}}
flows:
  table: {{from: totals, to: copy.public.totals}}
{flows}
reconcile:
{reconcile}
"""
TOTALS = '  totals: {agent: "a:b", in: [shop.public.orders], out: totals, key: [id]}\n'


def config(processors: str = TOTALS, flows: str = "", reconcile: str = "") -> Config:
    text = TEXT.format(processors=processors, flows=flows, reconcile=reconcile)
    return parse(text, Path("tailrace.yaml"), environ={})


def one(inputs: str, out: str = "totals", name: str = "totals") -> str:
    return f'  {name}: {{agent: "a:b", in: [{inputs}], out: {out}}}\n'


def test_a_processor_and_the_flows_from_it_run() -> None:
    found = config(flows="  board: {from: totals, to: cache, as: zset, key: b, member: id, score: n}")
    assert unbuilt_sections(found) == []
    assert [unbuilt_flow(found, flow) for flow in found.flows.values()] == [[], []]
    assert expected_parts(found) == [
        "capture:shop",
        "capture:game",
        "process:totals",
        "apply:copy",
        "apply:cache",
    ]
    assert command_of("process:totals", memory=True) == ["process", "totals", "--yes"]
    assert command_of("process:totals") == ["process", "totals"]
    assert command_of("apply:copy", memory=True) == ["apply", "copy"]


def test_rows_come_by_the_sources_and_processors_before() -> None:
    chain = (
        one("shop.public.orders, game.scores", "first", "first")
        + one("first")
        + one("game.scores", "other", "other")
    )
    found = config(chain, flows='  crm: {from: "shop.crm.*", to: copy.crm}')
    assert way_of(found, found.flows["table"]) == Way(
        ("capture:shop", "capture:game"), ("process:first", "process:totals")
    )
    assert way_of(found, found.flows["crm"]) == Way(("capture:shop",))


@pytest.mark.parametrize(
    ("processors", "path", "words"),
    [
        (one("shop.public.order"), "processors.totals.in.0", "did you mean 'public.orders'?"),
        (one("shop.public.order"), "processors.totals.in.0", "does not capture the table 'public.order'"),
        (one("shp.public.orders"), "processors.totals.in.0", "did you mean 'shop'?"),
        (one("game.score"), "processors.totals.in.0", "did you mean 'scores'?"),
        (one("totals"), "processors.totals.in", "reads its own `out`: totals -> totals"),
        (
            one("shop.public.orders, b", "totals", "a") + one("c", "b", "b") + one("totals", "c", "c"),
            "processors.a.in",
            "a circle of processors: each waits for the others: a -> c -> b -> a",
        ),
        (
            one("shop.public.orders") + one("shop.public.orders", "totals", "more"),
            "processors.more.out",
            "processor 'more' would share the topic totals with processor 'totals'",
        ),
        (
            TOTALS + one("shop.public.orders", "shop.public.orders", "more"),
            "processors.more.out",
            "would share the topic shop.public.orders with table public.orders",
        ),
        (TOTALS + one("shop.public.orders", "x.y", "more"), "processors.more.out", "after a dot comes"),
        (
            TOTALS + one("shop.public.orders", "Shop", "more"),
            "processors.more.out",
            "topics of source 'shop' begin with 'Shop'",
        ),
        (TOTALS + one("shop.public.orders", "x", "copy"), "processors.copy", "copy.dead_letters"),
        (TOTALS + one("shop.public.orders", "x", "game"), "processors.game", "rename the processor"),
        (
            TOTALS + one('"totals.*"', "x", "more"),
            "processors.more.in.0",
            "takes the dead letters of the processor 'totals', too",
        ),
        (one(""), "processors.totals.in", "names no topic\n  -> name at least one"),
        (
            one("shop.public.orders, game.scores, shop.public.orders"),
            "processors.totals.in.2",
            "'shop.public.orders' is named twice",
        ),
        (
            one("totals2.__state"),
            "processors.totals.in.0",
            "'totals2.__state' is a processor's own topic, and none of rows",
        ),
        (TOTALS.replace("[id]", "['']"), "processors.totals.key.0", "'' is no column of a derived row"),
        (TOTALS.replace("[id]", "[_tailrace_v]"), "processors.totals.key.0", "Tailrace's own"),
        (
            TOTALS.replace("[id]", "[id, id]"),
            "processors.totals.key.1",
            "'id' is named twice\n  -> name it once",
        ),
        *(
            (f"{TOTALS}  more:\n", f"processors.more.{key}: is missing", "add it")
            for key in ("agent", "in", "out")
        ),
        (TOTALS.replace('"a:b"', "ab"), "processors.totals.agent", "write package.module:name"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(processors: str, path: str, words: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        config(processors)
    found = [problem for problem in caught.value.problems if path in str(problem)]
    assert found, caught.value
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("reconcile", "words"),
    [
        ("  t: {flow: crm, sql: SELECT 1}", "this flow has none of these"),
        ("  t: {flow: table, on: shop}", "says where a query runs, and there is none"),
        ("  t: {flow: table, sql: SELECT 1, on: game}", "derives nothing from a postgres source 'game'"),
        ('  t: {flow: table, sql: ""}', "reconcile.t.sql"),
    ],
)
def test_a_query_is_for_derived_rows(reconcile: str, words: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        config(flows='  crm: {from: "shop.crm.*", to: copy.crm}', reconcile=reconcile)
    assert words in str(caught.value)


def test_a_derived_flow_is_compared_with_its_query() -> None:
    found = config()
    (job,) = jobs_of(found, [])
    assert (job.processor, job.flow.name) == ("totals", "table")
    assert "write the query as `sql:` of a job" in job.refused
    found = config(reconcile="  totals: {flow: table, sql: SELECT 1 AS id}")
    (job,) = jobs_of(found, [])
    assert (job.name, job.refused) == ("totals", "")
    assert query_source(found, "totals").name == "shop"
    found = config(
        reconcile="  all: {flow: table, sql: SELECT 1 AS id}\n  some: {flow: table, sql: SELECT 2 AS id}"
    )
    assert [job.name for job in jobs_of(found, [])] == ["all", "some"]  # each proves something else
    flow = found.flows["table"]
    assert [query_job(found, flow, asked) for asked in ("some", "all", "table")] == ["some", "all", "all"]
    assert query_of(found, flow, "some") == "SELECT 2 AS id"
    only_redis = one("game.scores")
    with pytest.raises(ConfigFileError, match="which source is the query for"):
        config(only_redis, reconcile="  totals: {flow: table, sql: SELECT 1 AS id}")


def test_a_routers_tables_are_its_flows_and_what_it_keeps_is_not() -> None:
    found = config(
        TOTALS + one("shop.public.orders", "events", "router"), flows='  all: {from: "events.*", to: copy}'
    )
    flow = found.flows["all"]
    assert flow.matches("events.paid")
    assert not any(flow.matches(f"events.{name}") for name in ("__state", "__floors", "__hop1", "__hop12"))
    assert not flow.matches("events")
    assert flow.place("", "paid") == ("events", "paid")
    pattern = re.compile(topic_pattern([flow]))
    assert pattern.match("events.paid")
    assert not any(pattern.match(f"events.{name}") for name in ("__state", "__floors", "__hop1"))
    with pytest.raises(ConfigFileError, match="TABLE of a processor that routes"):
        config(flows="  bad: {from: totals., to: copy.public.x}")
