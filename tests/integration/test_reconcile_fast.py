"""The fast path is chosen only when both servers prove that they hash alike, and says why it is not."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from consumers.reconcile.compare import compare
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.dialects.sqlite import STRANGE
from consumers.reconcile.fast import (
    COLLATION_FACTS,
    OLDEST_MAJOR,
    SERVER_FACTS,
    Collation,
    Pair,
    Server,
    why_not,
)
from consumers.reconcile.forms import Held, forms
from consumers.reconcile.mapping import Incomparable
from consumers.reconcile.origins.base import Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.proof import Limits, make_plan
from consumers.reconcile.sides.base import KeyRange
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import make_sides
from streamer.config import parse
from streamer.postgres.connection import SESSION_SETTINGS
from tests.harness.given import execute

PLAIN = Collation("en_US.UTF-8", "2.36", True)
SERVER = Server(18, "UTF8", 42, {"name": PLAIN})


def pair(source: Held, target: Held | None = None) -> Pair:
    one, other = forms(source, target or source)
    return Pair("name", SqlColumn("name", source, one), SqlColumn("name", target or source, other), "name")


TEXT = pair(Held("text", "text"))
NUMBER = pair(Held("number", "bigint"))


def test_equal_servers_and_types_are_hashed_by_the_server() -> None:
    assert why_not(SERVER, SERVER, [TEXT]) is None
    bare = replace(SERVER, collations={})
    assert (
        why_not(bare, bare, [NUMBER, pair(Held("numeric", "numeric(12,2)"), Held("numeric", "numeric"))])
        is None
    )
    assert why_not(SERVER, SERVER, [pair(Held("text", "character varying(9)"), Held("text", "text"))]) is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (replace(SERVER, major=17), "PostgreSQL 18 and 17"),
        (replace(SERVER, encoding="LATIN1"), "UTF8 and LATIN1"),
        (replace(SERVER, probe=43), "hash the same row differently"),
        (replace(SERVER, collations={"name": replace(PLAIN, version="2.40")}), "en_US.UTF-8 2.40"),
        (replace(SERVER, collations={"name": replace(PLAIN, version=None)}), "without a version"),
        (replace(SERVER, collations={"name": replace(PLAIN, deterministic=False)}), "nondeterministic"),
        (replace(SERVER, collations={}), "on one side only"),
    ],
)
def test_servers_that_differ_are_not(target: Server, reason: str) -> None:
    assert reason in (why_not(SERVER, target, [TEXT]) or "")
    assert reason in (why_not(target, SERVER, [TEXT]) or "") or "18" in reason or "UTF8" in reason


def test_old_servers_are_not() -> None:
    old = replace(SERVER, major=OLDEST_MAJOR - 1)
    assert f"PostgreSQL {OLDEST_MAJOR - 1}" in (why_not(old, old, [TEXT]) or "")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Held("number", "integer"), Held("number", "bigint")),
        (Held("float", "real"), Held("float", "double precision")),
        (Held("numeric", "numeric(10,2)"), Held("numeric", "numeric(12,4)")),
        (Held("text", "character(5)"), Held("text", "character(8)")),
        (Held("json", "json"), Held("json", "jsonb")),
        (Held("text", "uuid"), Held("text", "text")),
        (Held("float", "real"), Held("text", "text")),
    ],
)
def test_types_that_differ_are_not(source: Held, target: Held) -> None:
    bare = replace(SERVER, collations={})
    reason = why_not(bare, bare, [pair(source, target)]) or ""
    assert source.type in reason
    assert target.type in reason


def facts(url: str, table: str) -> Server:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        cursor = psycopg.RawCursor(connection)
        row = cursor.execute(SERVER_FACTS).fetchone()
        assert row is not None
        found = cursor.execute(COLLATION_FACTS, (table,)).fetchall()
        return Server(*row, {name: Collation(*rest) for name, *rest in found})


def test_two_servers_prove_it(database: str, target_database: str) -> None:
    for url in (database, target_database):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('CREATE TABLE t (id bigint, name text, code text COLLATE "C", "n o" numeric)')
    source, target = facts(database, "t"), facts(target_database, "t")
    assert set(source.collations) == {"name", "code"}
    assert source.collations["code"] == Collation("C", None, True)
    assert source == target
    assert why_not(source, target, [TEXT, NUMBER]) is None


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
async def test_a_row_with_null_in_the_key_of_a_given_table_is_found(
    store: str, database: str, target_database: str, tmp_path: Path
) -> None:
    """A unique index lets it be; ranges of a key that may be null would pass it by."""
    rows = "SELECT generate_series(1, 12000)"
    made = "CREATE TABLE item (id int PRIMARY KEY)", f"INSERT INTO item {rows}", "ANALYZE item"
    await execute(database, *made)
    file = tmp_path / "copy.db"
    url = f"sqlite:///{file}" if store == "sqlite" else target_database
    if store == "postgres":
        given = "CREATE TABLE mirror.item (id int UNIQUE)", f"INSERT INTO mirror.item {rows}"
        await execute(target_database, "CREATE SCHEMA mirror", *given)
    else:
        with closing(sqlite3.connect(file)) as line, line:
            line.execute("CREATE TABLE item (id INT UNIQUE)")
            line.executemany("INSERT INTO item VALUES (?)", [(n,) for n in range(1, 12_001)])
    text = f"""
