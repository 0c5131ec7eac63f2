"""The re-read script and the full scan on a real server: what they say is what the server holds."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Redis

from streamer.redis import reread as module
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.reread import BATCH_KEYS, BIG_BYTES, BIG_ELEMENTS, KeyChanged, KeyState, Reread
from streamer.redis.scan import full, matcher

ANY_BYTES = bytes(range(256))


@pytest.fixture
async def line(valkey: str) -> AsyncIterator[RedisConnection]:
    async with connect(valkey) as line:
        await line.pipeline([("FLUSHALL",), ("SELECT", 0)])
        yield line


@pytest.fixture
def reread(line: RedisConnection) -> Reread:
    return Reread(line)


async def one(reread: Reread, key: bytes, db: int = 0) -> KeyState:
    (state,) = await reread.read([(db, key)])
    return state


# -- keys


async def test_every_type(line: RedisConnection, reread: Reread) -> None:
    await line.pipeline(
        [
            ("SET", ANY_BYTES, ANY_BYTES),
            ("SET", "empty", b""),
            ("HSET", "hash", ANY_BYTES, b"", b"", ANY_BYTES),
            ("RPUSH", "list", "b", "a", "b"),
            ("SADD", "set", "x", "y"),
            ("ZADD", "zset", 0.1, "a", "-inf", "b", "+inf", "c", 1e300, "d", -0.0, "e"),
            ("XADD", "stream", "*", "f", "v"),
        ]
    )
    keys = [ANY_BYTES, b"empty", b"hash", b"list", b"set", b"zset", b"stream", b"none"]
    states = await reread.read([(0, key) for key in keys])
    assert [(s.key, s.type, s.size) for s in states] == [
        (ANY_BYTES, "string", 256),
        (b"empty", "string", 0),
        (b"hash", "hash", 2),
        (b"list", "list", 3),
        (b"set", "set", 2),
        (b"zset", "zset", 5),
        (b"stream", "stream", 1),
        (b"none", None, 0),
    ]
    values: list[Any] = [state.value for state in states]
    assert values[:4] == [ANY_BYTES, b"", {ANY_BYTES: b"", b"": ANY_BYTES}, [b"b", b"a", b"b"]]
    assert sorted(values[4]) == [b"x", b"y"]
    assert values[5] == {b"a": 0.1, b"b": -math.inf, b"c": math.inf, b"d": 1e300, b"e": 0.0}
    assert values[6:] == [None, None]
    assert {state.expires_us for state in states} == {None}


async def test_the_time_is_the_servers_and_the_expiry_is_absolute(
    line: RedisConnection, reread: Reread
) -> None:
    seconds, micros = await line.command("TIME")
    before_us = int(seconds) * 1_000_000 + int(micros)
    await line.pipeline([("SET", "a", 1), ("PEXPIREAT", "a", 4_000_000_000_123)])
    state = await one(reread, b"a")
    assert state.expires_us == 4_000_000_000_123_000
    assert 0 <= state.server_us - before_us < 60_000_000
    assert (await reread.read_string(0, b"a")).expires_us == 4_000_000_000_123_000


async def test_an_expired_key_is_gone(line: RedisConnection, reread: Reread) -> None:
    await line.pipeline([("DEBUG", "SET-ACTIVE-EXPIRE", 0), ("SET", "a", 1, "PX", 1)], errors=True)
    async with asyncio.timeout(60):
        while (await one(reread, b"a")).type is not None:
            pass
    assert await line.command("EXISTS", "a") == 0


async def test_databases_are_kept_apart_and_the_lines_own_stays(
    line: RedisConnection, reread: Reread
) -> None:
    await line.pipeline([("SET", "a", "zero"), ("SELECT", 3), ("SET", "a", "three"), ("SELECT", 0)])
    states = await reread.read([(0, b"a"), (3, b"a"), (1, b"a"), (0, b"a")])
    assert [(s.db, s.value) for s in states] == [(0, b"zero"), (3, b"three"), (1, None), (0, b"zero")]
    assert await line.command("GET", "a") == b"zero"


async def test_more_keys_than_a_batch_come_in_their_order(line: RedisConnection, reread: Reread) -> None:
    count = BATCH_KEYS * 3 + 1
    await line.pipeline([("SET", f"k{n}", n) for n in range(count)])
    order = list(range(count))
    random.Random(4).shuffle(order)
    states = await reread.read([(0, b"k%d" % n) for n in order])
    assert [state.value for state in states] == [b"%d" % n for n in order]


async def test_a_batch_ends_when_its_budget_is_used_up(
    line: RedisConnection, reread: Reread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call reads more than the budget and one key; the rest is asked again, and nothing is lost."""
    await line.pipeline([("RPUSH", f"l{n}", *range(50)) for n in range(40)])
    await line.pipeline([("SET", f"s{n}", b"x" * 5000) for n in range(40)])
    for limit, prefix in (("BATCH_ELEMENTS", b"l"), ("BATCH_BYTES", b"s")):
        monkeypatch.setattr(module, limit, 120)
        await line.command("CONFIG", "RESETSTAT")
        states = await reread.read([(0, b"%b%d" % (prefix, n)) for n in range(40)])
        assert [state.key for state in states] == [b"%b%d" % (prefix, n) for n in range(40)]
        assert all(state.value for state in states)
        info = (await line.command("INFO", "commandstats")).decode()
        calls = int(info.partition("cmdstat_evalsha_ro:calls=")[2].partition(",")[0])
        assert calls >= 13
        monkeypatch.undo()


