"""Redis as a side of the comparison, without Kafka: what each kind of entity and layout is compared as."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.asyncio import RedisCluster

from consumers.reconcile.compare import compare
from consumers.reconcile.fence import EXTRA
from consumers.reconcile.groups import Grouping
from consumers.reconcile.origins.base import Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.proof import Limits, Progress, Proof, make_plan
from consumers.reconcile.settle import Settling
from consumers.reconcile.sides.base import Key
from consumers.reconcile.sides.redis_nodes import Asked, Nodes
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import Sides, make_sides
from consumers.targets.redis_slots import slot_of
from consumers.targets.registry import make_target
from consumers.testing import Log
from streamer.config import Config, RedisSource, parse
from streamer.errors import ConfigError
from streamer.redis.reread import BIG_ELEMENTS
from streamer.redis.rights import capture_rights, reconcile_rights
from streamer.sandbox import ValkeyServer
from tests.harness.pipeline import execute
from tests.harness.redis_capture import ENTITIES
from tests.harness.redis_cluster import MASTERS, Cluster
from tests.harness.tiers import corners

BIG = BIG_ELEMENTS + 200  # members of a key that is read in steps
PIVOT = {
    "pivot": "user_id",
    "columns": {"daily": {"zset": "board:daily"}, "name": {"hash": "player:{user_id}", "field": "name"}},
}


def config_of(url: str, target: dict[str, Any], flows: dict[str, Any], **source: Any) -> Config:
    given = {"kind": "redis", "entities": {**ENTITIES, "stats": PIVOT}, **source}
    text = {
        "name": "acme",
        "sources": {"shop": {"url": url, **given}},
        "targets": {"copy": target},
        "flows": flows,
    }
    return parse(json.dumps(text), Path("tailrace.yaml"), environ={})


@asynccontextmanager
async def sides_of(config: Config, name: str, entity: str, where: str = "") -> AsyncIterator[Sides]:
    flow = config.flows[name]
    origin, store = make_origin(config, flow), make_store(config, flow)
    async with AsyncExitStack() as stack:
        for each in (origin, store):
            stack.push_async_callback(each.close)
            await each.open()
        tables = await stack.enter_async_context(aclosing(origin.tables(flow)))
        async for table in tables:
            if table.name == entity:
                assert not isinstance(table, Refused)
                yield await make_sides(table, store, flow, where=where, only=())
                return
    raise AssertionError(f"the flow takes no {entity}")


async def suspects(config: Config, flow: str, entity: str) -> tuple[tuple[int, int], set[Key]]:
    """(rows of both sides, keys that differ); the rows of these keys, read by themselves, differ too."""
    async with sides_of(config, flow, entity) as sides:
        plan = await make_plan(sides, Limits())
        found = await compare(sides.source, sides.target, plan.parts(), lets_go=sides.compared.lets_go)
        keys = sorted(found.suspects)
        ours, theirs = await sides.source.rows(keys), await sides.target.rows(keys)
        for key in keys:
            one, other = ours.get(key), theirs.get(key)
            assert (one and one.texts) != (other and other.texts), key
        return (found.source_rows, found.target_rows), found.suspects


# An entity and a Postgres

WANTED = {
    "players": [
        "CREATE TABLE m.players (id text PRIMARY KEY, score bigint, name text)",
        r"INSERT INTO m.players VALUES ('1', 7, 'a'), ('2', NULL, ''), ('\xff00', -1, '\xfe')",
    ],
    "scores": [
        "CREATE TABLE m.scores (period text, user_id text, points float8, PRIMARY KEY (period, user_id))",
        f"INSERT INTO m.scores SELECT 'daily', 'u' || n, n / 3.0::float8 FROM generate_series(1, {BIG}) n",
        "INSERT INTO m.scores VALUES ('all', 'x', '-infinity'), ('all', '', 1e300)",
    ],
    "sessions": [
        "CREATE TABLE m.sessions (sid text PRIMARY KEY, value jsonb)",
        r"""INSERT INTO m.sessions VALUES ('1', '{"bb":1.50,"a":["é\u0001\"",1e3,-0,null],"a":[true]}'),
        ('2', '"x"')""",
    ],
    "notes": [
        "CREATE TABLE m.notes (id text PRIMARY KEY, value text, until timestamptz)",
        "INSERT INTO m.notes VALUES ('1', 'n', NULL), ('2', '', '2100-01-01T00:00:00.5Z')",
    ],
    "fields": [
        "CREATE TABLE m.fields (id text, f text, v text, PRIMARY KEY (id, f))",
        f"INSERT INTO m.fields SELECT '1', 'f' || n, 'v' FROM generate_series(1, {BIG}) n",
    ],
    "tags": [
        "CREATE TABLE m.tags (id text, tag text, PRIMARY KEY (id, tag))",
        "INSERT INTO m.tags VALUES ('1', 'a'), ('1', 'b')",
    ],
    "whole": [
        "CREATE TABLE m.whole (id text PRIMARY KEY, value jsonb)",
        """INSERT INTO m.whole VALUES ('1', '["a", "b"]')""",
    ],
    "queue": [
        "CREATE TABLE m.queue (id text, i bigint, v text, PRIMARY KEY (id, i))",
        f"INSERT INTO m.queue SELECT '1', n - 1, 'v' || n FROM generate_series(1, {BIG}) n",
    ],
    "lists": [
        "CREATE TABLE m.lists (id text PRIMARY KEY, value jsonb)",
        f"""INSERT INTO m.lists VALUES ('1', '["b", "a"]'),
        ('2', (SELECT jsonb_agg('v' || n ORDER BY n) FROM generate_series(1, {BIG}) n))""",
    ],
    "log": [
        "CREATE TABLE m.log (id text, entry text, fields jsonb, PRIMARY KEY (id, entry))",
        """INSERT INTO m.log SELECT '1', n || '-1', '{"a": "1"}' FROM generate_series(1, 600) n""",
    ],
    "stats": [
        "CREATE TABLE m.stats (user_id text PRIMARY KEY, daily float8, name text)",
        f"INSERT INTO m.stats SELECT 'u' || n, n / 3.0::float8 FROM generate_series(1, {BIG}) n",
        r"INSERT INTO m.stats VALUES ('1', NULL, 'a'), ('2', NULL, ''), ('\xff00', NULL, '\xfe')",
    ],
}
# The table, what is done to it, and the rows that differ then.
FAULTS = {
    "players": ("UPDATE m.players SET name = NULL WHERE id = '2'", {("2",)}),
    "scores": (
        "UPDATE m.scores s SET points = o.points FROM m.scores o WHERE s.period = 'daily'"
        " AND o.period = 'daily' AND (s.user_id, o.user_id) IN (('u3', 'u4'), ('u4', 'u3'))",
        {("daily", "u3"), ("daily", "u4")},
    ),
    "sessions": ("UPDATE m.sessions SET value = '\"y\"' WHERE sid = '2'", {("2",)}),
    "notes": ("UPDATE m.notes SET until = until + interval '1 ms' WHERE id = '2'", {("2",)}),
    "fields": ("DELETE FROM m.fields WHERE f = 'f9'", {("1", "f9")}),
    "tags": ("INSERT INTO m.tags VALUES ('2', 'a'), ('1', 'c')", {("2", "a"), ("1", "c")}),
    "whole": ("UPDATE m.whole SET value = '[\"a\"]'", {("1",)}),
    "queue": ("UPDATE m.queue SET v = 'x' WHERE i = 1100", {("1", "1100")}),
    "lists": ("UPDATE m.lists SET value = value - 5", {("2",)}),
    "log": ("UPDATE m.log SET fields = '{\"a\": \"2\"}' WHERE entry = '550-1'", {("1", "550-1")}),
    "stats": ("UPDATE m.stats SET name = 'b' WHERE user_id = '1'", {("1",)}),
}


async def fill(client: aioredis.Redis) -> None:
    async with client.pipeline(transaction=False) as line:
        line.hset("player:1", mapping={"score": "+07", "name": "a"})
        line.hset("player:2", mapping={"name": ""})
        line.hset(b"player:\xff\x00", mapping={"score": -1, "name": b"\xfe"})
        line.zadd("board:daily", {f"u{n}": n / 3 for n in range(1, BIG + 1)})
        line.zadd("board:all", {"x": float("-inf"), "": 1e300})
        line.set("session:1", '{"bb":1.50,"a":["é\\u0001\\"",1e3,-0,null],"a":[true]}')
        line.set("session:2", '"x"')
        line.set("session:3", "no JSON")  # it has never been published
        line.set("note:1", "n")
        line.set("note:2", "", pxat=4_102_444_800_500)
        line.rpush("note:3", "of another type")
        line.hset("field:1", mapping={f"f{n}": "v" for n in range(1, BIG + 1)})
        line.sadd("tag:1", "a", "b")
        line.sadd("whole:1", "b", "a")
        line.rpush("queue:1", *[f"v{n}" for n in range(1, BIG + 1)])
        line.rpush("list:1", "b", "a")
        line.rpush("list:2", *[f"v{n}" for n in range(1, BIG + 1)])
        for n in range(1, 601):
            line.xadd("log:1", {"a": 1}, id=f"{n}-1")
        await line.execute()


async def test_every_kind_of_entity_against_a_postgres(
    client: aioredis.Redis, redis_server: ValkeyServer, target_database: str
) -> None:
    await fill(client)
    await execute(target_database, "CREATE SCHEMA m", *[sql for table in WANTED.values() for sql in table])
    config = config_of(
        redis_server.url,
        {"kind": "postgres", "url": target_database},
        {"copies": {"from": "shop.*", "to": "copy.m"}},
    )
    for entity in WANTED:
        rows, found = await suspects(config, "copies", entity)
        assert (entity, found) == (entity, set())
        assert rows[0] == rows[1] > 0
        fault, keys = FAULTS[entity]
        await execute(target_database, fault)
        assert (await suspects(config, "copies", entity))[1] == keys, entity
    async with sides_of(config, "copies", "scores") as sides:
        grouping = Grouping(("period",), "", (), 0)
        counts = {("daily",): [BIG], ("all",): [2]}
        assert await sides.source.groups(grouping) == await sides.target.groups(grouping) == counts


async def test_what_a_stream_proves_not_to_be_trimmed_is_drift(
    client: aioredis.Redis, redis_server: ValkeyServer, target_database: str
) -> None:
    streams = {
        "again": ([9], ["1", "2", "3", "9"]),
        "ahead": ([2], ["2", "5"]),
        "deleted": ([1, 2, 3], ["1", "2", "3"]),
        "gone": ([], ["1"]),
        "lost": ([5, 6, 7, 8], ["1", "2", "5", "6", "7", "8"]),
        "trimmed": ([1, 2, 10, 11], ["1", "2", "10", "11"]),
    }
    await execute(
        target_database,
        "CREATE TABLE log (id text, entry text, fields jsonb, PRIMARY KEY (id, entry))",
        "INSERT INTO log VALUES ('trimmed', 'of no stream', '{}')",
    )
    for name, (ids, rows) in streams.items():
        for n in ids:
            await client.xadd(f"log:{name}", {"n": "1"}, id=f"{n}-0")
        values = ", ".join(f"""('{name}', '{n}-0', '{{"n": "1"}}')""" for n in rows)
        await execute(target_database, f"INSERT INTO log VALUES {values}")
    await client.xdel("log:deleted", "2-0")
    await client.xtrim("log:lost", maxlen=1, approximate=False)
    await client.xtrim("log:trimmed", maxlen=1, approximate=False)
    wanted = {
        *(("again", f"{n}-0") for n in (1, 2, 3)),
        ("ahead", "5-0"),
        ("gone", "1-0"),
        *(("lost", f"{n}-0") for n in (1, 2)),  # it has lost three: the last of those that are not there
    }
    target = {"kind": "postgres", "url": target_database}
    assert (
        await extras(config_of(redis_server.url, target, {"log": {"from": "shop.log", "to": "copy.public"}}))
        == wanted
    )
    ignored = {"log": {"from": "shop.log", "to": "copy.public", "delete": "ignore"}}
    assert await extras(config_of(redis_server.url, target, ignored)) == set()


async def extras(config: Config) -> set[Key]:
    """Rows of the target alone that are drift; saved progress keeps them."""
    async with sides_of(config, "log", "log") as sides:
        judge = Settling(sides.source, sides.target, pause_s=0.0)

        async def open_judge() -> Settling:
            return judge

        async def save(progress: Progress) -> None:
            assert Progress.load(json.loads(json.dumps(progress.dump()))) == progress

        progress = Progress()
        await Proof(sides, await make_plan(sides, Limits()), progress, Limits(), open_judge, save).run()
        assert {kind for kind, _ in progress.faults} <= {EXTRA}
        assert progress.counts.extra == len(progress.faults)
        return {key for _, key in progress.faults}


async def test_several_databases_and_keys_of_any_bytes(
    client: aioredis.Redis, redis_server: ValkeyServer, target_database: str
) -> None:
    entities = {
        "blobs": {"pattern": "blob:{n}:{id*}", "type": "string", "key": {"n": "int", "id": "bytes"}},
        "board": {"pattern": "z:{n}", "type": "zset", "rows": {"member": "m"}, "key": {"n": "int"}},
    }
    await client.set(b"blob:7:\xff:\x00", "a")
    await client.set(b"blob:07:x", "no key of the entity")
    await client.zadd("z:1", {b"\xfe": -0.5, "\\xff": 1})
    await client.select(2)
    await client.set(b"blob:7:\xff:\x00", "b")
    await execute(
        target_database,
        "CREATE SCHEMA m",
        "CREATE TABLE m.blobs (db bigint, n int, id bytea, value text, PRIMARY KEY (db, n, id))",
        r"INSERT INTO m.blobs VALUES (0, 7, '\xff3a00', 'a'), (2, 7, '\xff3a00', 'b')",
        "CREATE TABLE m.board (db bigint, n numeric, m text, score real, PRIMARY KEY (db, n, m))",
        r"INSERT INTO m.board VALUES (0, 1, '\xfe', -0.5), (0, 1, '\x5c786666', 1)",
    )
    target = {"kind": "postgres", "url": target_database}
    flows = {"copies": {"from": "shop.*", "to": "copy.m"}}
    config = config_of(redis_server.url, target, flows, entities=entities, databases=[0, 2])
    assert await suspects(config, "copies", "blobs") == ((2, 2), set())
    assert await suspects(config, "copies", "board") == ((2, 2), set())
    await execute(
        target_database,
        "UPDATE m.blobs SET db = 1 WHERE db = 2",
        "UPDATE m.board SET score = 0 WHERE score = 1",
    )
    assert (await suspects(config, "copies", "blobs"))[1] == {(db, "7", "\\xff3a00") for db in ("1", "2")}
    assert (await suspects(config, "copies", "board"))[1] == {("0", "1", "\\x5c786666")}


# A Postgres and a Redis, each layout

DDL = (
    "CREATE TABLE item (id bigint, part text, name text, price numeric(12,2), ok bool, big float8,"
    " tags text[], made timestamptz, doc jsonb, raw bytea, rating float8, PRIMARY KEY (id, part))"
)
TYPES: dict[str, str | tuple[str, str]] = {
    "id": "bigint",
    "part": "text",
    "name": "text",
    "price": "numeric(12,2)",
    "ok": "boolean",
    "big": "double precision",
    "tags": ("text[]", "array:text"),
    "made": "timestamp with time zone",
    "doc": "jsonb",
    "raw": "bytea",
    "rating": "double precision",
}
ROWS: list[dict[str, Any]] = [
    {
        "id": n,
        "part": "a:b%" if n % 2 else "",
        "name": None if n % 3 else f"n{n}" if n % 5 else "",
        "price": f"{n}.50" if n % 7 else None,
        "ok": n % 2 == 0,
        "big": -0.0 if n % 4 == 0 else 1e300 if n % 4 == 1 else "NaN",
        "tags": ["x", None, "NULL"],
        "made": "2026-11-04T11:51:30.5Z",
        "doc": '{"a": 1.50}',
        "raw": "AQI=",
        "rating": -0.0 if n % 2 else n / 8,  # a small zset has one zero
    }
    for n in range(1, 121)
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "hashes": {"to": "copy.h"},
    "texts": {"to": "copy.j", "as": "json"},
    "board": {"to": "copy.z", "as": "zset", "key": "z:{id}", "member": "p:{part}", "score": "price"},
    "places": {"to": "copy.z2", "as": "zset", "key": "all", "member": "{id}/{part}", "score": "price"},
    "ratings": {"to": "copy.z3", "as": "zset", "key": "r:{id}", "member": "{part}", "score": "rating"},
    "members": {"to": "copy.s", "as": "set", "key": "members", "member": "{part}+{id}"},
    "tagged": {
        "to": "copy.t",
        "key": "{part}-{tenant}:{id}",
        "columns": {"name": "label", "tenant": {"value": "acme"}},
        "delete": "soft(gone)",
    },
}
Keys = set[tuple[str, str]]


async def write_faults(client: aioredis.Redis | RedisCluster) -> dict[str, Keys]:
    """What differs afterwards."""
    one, two, three = ("1", "a:b%"), ("2", ""), ("3", "a:b%")
    await client.hset("h:item:1:a:b%", "big", f"1{300 * '0'}")  # the same number, spelt otherwise
    await client.hdel("h:item:2:", "doc")
    await client.delete("h:item:3:a:b%")
    await client.hset("h:item:7777:", mapping={"id": "7777", "part": ""})
    await client.hset("h:item:8888:", mapping={"other": "no row of the flow"})
    document = await client.get("j:item:2:")
    assert isinstance(document, bytes)
    await client.set("j:item:2:", document.replace(b'"ok":true', b'"ok":1'))
    await client.set("j:item:3:a:b%", b"[]")
    await client.zadd("z:1", {"p:a:b%": 1.25})
    await client.zrem("z:2", "p:")
    await client.zadd("z:3", {"nobody's": 1})
    await client.zadd("all", {"1/a:b%": 2.5, "2/": 1.5, "7777/": 1})
    await client.zadd("r:1", {"a:b%": 5e-324})
    await client.srem("members", "a:b%25+1")
    await client.sadd("members", "+9999", "x")
    await client.hset("a:b%25-acme:1", "gone", "2026-11-04T11:51:30Z")
    await client.hset("-acme:2", "tenant", "other")
    return {
        "hashes": {one, two, three, ("7777", "")},
        "texts": {two, three},
        "board": {one, two},
        "places": {one, two, ("7777", "")},
        "ratings": {one},
        "members": {one, ("9999", "")},
        "tagged": {one, two},
    }


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, aioredis.Redis | RedisCluster]]:
    """A target of this kind: its URL and a client."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("redis_cluster")
        async with RedisCluster.from_url(cluster.url) as nodes:
            yield cluster.url, nodes
    else:
        server: ValkeyServer = request.getfixturevalue("redis_server")
        async with aioredis.from_url(server.url) as client:
            yield server.url, client


