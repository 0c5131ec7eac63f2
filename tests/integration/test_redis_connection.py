"""The line to a real server: replies and pushes in their order, and what is said when it cannot be used."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from streamer.config.redis_entities import RedisEntity
from streamer.errors import ConfigError, FatalError, SourceUnavailable
from streamer.redis.address import parse_address, place
from streamer.redis.chunks import Chunks, ChunkWalk
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.pivot import PivotEntity
from streamer.redis.pivot_reads import read_rows
from streamer.redis.reread import Reread
from streamer.redis.scan import full
from streamer.sandbox import Sandbox, ValkeyServer
from tests.harness.proxy import Proxy
from tests.harness.tiers import corners
from tests.harness.watching import CANARY, WAIT_S, execute, watching, with_login

PASSWORD = "s3cret of the user @:/"
TLS = Path(__file__).parents[1] / "harness" / "tls"  # a certificate of 127.0.0.1 that signs itself


@pytest.fixture
def add_server(sandbox: Sandbox, redis_program: Path | None) -> Iterator[Callable[..., ValkeyServer]]:
    servers: list[ValkeyServer] = []

    def add(**settings: str) -> ValkeyServer:
        servers.append(sandbox.add_valkey(settings=settings, program=redis_program).start())
        return servers[-1]

    yield add
    for server in servers:
        server.kill()


# -- replies


async def test_replies_come_in_order_and_keep_their_types(valkey: str) -> None:
    async with connect(valkey) as line:
        await line.pipeline([("DEL", "z"), ("ZADD", "z", 1.5, "m")])
        replies = await line.pipeline(
            [("ECHO", b"\x00\r\n\xff"), ("GET", "none of it"), ("ZSCORE", "z", "m"), ("INCRBY", "n", 2**40)]
        )
        assert replies == [b"\x00\r\n\xff", None, 1.5, replies[3]]
        assert replies[3] >= 2**40


async def test_a_reply_of_false_is_a_reply(valkey: str) -> None:
    """RESP3 has booleans; the parser's own word for "no whole reply yet" must be another."""
    async with connect(valkey) as line:
        line.data_received(b"")
        asked = line.begin([("PING",)])
        line.data_received(b"#f\r\n")  # as a module would answer
        assert await line.finish(asked, [("PING",)]) == [False]


async def test_the_first_error_of_a_pipeline_is_raised(valkey: str) -> None:
    async with connect(valkey) as line:
        with pytest.raises(FatalError, match="INCR was refused"):
            await line.pipeline([("SET", "text", "x"), ("INCR", "text"), ("PING",)])
        assert await line.command("PING") == b"PONG"
        replies = await line.pipeline([("INCR", "text"), ("PING",)], errors=True)
        assert str(replies[0]).startswith("ERR value is not an integer")
        assert replies[1] == b"PONG"


async def test_a_command_that_nobody_waits_for_any_more_takes_its_reply_along(valkey: str) -> None:
    async with connect(valkey) as line:
        task = asyncio.create_task(line.command("BLPOP", "nothing", "0.2"))
        await asyncio.sleep(0)
        task.cancel()
        assert await line.command("ECHO", "mine") == b"mine"
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_tasks_share_a_line(valkey: str) -> None:
    async with connect(valkey) as line:

        async def ask(number: int) -> None:
            assert await line.pipeline([("ECHO", f"{number}"), ("ECHO", "x")]) == [b"%d" % number, b"x"]

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(ask(number))


def test_the_loop_that_the_program_runs_on(valkey: str) -> None:
    """Tests have asyncio's own loop, `tailrace run` has uvloop's."""

    async def run() -> set[tuple[int, bytes]]:
        async with watching(valkey) as here:
            await here.run("SET a 1")
            return await here.touched()

    assert uvloop.run(run()) == {(0, b"a")}


# -- ends


async def test_a_cut_line_fails_who_waits_and_who_comes(valkey_server: ValkeyServer) -> None:
    async with (
        Proxy(valkey_server.host, valkey_server.port) as proxy,
        connect(proxy.url(valkey_server.url)) as line,
    ):
        waiting = asyncio.create_task(line.command("BLPOP", "nothing", 0))
        async with asyncio.timeout(WAIT_S):
            while b"blpop" not in (await execute(valkey_server.url, ("CLIENT", "LIST")))[0]:  # type: ignore[operator]
                pass
        proxy.cut()
        with pytest.raises(SourceUnavailable):
            await waiting
        with pytest.raises(SourceUnavailable):
            await line.command("PING")
        assert isinstance(await line.ended(), SourceUnavailable)


