"""The subscription on a real server: each kind of change is seen, nothing of it is held up or lost unsaid."""

from __future__ import annotations

import asyncio

import pytest

from streamer.errors import ConfigError
from streamer.redis.connection import connect
from streamer.redis.gaps import Reason
from streamer.redis.notifications import (
    SETTING,
    ensure_setting,
    missing_classes,
    needed_classes,
    read_setting,
)
from tests.harness.tiers import corners
from tests.harness.watching import EVERY_TYPE, execute, watching

BEFORE = (
    "SET text old",
    "SET other 5",
    "HSET hash f 1 g 2",
    "ZADD zset 1 a 2 b",
    "SADD set a b",
    "SADD set2 b c",
    "RPUSH list 3 1 2",
    "XADD stream 1-1 f v",
    "SET dying 1 EX 1000",
)

CHANGES = {
    "set": ("SET text new", {"text"}),
    "first set": ("SET made 1", {"made"}),
    "incr": ("INCR other", {"other"}),
    "append": ("APPEND text x", {"text"}),
    "setrange": ("SETRANGE text 1 x", {"text"}),
    "bitop": ("BITOP AND hash text other", {"hash"}),
    "mset": ("MSET a1 1 a2 2", {"a1", "a2"}),
    "getdel": ("GETDEL text", {"text"}),
    "del": ("DEL text hash", {"text", "hash"}),
    "unlink": ("UNLINK zset", {"zset"}),
    "expire": ("EXPIRE text 1000", {"text"}),
    "expire in the past": ("EXPIREAT text 1", {"text"}),
    "persist": ("PERSIST dying", {"dying"}),
    "getex": ("GETEX text EX 100", {"text"}),
    "rename": ("RENAME text renamed", {"text", "renamed"}),
    "rename over": ("RENAME text hash", {"text", "hash"}),
    "copy": ("COPY hash copied", {"copied"}),
    "copy over another type": ("COPY hash text REPLACE", {"text"}),
    "hset": ("HSET hash f 9", {"hash"}),
    "hdel": ("HDEL hash f g", {"hash"}),
    "hincrby": ("HINCRBY hash f 1", {"hash"}),
    "zadd": ("ZADD zset 5 a", {"zset"}),
    "zincrby": ("ZINCRBY zset 5 a", {"zset"}),
    "zrem": ("ZREM zset a", {"zset"}),
    "zremrangebyrank": ("ZREMRANGEBYRANK zset 0 -1", {"zset"}),
    "zpopmin": ("ZPOPMIN zset", {"zset"}),
    "zunionstore over a hash": ("ZUNIONSTORE hash 1 zset", {"hash"}),
    "geoadd": ("GEOADD places 13 38 a", {"places"}),
    "sadd": ("SADD set z", {"set"}),
    "spop": ("SPOP set", {"set"}),
    "smove": ("SMOVE set set2 a", {"set", "set2"}),
    "sunionstore over a hash": ("SUNIONSTORE hash set set2", {"hash"}),
    "pfadd": ("PFADD hll a", {"hll"}),
    "rpush": ("RPUSH list 9", {"list"}),
    "lpop": ("LPOP list 3", {"list"}),
    "lmove": ("LMOVE list list2 LEFT LEFT", {"list", "list2"}),
    "lset": ("LSET list 0 x", {"list"}),
    "sort store over a hash": ("SORT list STORE hash", {"hash"}),
    "xadd": ("XADD stream * f v", {"stream"}),
    "xtrim": ("XTRIM stream MAXLEN 0", {"stream"}),
    "set over a hash": ("SET hash x", {"hash"}),
    "lua": ("EVAL redis.call('SET',KEYS[1],1) 1 text", {"text"}),
}
STAND_FOR_ALL = ("set", "del", "expire", "rename over", "hset", "zadd", "smove", "lmove", "xadd", "lua")


@pytest.mark.parametrize("change", corners(CHANGES, *STAND_FOR_ALL))
async def test_each_kind_of_change_is_notified(valkey: str, change: str) -> None:
    line, keys = CHANGES[change]
    async with watching(valkey) as here:
        await here.run("FLUSHALL", *BEFORE)
        await here.touched()
        await here.run(line)
        assert await here.touched() == {(0, key.encode()) for key in keys}


