"""Each sign of a gap, with its real cause; and what is no gap."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamer.errors import ConfigError, SourceUnavailable
from streamer.redis import signs
from streamer.redis.connection import connect
from streamer.redis.gaps import Gap, Gaps, Reason
from streamer.redis.notifications import SETTING
from streamer.redis.signs import Look, changed, read_look
from streamer.sandbox import Sandbox, ValkeyServer
from tests.harness.proxy import Proxy
from tests.harness.tiers import corners
from tests.harness.watching import EVERY_TYPE, WAIT_S, execute, watching, with_login


@pytest.fixture
def add_server(sandbox: Sandbox, redis_program: Path | None) -> Iterator[Callable[..., ValkeyServer]]:
    """Starts a server of the test's own, to kill."""
    servers: list[ValkeyServer] = []

    def add(**settings: str) -> ValkeyServer:
        servers.append(sandbox.add_valkey(settings=settings, program=redis_program).start())
        return servers[-1]

    yield add
    for server in servers:
        server.kill()


# -- data that went without a notification


@pytest.mark.parametrize(
    "line",
    corners(
        ["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC", "FLUSHDB SYNC", "EVAL redis.call('FLUSHDB') 0"], "FLUSHALL"
    ),
)
async def test_a_flush_is_a_gap_at_once(valkey: str, line: str) -> None:
    async with watching(valkey) as here:
        await here.run("SET a 1")
        await here.touched()
        await here.run(line)
        async with asyncio.timeout(WAIT_S):
            await here.gaps.wait()  # no look is needed
        assert [gap.reason for gap in here.gaps.take()] == [Reason.FLUSH]
        assert await here.touched() == set()


async def test_a_flush_is_known_before_the_replies_of_what_was_asked_after_it(valkey: str) -> None:
    async with watching(valkey) as here:
        for _ in range(50):
            await here.run("SET a 1")
            here.gaps.take()
            await here.run("FLUSHDB")
            assert await here.commands.command("EXISTS", "a") == 0
            assert here.gaps.pending


async def test_a_flush_of_a_database_that_is_not_watched_is_a_gap_too(valkey: str) -> None:
    """The server does not say which database it was."""
    async with watching(valkey, {0: [b"*"]}) as here:
        await here.run("SELECT 5", "FLUSHDB")
        assert await here.reasons() == {Reason.FLUSH}


@pytest.mark.parametrize(
    "line", corners(["SWAPDB 0 1", "SWAPDB 3 0", "EVAL redis.call('SWAPDB',0,1) 0"], "SWAPDB 0 1")
)
async def test_a_swap_is_a_gap_at_the_next_look(valkey: str, line: str) -> None:
    async with watching(valkey) as here:
        await here.run("SET a 1")
        assert await here.reasons() == set()
        await here.run(line)
        assert await here.reasons() == {Reason.SWAP}
        assert await here.reasons() == set()