async def test_big_keys_come_without_their_value(line: RedisConnection, reread: Reread) -> None:
    many = range(BIG_ELEMENTS + 1)
    await line.pipeline(
        [
            ("SET", "string", b"x" * (BIG_BYTES + 1)),
            ("RPUSH", "list", *many),
            ("SADD", "set", *many),
            ("HSET", "hash", *[n for m in many for n in (m, m)]),
            ("ZADD", "zset", *[n for m in many for n in (m, m)]),
        ]
    )
    names = [b"string", b"list", b"set", b"hash", b"zset"]
    states = await reread.read([(0, name) for name in names])
    assert [(s.type, s.value, s.size) for s in states] == [
        (name.decode(), None, BIG_BYTES + 1 if name == b"string" else BIG_ELEMENTS + 1) for name in names
    ]
    whole = await reread.read_string(0, b"string")
    assert (whole.value, whole.size) == (b"x" * (BIG_BYTES + 1), BIG_BYTES + 1)
    assert (await reread.read_string(0, b"gone")).type is None


async def test_the_script_is_loaded_again_when_the_server_has_lost_it(
    line: RedisConnection, reread: Reread
) -> None:
    await line.command("SET", "a", 1)
    for _ in range(2):
        await line.command("SCRIPT", "FLUSH")
        assert (await one(reread, b"a")).value == b"1"


async def test_a_script_reads_one_moment(line: RedisConnection, valkey: str) -> None:
    """Two keys that are always written together are never read apart."""
    async with connect(valkey) as writer:
        reread = Reread(line)
        written = asyncio.Event()

        async def write() -> None:
            for n in range(2000):
                await writer.command("MSET", "a", n, "b", n)
            written.set()

        await writer.command("MSET", "a", "x", "b", "x")
        task = asyncio.create_task(write())
        last_us = 0
        while not written.is_set():
            a, b = await reread.read([(0, b"a"), (0, b"b")])
            assert a.value == b.value
            assert a.server_us >= last_us
            last_us = a.server_us
        await task


# -- large keys


@pytest.mark.parametrize("count", [10, 3000])
@pytest.mark.parametrize("kind", ["zset", "hash", "set", "list"])
async def test_all_members_come_in_steps(
    line: RedisConnection, reread: Reread, kind: str, count: int
) -> None:
    numbers = range(count)
    pairs = [n for m in numbers for n in (m, f"m{m}")]
    fill = {
        "zset": ("ZADD", "k", *pairs),
        "hash": ("HSET", "k", *pairs),
        "set": ("SADD", "k", *numbers),
        "list": ("RPUSH", "k", *numbers),
    }
    await line.command(*fill[kind])
    found: dict[Any, Any] = {}
    last_us = 0
    steps = 0
    async for step in reread.scan_members(0, b"k", kind, count=100):
        assert step.server_us >= last_us
        last_us = step.server_us
        steps += 1
        found |= step.members
    assert steps >= count // 200
    assert (
        found
        == {
            "zset": {b"m%d" % n: float(n) for n in numbers},
            "hash": {b"%d" % n: b"m%d" % n for n in numbers},
            "set": dict.fromkeys([b"%d" % n for n in numbers]),
            "list": {n: b"%d" % n for n in numbers},
        }[kind]
    )


