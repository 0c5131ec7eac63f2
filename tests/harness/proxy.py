"""A TCP proxy that breaks lines on purpose. Owns: one listening port in front of one server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5


@dataclass(eq=False)
class Line:
    """One connection through the proxy: its client's and its server's end."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def ends(self) -> tuple[asyncio.StreamWriter, asyncio.StreamWriter]:
        return self.client, self.server


class Proxy:
    """async with Proxy(host, port) as proxy: connect to proxy.port, then cut(), stall(), ..."""

    def __init__(self, host: str, port: int, *, listen_port: int = 0) -> None:
        self.host = "127.0.0.1"
        self.connections = 0  # taken so far
        self.bytes = 0  # passed so far, both ways
        self.delay_s = 0.0  # before each chunk, each way
        self._server_host = host
        self._server_port = port
        self._listen_port = listen_port
        self._lines: set[Line] = set()
        self._ended: set[asyncio.StreamWriter] = set()  # ends whose outgoing half is closed
        self._takers: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._moved = asyncio.Condition()

    @property
    def port(self) -> int:
        assert self._listener is not None, "the proxy is not open"
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def url(self, url: str) -> str:
        """The server's URL with this proxy's address in it."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(
            parts._replace(netloc=f"{user}@{self.host}:{self.port}" if user else f"{self.host}:{self.port}")
        )

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._take, self.host, self._listen_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self._flowing.set()
        self.cut()
        if self._takers:
            await asyncio.wait(self._takers)
        await self._listener.wait_closed()

    # -- trouble

    @property
    def lines(self) -> int:
        return len(self._lines)

    def cut(self) -> int:
        """Reset every line, both ends; how many there were. New ones are taken."""
        cut = list(self._lines)
        for line in cut:
            for end in line.ends():
                end.transport.abort()
        return len(cut)

    def refuse(self) -> None:
        """Reset every line, and each that comes, until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        self._refusing = False

    def stall(self) -> None:
        """Let no byte through, either way, and keep the lines open: a network that has gone silent."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def half_close_to_client(self) -> None:
        """Each client reads an end of stream; what it writes still gets to the server."""
        for line in self._lines:
            self._half_close(line.client)

    def half_close_to_server(self) -> None:
        """The server reads an end of stream; what it writes still gets to the client."""
        for line in self._lines:
            self._half_close(line.server)

    def _half_close(self, end: asyncio.StreamWriter) -> None:
        if end not in self._ended and not end.transport.is_closing():
            self._ended.add(end)
            end.write_eof()

    async def wait_connections(self, count: int, timeout_s: float = 60) -> None:
        """Until `count` lines were taken since the start."""
        async with self._moved, asyncio.timeout(timeout_s):
            await self._moved.wait_for(lambda: self.connections >= count)

    async def wait_bytes(self, count: int, timeout_s: float = 60) -> None:
        """Until `count` bytes have passed since the start."""
        async with self._moved, asyncio.timeout(timeout_s):
            await self._moved.wait_for(lambda: self.bytes >= count)

    # -- the work

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._takers.add(task)
        task.add_done_callback(self._takers.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                server_reader, server_writer = await asyncio.open_connection(
                    self._server_host, self._server_port
                )
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        if self._refusing:
            writer.transport.abort()
            server_writer.transport.abort()
            return
        line = Line(writer, server_writer)
        self._lines.add(line)
        await self._count(connections=1)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server_writer), name="proxy up")
                group.create_task(self._pump(server_reader, writer), name="proxy down")
        except* OSError:
            pass  # one end was reset, so the other is below
        finally:
            self._lines.discard(line)
            for end in line.ends():
                self._ended.discard(end)
                end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass bytes on until the source's end of stream, then pass that on; drop what comes after
        a half-close."""
        while data := await source.read(CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._flowing.wait()
            if sink not in self._ended:
                sink.write(data)
                await sink.drain()
            await self._count(bytes_=len(data))
        self._half_close(sink)

    async def _count(self, connections: int = 0, bytes_: int = 0) -> None:
        async with self._moved:
            self.connections += connections
            self.bytes += bytes_
            self._moved.notify_all()