async def test_a_transaction_is_notified_key_by_key(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("MULTI", "SET a 1", "HSET b f 1", "DEL a", "EXEC")
        assert await here.touched() == {(0, b"a"), (0, b"b")}


async def test_an_expired_key_is_notified(valkey: str) -> None:
    async with watching(valkey, {0: [b"*"]}) as here:
        await here.run("SET short 1 PX 1")
        async with asyncio.timeout(60):
            while here.watch.gone == 0:
                here.watch.take(10)
                await here.watch.wait()
        assert [key for _, key, _ in here.watch.take(10)] == [b"short"]


async def test_an_evicted_key_is_notified(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("FLUSHALL", "CONFIG SET maxmemory-policy allkeys-lru")
        try:
            await here.writer.pipeline([("SET", f"k{n}", b"x" * 5000) for n in range(400)])
            await here.touched()
            used = (await here.commands.command("INFO", "memory")).decode()
            limit = int(used.partition("used_memory:")[2].split()[0]) - 1_000_000
            await here.run(f"CONFIG SET maxmemory {limit}")
            await here.writer.pipeline([("SET", "last", "x")])
            gone = await here.touched()
        finally:
            await here.run("CONFIG SET maxmemory 0", "CONFIG SET maxmemory-policy noeviction")
        left = await here.writer.command("DBSIZE")
        assert len(gone - {(0, b"last")}) == 401 - left > 0


async def test_both_databases_of_a_move_are_notified(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("FLUSHALL", "SET a 1", "SET b 1")
        await here.touched()
        await here.run("MOVE a 1", "COPY b c DB 1")
        assert await here.touched() == {(0, b"a"), (1, b"a"), (1, b"c")}


@pytest.mark.parametrize(
    "key", [b"", b"a b\r\nc", bytes(range(256)), b"__:", b"x__:y", b"__keyspace@7__:z", "ключ".encode()]
)
async def test_keys_of_any_bytes(valkey: str, key: bytes) -> None:
    async with watching(valkey) as here:
        await here.writer.command("SET", key, 1)
        assert await here.touched() == {(0, key)}


async def test_only_keys_of_the_globs_are_seen(valkey: str) -> None:
    async with watching(valkey, {0: [b"user:*", b"u*:1", b"a[bc]\\*"], 1: [b"x?"]}) as here:
        await here.run("MSET user:1 1 other 1 ab* 1 ad* 1 abz 1 xy 1", "SELECT 1", "MSET xy 1 user:1 1 xyz 1")
        assert await here.touched() == {(0, b"user:1"), (0, b"ab*"), (1, b"xy")}
        assert here.watch.events == 4  # user:1 matches two globs, and is one key


async def test_what_is_written_right_after_the_start_is_seen(valkey: str) -> None:
    """The acknowledgement came: a full scan that begins now leaves nothing between."""
    for turn in range(20):
        async with watching(valkey) as here:
            await here.run(f"SET turn {turn}")
            assert (0, b"turn") in await here.touched()


async def test_keys_wait_in_the_order_in_which_they_were_first_seen(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("SET a 1", "SET b 1", "SET a 2", "SET c 1")
        await here.settle()
        assert here.watch.pending == 3
        oldest_s = here.watch.oldest_s
        first = here.watch.take(2)
        assert [key for _, key, _ in first] == [b"a", b"b"]
        assert first[0][2] == oldest_s
        await here.run("SET b 2", "SET d 1")
        await here.settle()
        here.watch.put_back(first)  # could not be dealt with: its time is still the first
        again = here.watch.take(10)
        assert [key for _, key, _ in again] == [b"a", b"b", b"c", b"d"]
        assert again[:2] == first
        assert here.watch.pending == 0
        assert here.watch.oldest_s is None


async def test_wait_ends_with_the_next_key(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("SET a 1")
        await here.settle()
        here.watch.clear()
        waiting = asyncio.create_task(here.watch.wait())
        await here.settle()
        assert not waiting.done()
        await here.run("SET b 1")
        async with asyncio.timeout(60):
            await waiting
        assert [key for _, key, _ in here.watch.take(5)] == [b"b"]


async def test_an_overflow_is_a_gap_and_later_keys_are_seen(valkey: str) -> None:
    async with watching(valkey, limit=100) as here:
        await here.writer.pipeline([("SET", f"k{n}", 1) for n in range(250)])
        assert await here.reasons() == {Reason.OVERFLOW}
        assert here.watch.overflows == 2
        assert {key for _, key, _ in here.watch.take(100)} == {b"k%d" % n for n in range(200, 250)}


# -- the server's setting


def test_the_classes_are_as_few_as_can_be() -> None:
    assert needed_classes([]) == "Kgxe$lsz"
    assert needed_classes(["hash", "zset", "hash", "string"]) == "Kgxe$lszh"
    assert set(needed_classes(["stream", "hash"])) == set("Kgxe$lszht")
    assert missing_classes("AKE", EVERY_TYPE) == ""
    assert missing_classes("", "Kg") == "Kg"
    assert missing_classes("gE", "Kgx") == "Kx"


async def test_the_setting_is_added_to_and_nothing_is_taken_away(valkey: str) -> None:
    await execute(valkey, ("CONFIG", "SET", SETTING, "Ehm"))
    async with connect(valkey) as line:
        setting, was_set = await ensure_setting(line, "Kgx", manage=True)
        assert (set(setting or ""), was_set) == (set("EhmKgx"), True)
        assert set(await read_setting(line) or "") == set("EhmKgx")
        assert (await ensure_setting(line, "Kgx", manage=True))[1] is False


async def test_a_setting_that_may_not_be_changed_is_left_and_the_fix_works(valkey: str) -> None:
    await execute(valkey, ("CONFIG", "SET", SETTING, "E"))
    async with connect(valkey) as line:
        with pytest.raises(ConfigError, match="which lacks Kg") as error:
            await ensure_setting(line, "Kg", manage=False)
        assert await read_setting(line) == "E"
        command = error.value.fix.partition("run ")[2].partition(" (")[0]
        await line.command(*command.split())
        setting, was_set = await ensure_setting(line, "Kg", manage=False)
        assert (set(setting or ""), was_set) == (set("EKg"), False)
