"""The harness's own proxy does what its words say; the acceptance tests rest on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.harness.proxy import Proxy

WAIT_S = 60


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it reads; after the reader's end it says 'bye'."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
                await writer.drain()
            writer.write(b"bye")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_passes_bytes_and_the_end_of_the_stream() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()
        assert proxy.connections == 1
        assert proxy.bytes >= 10


async def test_cut_resets_both_ends_and_takes_the_next() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.cut() == 1
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        writer.close()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()


async def test_stall_holds_and_flow_releases() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        proxy.stall()
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.1)
        proxy.flow()
        assert await asyncio.wait_for(reader.readexactly(1), WAIT_S) == b"x"
        writer.close()


async def test_half_close_to_the_server_leaves_the_way_back_open() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.half_close_to_server()
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b"bye"
        writer.close()


async def test_half_close_to_the_client_leaves_the_way_up_open() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.half_close_to_client()
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        before = proxy.bytes
        writer.write(b"up")
        await proxy.wait_bytes(before + 4, WAIT_S)  # up, and the echo that the client does not get
        writer.close()


async def test_refuse_and_accept() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        proxy.refuse()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        writer.close()
        proxy.accept()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"z")
        assert await reader.readexactly(1) == b"z"
        writer.close()


async def test_url_keeps_everything_but_the_address() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        url = proxy.url("postgresql://user:p%40ss@10.0.0.1:5432/shop?x=1")
        assert url == f"postgresql://user:p%40ss@127.0.0.1:{proxy.port}/shop?x=1"