name: acme
sources: {{shop: {{kind: postgres, url: "{database}", tables: {{public.item: {{}}}}}}}}
targets: {{copy: {{kind: {"sql" if store == "sqlite" else store}, url: "{url}"}}}}
flows: {{mirror: {{from: shop.public.item, to: copy.mirror}}}}
"""
    config = parse(text, tmp_path / "tailrace.yaml", environ={})
    flow = config.flows["mirror"]
    origin, target = make_origin(config, flow), make_store(config, flow)
    await origin.open()
    await target.open()
    try:
        async with aclosing(origin.tables(flow)) as tables:
            captured = await anext(tables)
        assert not isinstance(captured, Refused)
        sides = await make_sides(captured, target, flow, where="", only=())
        parts = (await make_plan(sides, Limits())).parts()
        found = await compare(sides.source, sides.target, parts)
        assert (found.source_rows, found.target_rows, found.suspects) == (12_000, 12_000, set())
        if store == "postgres":
            await execute(target_database, "INSERT INTO mirror.item VALUES (NULL)")
            with pytest.raises(Incomparable, match=r"\(NULL\) 1 times"):
                await compare(sides.source, sides.target, parts)
        else:
            with closing(sqlite3.connect(file)) as line, line:
                line.execute("INSERT INTO item VALUES (NULL)")
            assert (await compare(sides.source, sides.target, parts)).suspects == {(STRANGE,)}
    finally:
        await target.close()
        await origin.close()


NAMES = ("n", "c", "t", "q", "k", "h", "lo", "hi")  # such as a statement likes to give its own columns
KEYS = 400
PARTS = 8


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
async def test_a_key_may_have_any_name(
    store: str, database: str, target_database: str, tmp_path: Path
) -> None:
    table = "CREATE TABLE {0}t_{1} ({1} int PRIMARY KEY, v text)"
    rows = f"INSERT INTO {{0}}t_{{1}} SELECT n * 10, 'v' FROM generate_series(1, {KEYS}) n"
    await execute(database, *[each.format("", name) for name in NAMES for each in (table, rows)])
    file = tmp_path / "copy.db"
    if store == "postgres":
        there = [each.format("mirror.", name) for name in NAMES for each in (table, rows)]
        await execute(target_database, "CREATE SCHEMA mirror", *there)
    else:
        with closing(sqlite3.connect(file)) as line, line:
            for name in NAMES:
                line.execute(table.format("", name))
                values = [(n * 10, "v") for n in range(1, KEYS + 1)]
                line.executemany(f"INSERT INTO t_{name} VALUES (?, ?)", values)
    kind, url = ("postgres", target_database) if store == "postgres" else ("sql", f"sqlite:///{file}")
    text = f"""
name: acme
sources: {{shop: {{kind: postgres, url: "{database}", tables: {{"public.*": {{}}}}}}}}
targets: {{copy: {{kind: {kind}, url: "{url}"}}}}
flows: {{mirror: {{from: shop.public.*, to: copy.mirror}}}}
"""
    config = parse(text, tmp_path / "tailrace.yaml", environ={})
    flow = config.flows["mirror"]
    origin, target = make_origin(config, flow), make_store(config, flow)
    await origin.open()
    await target.open()
    seen = set()
    try:
        async with aclosing(origin.tables(flow)) as tables:
            async for captured in tables:
                assert not isinstance(captured, Refused)
                sides = await make_sides(captured, target, flow, where="", only=())
                for side in (sides.source, sides.target):
                    parts = await side.split(KeyRange(), PARTS, KEYS)
                    assert [part.low for part in parts[1:]] == [
                        (str(at * KEYS // PARTS * 10 + 10),) for at in range(1, PARTS)
                    ]
                    found = await compare(sides.source, sides.target, parts)
                    assert (found.source_rows, found.target_rows, found.suspects) == (KEYS, KEYS, set())
                seen.add(captured.name.removeprefix("t_"))
    finally:
        await target.close()
        await origin.close()
    assert seen == set(NAMES)
