"""Every type in every kind of target: equal as apply writes it, and a value that differs is named.

Two tables of a PostgreSQL have the same rows but for one value a row, a row for each fault. Apply writes the
first one's values to the target, and then the second one's; the first is compared with both.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.reconcile.compare import compare
from consumers.reconcile.origins.base import Captured, Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.proof import Limits, make_plan
from consumers.reconcile.stores.base import Store
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import Sides, make_sides
from consumers.targets.base import Target
from consumers.targets.registry import make_target
from consumers.testing import Log
from streamer.config import Config, parse
from streamer.postgres.connection import SESSION_SETTINGS
from streamer.sandbox import ValkeyServer
from tests.harness.reconcile import sqlite_target
from tests.harness.tiers import corners
from tests.integration.test_kinds_postgres import CASES, SETUP
from tests.property.conftest import envelope

BOUNDS = "]="  # of an array with other lower bounds than 1: apply parks its row in SQLite
NEAR = [  # values that a comparison could take for one
    ("text", ["NULL", "''"]),
    ("text", ["'a'", "'a '"]),
    ("numeric", ["1.0", "1.00"]),
    ("bigint", ["1", "4294967297"]),
    ("bytea", ["'\\x00'", "'\\x01'"]),
    ("jsonb", ["'1.0'", "'1.00'"]),
    ("interval", ["'1 mon'", "'30 days'"]),
    ("timestamptz", ["'2026-11-22 09:00:00.000001+00'", "'2026-11-22 09:00+00'"]),
    ("timetz", ["'11:00+00'", "'12:00+01'"]),
    ("hstore", ["'a=>1, b=>NULL'", "'a=>1'"]),
    ("hstore", ["''", "'a=>NULL'"]),
    ("real", ["'NaN'", "'Infinity'"]),
    ("double precision", ["1.5", "1.5000000000000002"]),
]
FAULTS_A_COLUMN = 2


def columns_of(store: str) -> list[tuple[str, list[str]]]:
    """(type, values as SQL) of the table's columns: the value of all rows, and the others that are put in."""
    found = []
    for type_name, values in [*((name, values) for name, (_, values) in CASES.items()), *NEAR]:
        fit = [value for value in values or ["'a'", "'A'"] if store != "sqlite" or BOUNDS not in value]
        found.append((type_name, [*fit[: 1 + FAULTS_A_COLUMN], "NULL"]))
    return found


