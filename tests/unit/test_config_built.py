"""What validates and is not built yet is refused by name, and stops only the part that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import (
    Config,
    PostgresSource,
    built_flows,
    load,
    notes,
    parse,
    unbuilt_defaults,
    unbuilt_flow,
    unbuilt_sections,
    unbuilt_source,
    unbuilt_table,
    unbuilt_target,
)

REFERENCE = Path(__file__).parents[2] / "config" / "tailrace.yaml"
URL = "postgresql://u:p@h/d"
NAMES = ("SHOP_URL", "WAREHOUSE_URL", "VECTORS_URL", "GAME_REDIS_URL", "CACHE_URL", "WIKI_TOKEN")
ENVIRON = {
    **dict.fromkeys(NAMES, URL),
    "VECTORS_URL": f"{URL}2",
    "GAME_REDIS_URL": "redis://h",
    "CACHE_URL": "redis://h",
}


def config_with(source: str = "", flow: str = "", head: str = "") -> Config:
    text = f"""\
name: acme
{head}
sources: {{shop: {{kind: postgres, url: {URL}, tables: {{"public.*": {{}}}}, {source}}}}}
targets: {{copy: {{kind: postgres, url: {URL}}}}}
flows: {{mirror: {{from: "shop.public.*", to: copy, {flow}}}}}
"""
    return parse(text, environ={})


def test_of_the_reference_only_what_is_built_runs() -> None:
    config = load(REFERENCE, environ=ENVIRON)
    run, stopped = built_flows(config, "warehouse")
    assert [flow.name for flow in run] == ["mirror", "board"]
    assert list(stopped) == ["customers"]
    assert {u.path for u in stopped["customers"]} == {"flows.customers.owns"}
    shop = config.sources["shop"]
    assert isinstance(shop, PostgresSource)
    assert unbuilt_source(shop) == []
    assert [u.path for u in unbuilt_table(shop, "public", "customers")] == [
        'sources.shop.tables."public.customers".exclude',
        'sources.shop.tables."public.customers".mask',
    ]
    assert unbuilt_table(shop, "public", "products") == []
    assert [bool(unbuilt_target(t)) for t in config.targets.values()] == [False, False, False, False]
    assert [bool(unbuilt_source(s)) for s in config.sources.values()] == [False, False, True, True]
    assert {u.path for u in unbuilt_sections(config) if not u.path.startswith("processors.")} == {
        "schedules.jobs.wiki.pull",
        "schedules.jobs.audit.before.0.backup",
    }
    assert [note.split(":")[0] for note in notes(config)] == [
        "sources.shop.snapshot.readers",
        "targets.warehouse.origin",
    ]


def test_what_equals_the_built_behaviour_is_fine() -> None:
    flow = "unmapped: add, write: upsert, delete: apply, truncate: apply, version: columns, conflict: source"
    source = (
        "origin: any, slot: {on_stop: alert}, snapshot: {mode: never, readers: 1, rate: 0}, primary_url: ''"
    )
    head = "defaults: {encoding: plain, on_ddl: add_columns, on_oversize: fail}"
    config = config_with(source, flow, head)
    assert unbuilt_flow(config, config.flows["mirror"]) == []
    assert unbuilt_source(config.sources["shop"]) == []
    assert [*unbuilt_defaults(config), *unbuilt_sections(config), *notes(config)] == []


@pytest.mark.parametrize(
    "flow",
    [
        "columns: {id: number, at: {cast: date}, tenant: {value: acme}}, unmapped: ignore",
        "unmapped: fail",
        "write: append",
        "write: insert_only",
        "delete: soft(gone_at), truncate: ignore",
        "delete: ignore, version: none",
        "version: side",
    ],
)
def test_flows_to_given_postgres_tables_run(flow: str) -> None:
    config = config_with(flow=flow)
    assert unbuilt_flow(config, config.flows["mirror"]) == []


@pytest.mark.parametrize(
    ("flow", "key", "why"),
    [
        ("conflict: newest(at)", "conflict", "is not built yet"),
        ("owns: x", "owns", "is not built yet"),
        ("as: hash", "as", "belongs to a flow to a redis target"),
        ("ttl: 1d", "ttl", "belongs to a flow to a redis target"),
    ],
)
def test_flow_keys_are_refused_by_name(flow: str, key: str, why: str) -> None:
    config = config_with(flow=flow)
    (found,) = unbuilt_flow(config, config.flows["mirror"])
    assert found.path == f"flows.mirror.{key}"
    assert why in str(found)
    assert f"remove `{key}`" in found.fix or "or remove the key" in found.fix


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("slot: {on_stop: drop_and_resync}", "sources.shop.slot.on_stop"),
        ("origin: none", "sources.shop.origin"),
        ("snapshot: {rate: 10/s}", "sources.shop.snapshot.rate"),
        (f"primary_url: {URL}", "sources.shop.primary_url"),
    ],
)
def test_source_keys_are_refused_by_name(source: str, path: str) -> None:
    (found,) = unbuilt_source(config_with(source).sources["shop"])
    assert found.path == path
    assert str(found.error()).startswith(f"{path}: ")


def test_of_a_jobs_steps_the_backup_is_refused_by_name() -> None:
    steps = "before: [{exec: 'a:b'}, {backup: t}], on_done: [{http: 'http://h/'}]"
    jobs = f"b: {{exec: 'a:b', every: 1h, {steps}}}, c: {{exec: 'a:b', every: 1h}}"
    config = config_with(head=f"schedules: {{jobs: {{{jobs}}}}}\nalerts: {{}}\ncontrol: {{http: 'h:1'}}")
    (found,) = unbuilt_sections(config)
    assert found.path == "schedules.jobs.b.before.1.backup"
    assert "`exec:" in str(found.error())


@pytest.mark.parametrize("default", ["encoding: debezium", "on_oversize: dead_letter"])
def test_defaults_are_refused_by_name(default: str) -> None:
    (found,) = unbuilt_defaults(config_with(head=f"defaults: {{{default}}}"))
    assert found.path == f"defaults.{default.split(':', maxsplit=1)[0]}"