@pytest.mark.parametrize("place", corners(["one server", "cluster"], "one server"), indirect=True)
async def test_every_layout_against_a_postgres(
    place: tuple[str, aioredis.Redis | RedisCluster], database: str
) -> None:
    url, client = place
    flows = {name: {"from": "shop.public.item", **keys} for name, keys in LAYOUTS.items()}
    source = {"kind": "postgres", "url": database, "tables": {"public.*": {}}}
    text = {
        "name": "acme",
        "sources": {"shop": source},
        "targets": {"copy": {"kind": "redis", "url": url}},
        "flows": flows,
    }
    config = parse(json.dumps(text), Path("tailrace.yaml"), environ={})
    log = Log("shop", partitions=1)
    table = log.table("item", TYPES, ("id", "part"))
    values = []
    for row in ROWS:
        table.create(row)
        raw = {**row, "tags": '{x,NULL,"NULL"}', "raw": "\\x0102"}
        values.append("(" + ", ".join(_sql(value) for value in raw.values()) + ")")
    await execute(database, DDL, f"INSERT INTO item VALUES {', '.join(values)}")
    all_flows = list(config.flows.values())
    target = make_target(config.targets["copy"], "acme.copy", all_flows)
    await target.open()
    try:
        await log.apply(target, all_flows)
    finally:
        await target.close()
    with_score = sum(row["price"] is not None for row in ROWS)
    for name, layout in LAYOUTS.items():
        rows, found = await suspects(config, name, "item")
        assert (name, found) == (name, set())
        assert rows == ((with_score if layout.get("score") == "price" else len(ROWS),) * 2)
    for name, keys in (await write_faults(client)).items():
        assert (name, (await suspects(config, name, "item"))[1]) == (name, keys)