class Tables:
    """`same` and `wrong`, whose row 0 is the same."""

    def __init__(self, url: str, columns: Sequence[tuple[str, list[str]]]) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
        self._line = psycopg.connect(url, autocommit=True, options=options)
        names = [f"c{at}" for at in range(len(columns))]
        types = ", ".join(f"{name} {type_}" for name, (type_, _) in zip(names, columns, strict=True))
        faults = [
            (name, value)
            for name, (_, values) in zip(names, columns, strict=True)
            for value in values[1:]
            if value != values[0]
        ]
        given = ", ".join(f"({values[0]})::{type_}" for type_, values in columns)
        for table in ("same", "wrong"):
            self._run(f"CREATE TABLE {table} (id int PRIMARY KEY, {types})")
            self._run(f"INSERT INTO {table} SELECT n, {given} FROM generate_series(0, {len(faults)}) n")
        for n, (name, value) in enumerate(faults, 1):
            self._run(f"UPDATE wrong SET {name} = {value} WHERE id = {n}")

    def _run(self, statement: str) -> Any:
        return self._line.execute(statement.encode())

    def swap(self) -> None:
        """What was `wrong` is what is there."""
        self._run("TRUNCATE same")
        self._run("INSERT INTO same SELECT * FROM wrong")

    def close(self) -> None:
        self._line.close()

    def events(self, table: str, columns: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
        """The rows as events have them; `columns`: (type, kind) of each."""
        result = self._run(f"SELECT * FROM {table} ORDER BY id").pgresult
        assert result is not None
        return [
            {
                name: envelope(kind, result.get_value(row, at))
                for at, (name, (_, kind)) in enumerate(columns.items())
            }
            for row in range(result.ntuples)
        ]


@asynccontextmanager
async def applying(config: Config) -> AsyncIterator[Target]:
    target = make_target(config.targets["copy"], "acme.copy", list(config.flows.values()))
    await target.open()
    try:
        yield target
    finally:
        await target.close()


@asynccontextmanager
async def captured(config: Config) -> AsyncIterator[tuple[Captured, Store]]:
    """The flow's table of the source, and the target's store."""
    flow = config.flows["wide"]
    origin, store = make_origin(config, flow), make_store(config, flow)
    async with AsyncExitStack() as stack:
        for each in (origin, store):
            stack.push_async_callback(each.close)
            await each.open()
        tables = await stack.enter_async_context(aclosing(origin.tables(flow)))
        (table,) = [table async for table in tables]
        assert not isinstance(table, Refused)
        yield table, store


async def faults(sides: Sides) -> dict[str, list[str]]:
    """Row -> the columns that differ."""
    plan = await make_plan(sides, Limits())
    found = await compare(sides.source, sides.target, plan.parts())
    keys = sorted(found.suspects)
    ours, theirs = await sides.source.rows(keys), await sides.target.rows(keys)
    names = [pair.name for pair in sides.compared.pairs]
    return {
        key[0]: [name for name, a, b in zip(names, ours[key].texts, theirs[key].texts, strict=True) if a != b]
        for key in keys
    }


def config_of(database: str, target: dict[str, Any], flow: dict[str, Any]) -> Config:
    source = {"kind": "postgres", "url": database, "tables": {"public.*": {}}}
    text = {"sources": {"shop": source}, "targets": {"copy": target}, "flows": {"wide": flow}}
    return parse(json.dumps({"name": "acme", **text}), Path("tailrace.yaml"), environ={})


@pytest.fixture
def target(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if store == "sqlite":
        return sqlite_target(tmp_path / "copy.db")
    if store == "postgres":
        url = request.getfixturevalue("target_database")
        make_types(url)
        return {"kind": "postgres", "url": url}
    server: ValkeyServer = request.getfixturevalue("redis_server")
    return {"kind": "redis", "url": server.url}


def make_types(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as line:
        for statement in SETUP.split(";\n"):
            if statement.strip() and "PUBLICATION" not in statement:
                line.execute(statement.encode())


@pytest.mark.parametrize("store", corners(["hash", "json", "sqlite", "postgres"], "hash"))
async def test_every_type_is_equal_as_applied_and_each_fault_is_named(
    store: str, target: dict[str, Any], database: str
) -> None:
    make_types(database)
    flow = {"from": "shop.public.same", "to": "copy.main"} | ({"as": "json"} if store == "json" else {})
    config = config_of(database, target, flow)
    all_flows = list(config.flows.values())
    with closing(Tables(database, columns_of(store))) as tables:
        async with applying(config) as to, captured(config) as (table, kept):
            columns = {column.name: (column.type, column.kind) for column in table.record.columns}
            log = Log("shop", partitions=1)
            topic = log.table("same", columns)
            same, wrong = tables.events("same", columns), tables.events("wrong", columns)
            for row in same:
                topic.create(row)
            await log.apply(to, all_flows)
            sides = await make_sides(table, kept, config.flows["wide"], where="", only=())
            assert [pair.name for pair in sides.compared.pairs] == list(columns)
            assert await faults(sides) == {}
            for row in wrong:
                topic.update(row)
            await log.apply(to, all_flows)
            sides = await make_sides(table, kept, config.flows["wide"], where="", only=())
            differ = {
                str(row["id"]): [name for name in columns if row[name] != other[name]]
                for row, other in zip(same, wrong, strict=True)
            }
            wanted = {key: names for key, names in differ.items() if names}
            assert len(wanted) > len(columns)
            assert await faults(sides) == wanted


FLOATS = [  # of the source, as which rows, the flow's cast, the target's column
    (
        "double precision",
        ["1/3::float8", "2.675", "'-0'", "1e-300", "'NaN'", "2/3::float8"],
        "numeric",
        "numeric",
    ),
    ("real", ["1/3::real", "16777217", "'-0'", "1e-30", "2/3::real"], "numeric", "numeric"),
    ("double precision", ["0.33335", "0.33345", "'-0'", "1e-300", "2/3"], "numeric(8,4)", "numeric(8,4)"),
]
NARROWER = [  # a cast that holds less than its column
    ("numeric", ["1.2345", "-0.0045", "2.5"], "numeric(10,3)", "numeric(10,2)"),
    ("numeric", ["1.6", "2.5", "-0.4"], "integer", "numeric"),
    ("numeric", ["1.6", "-7"], "integer", "text"),
    ("double precision", ["1.6", "2.5", "1e9"], "integer", "numeric"),
    ("double precision", ["1/3::float8", "2/3::float8"], "numeric", "text"),
    ("double precision", ["1/3::float8", "0.1"], "real", "double precision"),
    ("timestamptz", ["'2026-11-22 09:00:00.5+00'", "'1999-12-31 23:59+00'"], "date", "timestamp"),
    ("timestamptz", ["'2026-11-22 09:00:00.5+00'", "'infinity'"], "timestamptz(0)", "timestamptz"),
    ("boolean", ["true", "false"], "integer", "bigint"),
    ("text", ["'12'", "'-3'"], "bigint", "numeric"),
    ("text", ["'abcdef'", "''"], "character varying(3)", "text"),
]


Cast = list[tuple[str, list[str], str, str]]


@asynccontextmanager
async def applied(
    cast: Cast, target: dict[str, Any], database: str
) -> AsyncIterator[tuple[psycopg.Connection, Sides]]:
    """A line to the target, which has what apply makes of the rows, and the two sides, equal."""
    casts = {f"c{at}": {"cast": name} for at, (_, _, name, _) in enumerate(cast)}
    given = ", ".join(f"c{at} {type_}" for at, (_, _, _, type_) in enumerate(cast))
    columns = [(type_, values) for type_, values, _, _ in cast]
    flow = {"from": "shop.public.same", "to": "copy.main", "columns": casts}
    config = config_of(database, target, flow)
    async with AsyncExitStack() as stack:
        line = stack.enter_context(psycopg.connect(target["url"], autocommit=True))
        line.execute("CREATE SCHEMA main")
        line.execute(f"CREATE TABLE main.same (id int PRIMARY KEY, {given})".encode())
        tables = stack.enter_context(closing(Tables(database, columns)))
        to = await stack.enter_async_context(applying(config))
        table, kept = await stack.enter_async_context(captured(config))
        types = {column.name: (column.type, column.kind) for column in table.record.columns}
        log = Log("shop", partitions=1)
        topic = log.table("same", types)
        for row in tables.events("wrong", types):
            topic.create(row)
        await log.apply(to, list(config.flows.values()))
        tables.swap()
        sides = await make_sides(table, kept, config.flows["wide"], where="", only=())
        assert [pair.name for pair in sides.compared.pairs] == list(types)
        assert await faults(sides) == {}
        yield line, sides


@pytest.mark.parametrize("store", ["postgres"])
@pytest.mark.parametrize("cast", [FLOATS, NARROWER], ids=["floats", "narrower"])
async def test_what_a_flow_casts_is_equal_as_applied(
    cast: Cast, store: str, target: dict[str, Any], database: str
) -> None:
    """Also digits that the server's own cast drops, a zero with a sign, and what is rounded twice."""
    async with applied(cast, target, database) as (line, sides):
        rows = sum(len(values) for _, values, _, _ in cast) - len(cast) + 1
        assert line.execute("SELECT count(*) FROM main.same").fetchone() == (rows,)
        for at in range(len(cast)):
            line.execute(f"UPDATE main.same SET c{at} = NULL WHERE id = {at}".encode())
        assert await faults(sides) == {str(at): [f"c{at}"] for at in range(len(cast))}


@pytest.mark.parametrize("store", ["postgres"])
async def test_digits_behind_those_of_the_servers_own_cast_are_compared(
    store: str, target: dict[str, Any], database: str
) -> None:
    async with applied(FLOATS, target, database) as (line, sides):
        line.execute("UPDATE main.same SET c0 = round(c0, 15) WHERE id = 0")
        line.execute("UPDATE main.same SET c1 = round(c1, 20) WHERE id = 1")
        line.execute("UPDATE main.same SET c2 = c2 + 0.0001 WHERE id = 2")
        assert await faults(sides) == {"0": ["c0"], "1": ["c1"], "2": ["c2"]}