@pytest.mark.parametrize("kind", ["hash", "list", "set", "zset"])
async def test_a_step_of_large_elements_reads_fewer(
    line: RedisConnection, reread: Reread, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_BYTES", 50_000)
    commands = {"hash": "HSET", "list": "RPUSH", "set": "SADD", "zset": "ZADD"}
    for n in range(600):
        member = b"%d" % n + b"x" * 1000
        args = {"hash": (member, member), "zset": (n, member)}.get(kind, (member,))
        await line.command(commands[kind], "k", *args)
    sizes = [len(step.members) async for step in reread.scan_members(0, b"k", kind)]
    assert sum(sizes) >= 600
    assert max(sizes[1:]) <= 60


async def test_members_that_stay_are_found_while_others_come_and_go(
    line: RedisConnection, reread: Reread
) -> None:
    chance = random.Random(11)
    await line.command("ZADD", "k", *[n for m in range(20_000) for n in (m, f"stays{m}")])
    found: dict[Any, Any] = {}
    async for step in reread.scan_members(0, b"k", "zset"):
        found |= step.members
        numbers = [chance.randrange(20_000) for _ in range(60)]
        await line.pipeline(
            [
                ("ZADD", "k", *[n for m in numbers for n in (m, f"comes{m}")]),
                ("ZREM", "k", *[f"comes{m}" for m in numbers[:40]]),
            ]
        )
    assert {b"stays%d" % n for n in range(20_000)} <= set(found)


async def test_members_are_confirmed(line: RedisConnection, reread: Reread) -> None:
    await line.pipeline(
        [("ZADD", "z", 0.1, "a"), ("HSET", "h", "a", "v"), ("SADD", "s", "a"), ("SET", "t", "x")]
    )
    for key, kind, value in ((b"z", "zset", 0.1), (b"h", "hash", b"v"), (b"s", "set", True)):
        step = await reread.confirm_members(0, key, kind, [b"b", b"a", ANY_BYTES])
        assert step.members == {b"b": None, b"a": value, ANY_BYTES: None}
        gone = await reread.confirm_members(0, b"none", kind, [b"a"])
        assert gone.members == {b"a": None}
        with pytest.raises(KeyChanged):
            await reread.confirm_members(0, b"t", kind, [b"a"])


async def test_a_key_that_changes_its_type_on_the_way_is_told(line: RedisConnection, reread: Reread) -> None:
    for kind in ("zset", "list"):
        await line.command("DEL", "k")
        fill: Any = [n for m in range(3000) for n in (m, m)]
        await line.command("ZADD" if kind == "zset" else "RPUSH", "k", *fill)
        with pytest.raises(KeyChanged):
            await _change_on_the_way(line, reread, kind)


async def _change_on_the_way(line: RedisConnection, reread: Reread, kind: str) -> None:
    async for _ in reread.scan_members(0, b"k", kind, count=100):
        await line.command("SET", "k", "x")


async def test_a_stream_is_read_on_from_an_id(line: RedisConnection, reread: Reread) -> None:
    await line.pipeline([("XADD", "k", f"{n}-1", "f", n, "f", ANY_BYTES) for n in range(1, 8)])
    first = await reread.read_stream(0, b"k", count=5)
    assert [at for at, _ in first.entries] == [b"%d-1" % n for n in range(1, 6)]
    assert first.entries[0][1] == [(b"f", b"1"), (b"f", ANY_BYTES)]
    rest = await reread.read_stream(0, b"k", first.entries[-1][0])
    assert [at for at, _ in rest.entries] == [b"6-1", b"7-1"]
    assert (await reread.read_stream(0, b"k", rest.entries[-1][0])).entries == []
    assert (await reread.read_stream(0, b"none")).entries == []


# -- the full scan


async def scanned(line: RedisConnection, globs: dict[int, list[bytes]]) -> set[tuple[int, bytes]]:
    return {(db, key) async for db, keys in full(line, globs, count=50) for key in keys}


async def test_a_full_scan_finds_what_each_database_globs_match(line: RedisConnection) -> None:
    await line.pipeline([("MSET", *[x for n in range(999) for x in (f"user:{n}", 1, f"other:{n}", 1)])])
    await line.pipeline([("SELECT", 2), ("MSET", "user:1", 1, "x", 1, ANY_BYTES, 1), ("SELECT", 0)])
    users = {(0, b"user:%d" % n) for n in range(999)}
    assert await scanned(line, {0: [b"user:*"]}) == users
    assert await scanned(line, {0: [b"user:*", b"other:5", b"none"], 2: [b"*"]}) == users | {
        (0, b"other:5"),
        *((2, key) for key in (b"user:1", b"x", ANY_BYTES)),
    }
    assert await scanned(line, {5: [b"*"]}) == set()


async def test_other_commands_may_come_between_the_steps_of_a_scan(line: RedisConnection) -> None:
    await line.pipeline([("MSET", *[x for n in range(999) for x in (f"k{n}", n)])])
    reread = Reread(line)
    values = []
    async for db, keys in full(line, {0: [b"k*"]}, count=50):
        await line.command("SELECT", 7)
        values += [state.value for state in await reread.read([(db, key) for key in keys])]
    assert sorted(values) == sorted(b"%d" % n for n in range(999))


@pytest.fixture(scope="module")
def client(valkey: str) -> Iterator[Redis]:
    with Redis.from_url(valkey, db=9) as client:
        yield client


LETTERS = st.lists(st.sampled_from([b"a", b"b", b"-", b"]", b"[", b"^", b"*", b"?", b"\\", b"\n", b"\xff"]))


@given(glob=LETTERS.map(b"".join), key=LETTERS.map(b"".join))
@example(glob=b"[b-a]", key=b"a")
@example(glob=b"[^]", key=b"a")
@example(glob=b"[]", key=b"a")
@example(glob=b"[a", key=b"a")
@example(glob=b"a\\", key=b"a\\")
@example(glob=b"[\\]-a]", key=b"]")
@example(glob=b"", key=b"")
@example(glob=b"*", key=b"")
@example(glob=b"**", key=b"")
@example(glob=b"**", key=b"a")
def test_a_glob_matches_here_what_it_matches_on_the_server(client: Redis, glob: bytes, key: bytes) -> None:
    client.flushdb()
    client.set(key, 1)
    assert bool(matcher([glob])(key)) == (client.keys(glob) == [key])