async def test_a_swap_that_failed_is_no_gap(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.writer.pipeline([("SWAPDB", 0, 99)], errors=True)
        assert await here.reasons() == set()


async def test_reset_counters_are_a_gap_once(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("SWAPDB 0 1", "CONFIG RESETSTAT")
        assert await here.reasons() == {Reason.COUNTERS}
        await here.run("SET a 1")
        assert await here.reasons() == set()


async def test_keys_that_expired_without_an_event_are_a_gap(valkey: str) -> None:
    """The setting was off between two looks; only the count of expired keys tells."""
    await execute(valkey, ("FLUSHALL",))  # keys of a database that is not watched would hide it
    async with watching(valkey) as here:
        off = [("CONFIG", "SET", SETTING, ""), ("SET", "a", 1, "PX", 1)]
        on = [("GET", "a"), ("CONFIG", "SET", SETTING, EVERY_TYPE)]
        async with asyncio.timeout(WAIT_S):
            await here.writer.pipeline(off)
            while await here.writer.command("EXISTS", "a"):
                pass
            await here.writer.pipeline(on)
        await here.settle()
        await here.settle()
        assert here.watch.gone == 0
        assert {gap.reason for gap in here.gaps.take()} == {Reason.DRIFT}
        await here.settle()
        assert await here.reasons() == set()


async def test_keys_that_expire_with_their_events_are_no_gap(valkey: str) -> None:
    await execute(valkey, ("FLUSHALL",))
    async with watching(valkey) as here:
        await here.writer.pipeline([("SET", f"k{n}", 1, "PX", 1) for n in range(300)])
        async with asyncio.timeout(WAIT_S):
            while here.watch.gone < 300:
                assert await here.reasons() == set()
        assert await here.reasons() == set()


# -- events that were off


async def test_a_setting_that_was_switched_off_is_a_gap_and_set_again(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.writer.command("CONFIG", "SET", SETTING, "")
        await here.run("SET lost 1")
        assert await here.reasons() == {Reason.SETTING}
        assert await here.touched() == set()
        await here.run("SET seen 1")
        assert await here.touched() == {(0, b"seen")}
        assert await here.reasons() == set()


async def test_a_setting_that_is_not_ours_is_a_gap_and_an_error(valkey: str) -> None:
    async with watching(valkey, manage=True):
        pass  # it is as it must be from here on
    async with watching(valkey, manage=False) as here:
        await here.writer.command("CONFIG", "SET", SETTING, "KE")
        with pytest.raises(ConfigError, match="CONFIG SET notify-keyspace-events"):
            await here.signs.look()
        assert [gap.reason for gap in here.gaps.take()] == [Reason.SETTING]
        assert (await here.writer.command("CONFIG", "GET", SETTING))[SETTING.encode()] in (b"KE", b"EK")


# -- a subscription that is gone


async def test_a_killed_subscription_ends_its_line(valkey: str) -> None:
    async with watching(valkey) as here:
        await here.run("CLIENT KILL TYPE pubsub")
        async with asyncio.timeout(WAIT_S):
            error = await here.watch.connection.ended()
        assert isinstance(error, SourceUnavailable)
        with pytest.raises(SourceUnavailable):
            await here.watch.connection.command("PING")


async def test_an_output_buffer_that_overflows_ends_the_line(valkey_server: ValkeyServer) -> None:
    """A reader that does not keep up is cut off by the server; the end is seen, not a silent loss."""
    url = valkey_server.url
    async with (
        Proxy(valkey_server.host, valkey_server.port) as proxy,
        watching(url, subscribe_url=proxy.url(url)) as here,
    ):
        await here.writer.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")
        try:
            proxy.stall()
            async with asyncio.timeout(WAIT_S):
                while b"psub=2" in await here.writer.command("CLIENT", "LIST", "TYPE", "pubsub"):
                    await here.writer.pipeline([("SET", f"{n}".ljust(1000), 1) for n in range(1000)])
            proxy.flow()
            async with asyncio.timeout(WAIT_S):
                assert isinstance(await here.watch.connection.ended(), SourceUnavailable)
        finally:
            limit = "pubsub 33554432 8388608 60"
            await here.writer.command("CONFIG", "SET", "client-output-buffer-limit", limit)
            await here.run("FLUSHALL")


async def test_a_silent_subscription_is_found_by_its_canary(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "CANARY_LIMIT_S", 0.2)
    url = valkey_server.url
    async with (
        Proxy(valkey_server.host, valkey_server.port) as proxy,
        watching(url, subscribe_url=proxy.url(url)) as here,
    ):
        proxy.stall()
        with pytest.raises(SourceUnavailable, match="silent"):
            await look_until_error(here.signs)
        assert [gap.reason for gap in here.gaps.take()] == [Reason.CANARY]
        assert not here.watch.connection.is_open


async def look_until_error(signs: signs.Signs) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            await signs.look()


async def test_a_server_that_stood_still_is_no_silent_subscription(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "CANARY_LIMIT_S", 0.2)
    async with watching(valkey) as here:
        await here.run("CLIENT PAUSE 600")  # milliseconds
        assert await here.reasons() == set()
        assert await here.reasons() == set()
        assert here.watch.connection.is_open


async def test_a_setting_that_cannot_be_read_is_a_finding(valkey: str) -> None:
    async with watching(valkey):
        pass  # now it is as needed
    rules = ["on", ">secret", "allkeys", "allchannels", "+@all", "-config"]
    await execute(valkey, ("ACL", "SETUSER", "half", "reset", *rules))
    async with watching(with_login(valkey, "half", "secret"), manage=False) as here:
        assert "cannot be read" in here.signs.findings[0]
        await here.run("SET a 1")
        assert (0, b"a") in await here.touched()
    await execute(valkey, ("ACL", "DELUSER", "half"))


# -- another server, or the same one again


async def look_at(url: str) -> Look:
    async with watching(url) as here:
        look = here.signs.last
        assert look is not None
        return look


async def test_a_restart_with_its_data_is_a_gap(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server()
    async with watching(server.url) as here:
        await here.run("SET a 1")
        before = await here.signs.look()
        server.restart()
        async with asyncio.timeout(WAIT_S):
            assert isinstance(await here.watch.connection.ended(), SourceUnavailable)
        with pytest.raises(SourceUnavailable):
            await here.signs.look()
    async with connect(server.url) as line:
        assert await line.command("GET", "a") == b"1"
        assert (await line.command("CONFIG", "GET", SETTING))[SETTING.encode()] == b""
    after = await look_at(server.url)
    assert [gap.reason for gap in changed(before, after)] == [Reason.RESTART]


async def test_a_restart_without_its_data_is_a_gap(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server()
    await execute(server.url, ("SET", "a", 1))
    before = await look_at(server.url)
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()
    after = await look_at(server.url)
    assert after.databases == {}
    assert [gap.reason for gap in changed(before, after)] == [Reason.RESTART]


async def replicate(replica: ValkeyServer, primary: ValkeyServer) -> None:
    """Until the replica has everything."""
    async with connect(replica.url) as line:
        await line.command("CONFIG", "SET", "masterauth", primary.password)
        await line.command("REPLICAOF", primary.host, primary.port)
    await linked(replica.url)


async def linked(url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with connect(url) as line:
                    if b"master_link_status:up" in await line.command("INFO", "replication"):
                        return
            except SourceUnavailable:
                pass  # it is loading


async def test_a_replica_is_watched_and_its_promotion_is_a_gap(
    add_server: Callable[..., ValkeyServer],
) -> None:
    primary, replica = add_server(**{"repl-diskless-sync-delay": "0"}), add_server()
    await replicate(replica, primary)
    async with watching(replica.url, writer_url=primary.url) as here:
        await here.run("SET a 1 PX 60000")
        async with asyncio.timeout(WAIT_S):
            await here.watch.wait()
        assert {key for _, key, _ in here.watch.take(9)} == {b"a"}
        before = await here.signs.look()
        assert (before.role, before.link) == ("slave", "up")
        primary.kill()
        await here.commands.command("REPLICAOF", "NO", "ONE")
        assert await here.reasons() == {Reason.FAILOVER}
        assert here.signs.last is not None
        assert here.signs.last.role == "master"
        assert here.signs.last.run_id == before.run_id


@pytest.mark.thorough
async def test_a_replica_that_loads_everything_anew_is_a_gap(add_server: Callable[..., ValkeyServer]) -> None:
    """Its primary was changed while the link was down for longer than the backlog reaches."""
    primary, replica = add_server(**{"repl-diskless-sync-delay": "0"}), add_server()
    await replicate(replica, primary)
    async with watching(replica.url, writer_url=primary.url) as here:
        replid = here.signs.last.replid if here.signs.last else ""
        await here.commands.command("CONFIG", "SET", "masterauth", "wrong for now")
        await here.run("CLIENT KILL TYPE replica", "SET unseen 1")
        await here.writer.command("CONFIG", "SET", "repl-backlog-size", 16384)
        await here.writer.pipeline([("SET", "filler", b"x" * 10_000) for _ in range(200)])
        await here.commands.command("CONFIG", "SET", "masterauth", primary.password)
        async with asyncio.timeout(60):
            await here.gaps.wait()
        assert {gap.reason for gap in here.gaps.take()} == {Reason.FLUSH}
    await linked(replica.url)
    assert (await look_at(replica.url)).replid == replid  # nothing else tells


async def test_a_replica_without_its_primary_is_a_finding(add_server: Callable[..., ValkeyServer]) -> None:
    primary, replica = add_server(**{"repl-diskless-sync-delay": "0"}), add_server()
    await replicate(replica, primary)
    async with watching(replica.url) as here:
        assert here.signs.findings == []
        primary.kill()
        async with asyncio.timeout(WAIT_S):
            while not here.signs.findings:
                await here.signs.look()
        assert "lost its primary" in here.signs.findings[0]


# -- without a server


def test_a_look_reads_what_an_old_server_does_not_tell() -> None:
    look = read_look("# Server\r\nredis_version:6.0.0\r\nrun_id:abc\r\n", None, 5)
    assert (look.version, look.run_id, look.swaps, look.setting) == ("6.0.0", "abc", 0, None)


def test_gaps_wait_once_a_reason_and_in_order() -> None:
    gaps = Gaps()
    gaps.report(Reason.SWAP, "one")
    gaps.report(Reason.FLUSH, "two")
    gaps.report(Reason.SWAP, "three")
    assert gaps.found == 3
    assert gaps.take() == [Gap(Reason.SWAP, "three"), Gap(Reason.FLUSH, "two")]
    assert not gaps.pending