async def test_a_killed_server_is_unavailable(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server()
    async with connect(server.url) as line:
        server.kill()
        with pytest.raises(SourceUnavailable):
            await line.command("PING")
    with pytest.raises(SourceUnavailable, match="no connection") as error:
        async with connect(server.url):
            pass
    assert server.password not in str(error.value)


async def test_a_server_without_room_is_unavailable(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server(maxclients="1")
    async with connect(server.url):
        with pytest.raises(SourceUnavailable):
            async with connect(server.url):
                pass


# -- who may come in


async def refused(url: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        async with connect(url):
            pass
    return error.value


async def test_a_wrong_password_is_told_and_not_printed(valkey_server: ValkeyServer) -> None:
    error = await refused(with_login(valkey_server.url, "", "not-the-password"))
    assert "password is wrong" in str(error)
    assert "not-the-password" not in str(error)
    assert "not-the-password" not in repr(error.__dict__)


async def test_an_unknown_user_is_told(valkey_server: ValkeyServer) -> None:
    error = await refused(with_login(valkey_server.url, "nobody", "x-y-z"))
    assert "nobody@" in str(error)
    assert "x-y-z" not in str(error)


async def test_a_missing_password_is_told(valkey_server: ValkeyServer) -> None:
    error = await refused(f"redis://{valkey_server.host}:{valkey_server.port}/0")
    assert "wants a password" in str(error)


async def test_a_password_for_a_server_without_one_is_told(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server()
    await execute(server.url, ("CONFIG", "SET", "requirepass", ""), ("ACL", "SETUSER", "default", "nopass"))
    async with connect(f"redis://{server.host}:{server.port}/0") as line:
        assert await line.command("PING") == b"PONG"


async def test_a_database_that_is_not_there_is_told(valkey_server: ValkeyServer) -> None:
    error = await refused(valkey_server.url.removesuffix("/0") + "/99")
    assert "DB index" in str(error)


async def test_a_cluster_is_refused_by_name(add_server: Callable[..., ValkeyServer]) -> None:
    server = add_server(**{"cluster-enabled": "yes"})
    assert "Redis Cluster" in str(await refused(server.url))


async def test_a_sentinel_is_refused_by_name(add_server: Callable[..., ValkeyServer]) -> None:
    async with answering({b"server": b"redis", b"version": b"7.0.15", b"mode": b"sentinel"}) as url:
        assert "Sentinel" in str(await refused(url))


async def test_a_server_without_resp3_is_refused() -> None:
    async with answering("-ERR unknown command `HELLO`, with args beginning with: `3`") as url:
        assert "RESP3" in str(await refused(url))


async def test_a_server_that_is_loading_is_unavailable() -> None:
    async with answering("-LOADING Redis is loading the dataset in memory") as url:
        with pytest.raises(SourceUnavailable, match="loading its data"):
            async with connect(url):
                pass


@asynccontextmanager
async def answering(reply: dict[bytes, bytes] | str) -> AsyncIterator[str]:
    """A port that answers whatever comes with one reply: what no server here can be brought to say."""
    if isinstance(reply, str):
        data = reply.encode() + b"\r\n"
    else:
        words = b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for pair in reply.items() for w in pair)
        data = b"%%%d\r\n" % len(reply) + words

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(data)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


# -- what a user needs

RIGHTS = ["%R~*", "&__keyspace@0__:*", "&__keyspace@1__:*", "&__tailrace__:*"]
PAGE = Path(__file__).parents[2] / "docs" / "redis-server.md"
COMMANDS = re.findall(r"\+\S+", PAGE.read_text(encoding="utf-8").split("```")[1])


PIVOT = PivotEntity(
    "game",
    "users",
    RedisEntity.model_validate(
        {
            "pivot": "user_id",
            "columns": {
                "points": {"zset": "zset"},
                "name": {"hash": "hash"},
            },
        }
    ),
    several=False,
)


async def capture_all(url: str) -> None:
    """Each thing a session does."""
    async with watching(url) as here:
        reread = Reread(here.commands)
        async for db, keys in full(here.commands, {0: [b"*"]}):
            for state in await reread.read([(db, key) for key in keys]):
                if state.type in ("hash", "set", "zset", "list"):
                    async for _ in reread.scan_members(db, state.key, state.type):
                        pass
                if state.type in ("hash", "set", "zset"):
                    await reread.confirm_members(db, state.key, state.type, [b"a"])
                    await ChunkWalk(reread, Chunks(state.type, None), db, state.key).step(b"0")
                if state.type == "stream":
                    await reread.read_stream(db, state.key)
                    await here.commands.pipeline([("SELECT", db), ("XINFO", "STREAM", state.key)])
                if state.type == "string":
                    await reread.read_string(db, state.key)
        await read_rows(here.commands, 0, [PIVOT.row(0, b"a")])


@pytest.fixture
async def limited(valkey_server: ValkeyServer) -> AsyncIterator[RedisConnection]:
    """An administrator's line; the user `limited` may do what a session needs, and nothing else."""
    async with connect(valkey_server.url) as admin:
        await admin.pipeline(
            [
                ("FLUSHALL",),
                ("SET", "text", "x"),
                ("HSET", "hash", "a", 1),
                ("SADD", "set", "a"),
                ("ZADD", "zset", 1, "a"),
                ("RPUSH", "list", "a"),
                ("XADD", "stream", "*", "a", 1),
                ("SCRIPT", "FLUSH"),
                ("CONFIG", "SET", "notify-keyspace-events", ""),
                ("ACL", "SETUSER", "limited", "reset", "on", f">{PASSWORD}", *RIGHTS, *COMMANDS),
            ]
        )
        yield admin
        await admin.command("ACL", "DELUSER", "limited")


async def test_the_rights_in_the_list_are_enough(valkey: str, limited: RedisConnection) -> None:
    await capture_all(with_login(valkey, "limited", PASSWORD))


NEEDED = [c for c in COMMANDS if c not in ("+hello", "+ping", "+client|setname")]


@pytest.mark.parametrize("command", corners(NEEDED, "+scan", "+psubscribe"))
async def test_a_missing_right_is_named_with_the_line_that_mends_it(
    valkey: str, limited: RedisConnection, command: str
) -> None:
    await limited.command("ACL", "SETUSER", "limited", f"-{command[1:]}")
    url = with_login(valkey, "limited", PASSWORD)
    with pytest.raises(ConfigError) as error:
        await capture_all(url)
    assert PASSWORD not in str(error.value)
    line = error.value.fix.partition("run ")[2].partition(";")[0]
    assert line == f"ACL SETUSER limited {command}"
    await limited.command(*line.split())
    await capture_all(url)


@pytest.mark.parametrize("channel", corners(RIGHTS[1:], RIGHTS[1]))
async def test_a_missing_channel_is_named_with_the_line_that_mends_it(
    valkey: str, limited: RedisConnection, channel: str
) -> None:
    left = [right for right in RIGHTS[1:] if right != channel]
    await limited.command("ACL", "SETUSER", "limited", "resetchannels", *left)
    url = with_login(valkey, "limited", PASSWORD)
    with pytest.raises(ConfigError) as error:
        await capture_all(url)
    line = error.value.fix.partition("run ")[2]
    await limited.command(*line.split())
    await capture_all(url)
    channels = str((await limited.command("ACL", "GETUSER", "limited"))[b"channels"])
    assert channel in channels or CANARY.decode() in channels


async def test_missing_keys_are_named_with_the_line_that_mends_them(
    valkey: str, limited: RedisConnection
) -> None:
    await limited.command("ACL", "SETUSER", "limited", "resetkeys", "%R~text")
    url = with_login(valkey, "limited", PASSWORD)
    with pytest.raises(ConfigError) as error:
        await capture_all(url)
    await limited.command(*error.value.fix.partition("run ")[2].split())
    await capture_all(url)


# -- other ways in


async def test_a_unix_socket(add_server: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    server = add_server(unixsocket=str(path), unixsocketperm="700")
    async with connect(f"unix://:{server.password}@{path}?db=3") as line:
        assert line.db == 3
        assert await line.command("PING") == b"PONG"


async def test_tls(valkey_server: ValkeyServer) -> None:
    """A TLS end in front of the server, as stunnel would be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection(valkey_server.host, valkey_server.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, server[1]), pump(server[0], writer), return_exceptions=True)

    listener = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        url = with_login(f"rediss://127.0.0.1:{port}/0", "", valkey_server.password)
        async with connect(f"{url}?ssl_ca_certs={TLS / 'certificate.pem'}") as line:
            assert await line.command("PING") == b"PONG"
        assert "not trusted" in str(await refused(url))
        async with connect(f"{url}?ssl_cert_reqs=none") as line:
            assert await line.command("PING") == b"PONG"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h/0", "is not the url of a Redis server"),
        ("redis://h/abc", "not a database's number"),
        ("redis://h/0?db=x", "not a database's number"),
        ("redis://h/0?decode_responses=1", "decode_responses"),
        ("redis://h/0?ssl_ca_certs=/x", "only a rediss:// url uses TLS"),
        ("rediss://h/0?ssl_ca_certs=/not/there", "TLS file"),
        ("redis://h:port/0", "'h:port', which is no host and port"),
        ("unix://", "without a path"),
    ],
)
def test_a_url_that_cannot_be_used_is_told(url: str, words: str) -> None:
    secret = url.replace("://", "://user:pass-word@")
    with pytest.raises(ConfigError, match=words) as error:
        parse_address(secret)
    assert "pass-word" not in str(error.value)


def test_what_is_printed_of_a_url() -> None:
    assert place("redis://:pw@h:7000/2") == "h:7000/2"
    assert place("rediss://me:pw@h") == "me@h:6379/0"
    assert place("unix:///tmp/r.sock?db=4") == "/tmp/r.sock/4"
    assert "pw" not in repr(parse_address("redis://me:pw@h"))