def _sql(value: Any) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


@pytest.mark.thorough
async def test_a_key_is_found_while_its_slot_moves(redis_cluster: Cluster) -> None:
    slot = slot_of("user:7")
    to = (redis_cluster.owner(slot) + 1) % MASTERS
    async with RedisCluster.from_url(redis_cluster.url) as client:
        await client.set("user:7", "there")
    nodes = Nodes(redis_cluster.url, reconcile_rights((), cluster=True))
    await nodes.open()
    try:
        asked = [Asked("user:7", ("GET", "user:7"))]
        for move in (redis_cluster.begin_move, redis_cluster.move_keys, redis_cluster.end_move):
            move(slot, to)
            assert await nodes.ask(asked) == [b"there"]
    finally:
        await nodes.close()


# Redis on both sides


async def test_an_entity_against_a_hash_and_a_zset(
    client: aioredis.Redis, redis_server: ValkeyServer
) -> None:
    """By users that have only the rights that are asked for."""
    await fill(client)
    everything = redis_server.url.removesuffix("/0")
    url = everything.replace("default:", "ann:")
    zset = {"as": "zset", "key": "b:{period}", "member": "user_id", "score": "points"}
    config = config_of(
        f"{url}/0",
        {"kind": "redis", "url": f"{url}/1"},
        {
            "hashes": {"from": "shop.players", "to": "copy.h", "ttl": "1h"},
            "boards": {"from": "shop.scores", "to": "copy.z", **zset},
        },
    )
    async with aioredis.from_url(f"{everything}/1") as target:
        await target.hset("h:players:1", mapping={"id": "1", "score": 7, "name": "a"})
        await target.hset("h:players:\\xff00", mapping={"id": "\\xff00", "score": -1, "name": "\\xfe"})
        await target.zadd("b:all", {"x": float("-inf"), "": 1e300})
        await target.zadd("b:daily", {f"u{n}": n / 3 for n in range(1, BIG + 1)})
        source = config.sources["shop"]
        assert isinstance(source, RedisSource)
        await client.execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{redis_server.password}")
        for rights in (capture_rights("acme", source), reconcile_rights(config.flows.values())):
            await client.execute_command(*rights.rule("ann").split())
        assert await suspects(config, "hashes", "players") == ((3, 2), set())  # one has expired
        assert await suspects(config, "boards", "scores") == ((BIG + 2,) * 2, set())
        with pytest.raises(ConfigError, match="--where is a condition in SQL, and a Redis source has none"):
            async with sides_of(config, "hashes", "players", "score > 1"):
                pass
        await target.hset("h:players:1", "score", "07")
        await target.zadd("b:daily", {"u5": 5 / 3 + 1e-15})
        assert (await suspects(config, "hashes", "players"))[1] == {("1",)}
        assert (await suspects(config, "boards", "scores"))[1] == {("daily", "u5")}
