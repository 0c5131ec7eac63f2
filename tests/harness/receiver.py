"""An HTTP server that takes messages as a receiver of webhooks does, and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

WAIT_S = 60.0
HANG = 0  # in place of a status: it takes the request, and never answers


@dataclass(frozen=True, slots=True)
class Request:
    """`headers`: names in lower case. `status`: what it was answered."""

    line: str
    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Receiver:
    """`answers`: the statuses of the next requests; then 200."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hunter2"

    async def got(self, count: int, wait_s: float = WAIT_S) -> list[Request]:
        """Once there are so many."""
        async with asyncio.timeout(wait_s):
            while len(self.requests) < count:
                self._more.clear()
                await self._more.wait()
        return self.requests

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (each.partition(":") for each in rest if each)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status = self.answers.pop(0) if self.answers else 200
                self.requests.append(Request(line, headers, body, status))
                self._more.set()
                if status == HANG:
                    await reader.read()  # until the sender has had enough
                    return
                writer.write(f"HTTP/1.1 {status} X\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiving(*answers: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(answers=list(answers))
    server = await asyncio.start_server(receiver.take, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
