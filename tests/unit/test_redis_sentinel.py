"""URLs that name Sentinels, and whose word counts when they do not agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hiredis import pack_command

from streamer.errors import ConfigError, SourceUnavailable
from streamer.redis.address import parse_address
from streamer.redis.sentinel import locate, parse_sentinels

Replica = tuple[str, int, str, str]  # host, port, flags, state of the link to its primary


def test_a_url_of_sentinels() -> None:
    found = parse_sentinels(
        "redis+sentinel://me:p%40w@one,two:5000,[::1]:5001/shop/3?role=replica&sentinel_user=s&sentinel_password=x"
    )
    assert found is not None
    assert found.name == "shop"
    assert (found.server.user, found.server.password, found.server.db) == ("me", "p@w", 3)
    assert found.server.role == "replica"
    assert [(one.host, one.port) for one in found.asked] == [("one", 26379), ("two", 5000), ("::1", 5001)]
    assert {(one.user, one.password, one.db) for one in found.asked} == {("s", "x", 0)}
    assert "p@w" not in repr(found)
    assert parse_sentinels("redis://me:pw@h:7000/2") is None


def test_tls_is_for_the_sentinels_too() -> None:
    found = parse_sentinels("rediss+sentinel://one/shop?ssl_cert_reqs=none")
    assert found is not None
    assert found.server.tls is not None
    assert found.asked[0].tls is found.server.tls
    assert found.server.db == 0
    assert found.server.role == "master"


def test_a_target_names_its_server_itself() -> None:
    with pytest.raises(ConfigError, match="for a source alone"):
        parse_address("redis+sentinel://one/shop")


@asynccontextmanager
async def saying(epoch: int, primary: int, replicas: Sequence[Replica] = ()) -> AsyncIterator[str]:
    """A Sentinel that knows this; its host and port."""
    told = [_flat(ip="127.0.0.1", port=primary, **{"config-epoch": epoch})]
    listed = [
        _flat(ip=host, port=port, flags=flags, **{"master-link-status": link})
        for host, port, flags, link in replicas
    ]
    reply = told[0] + b"*%d\r\n" % len(listed) + b"".join(listed)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(reply)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _flat(**fields: object) -> bytes:
    packed: bytes = pack_command(tuple(str(part) for pair in fields.items() for part in pair))
    return packed


async def test_the_word_of_the_latest_failover_counts() -> None:
    """One that was cut off names the primary before it."""
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(saying(epoch, 7000 + epoch)) for epoch in (1, 3, 2)]
        found = await locate(f"redis+sentinel://{','.join(hosts)}/shop")
        assert found.port == 7003


async def test_a_replica_that_is_well_is_chosen() -> None:
    replicas = [
        ("127.0.0.1", 1, "s_down,slave", "ok"),
        ("127.0.0.1", 2, "slave", "err"),
        ("127.0.0.1", 3, "slave,disconnected", "ok"),
        ("127.0.0.1", 5, "slave", "ok"),
        ("127.0.0.1", 4, "slave", "ok"),
    ]
    async with saying(1, 7000, replicas) as host:
        assert (await locate(f"redis+sentinel://{host}/shop?role=replica")).port == 4
    async with saying(1, 7000, replicas[:3]) as host:
        with pytest.raises(SourceUnavailable, match="no replica"):
            await locate(f"redis+sentinel://{host}/shop?role=replica")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://u:p#q@127.0.0.1:1/x/0", "%23 for #"),
        ("redis+sentinel://u:p/q@127.0.0.1:1/x/0", "%2F for /"),
        ("redis+sentinel://u:pq@127.0.0.1:1/x/abc", "redis+sentinel://user:password@host:26379"),
        ("redis+sentinel://u:pq@127.0.0.1:1/x/0?sentinel_pasword=q", "sentinel_password"),
    ],
)
def test_a_mistake_in_a_url_shows_no_login_and_keeps_the_sentinels(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sentinels(url)
    text = str(caught.value)
    assert words in text
    assert "u:p" not in text
