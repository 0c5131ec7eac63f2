"""The live snapshot for any number of viewers: server-sent events, encoded once.

There is no queue: a viewer is sent the newest frame when it has taken the one before. One that takes a frame
for longer than SLOW_S is cut off; nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from streamer.logs import Log

VIEWERS_LIMIT = 100
SLOW_S = 5.0  # five frames
PING_S = 15.0  # proxies cut a line that is quiet

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

log = Log("dashboard")


class Stream:
    """The newest frame, and those who wait for the next."""

    def __init__(self, *, slow_s: float = SLOW_S, ping_s: float = PING_S) -> None:
        self.slow_s = slow_s
        self.ping_s = ping_s
        self.viewers = 0
        self.dropped = 0
        self.closed = False
        self.number = 0
        self._frame = b""
        self._next = asyncio.Event()
        self.wanted = asyncio.Event()  # set when a viewer comes: the first frame need not wait a second

    def publish(self, snapshot: bytes) -> None:
        """JSON without line ends."""
        self.number += 1
        self._frame = b"id: %d\ndata: %b\n\n" % (self.number, snapshot)
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, number: int) -> tuple[int, bytes]:
        """The newest frame once it is newer than `number`; a comment when that takes long."""
        try:
            async with asyncio.timeout(self.ping_s):
                while self.number <= number and not self.closed:
                    await self._next.wait()
        except TimeoutError:
            return number, b": still here\n\n"
        return self.number, self._frame


class EventStream:
    """An ASGI application: one viewer, until it goes, is too slow, or the server stops.

    `scope["state"]["abort"]`, where the server gives it, drops the connection without waiting for its buffer.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self._stream
        stream.viewers += 1
        stream.wanted.set()
        gone = asyncio.create_task(_until_gone(receive), name="viewer")
        sending = asyncio.create_task(self._send(send), name="viewer's frames")
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not sending.result():
                stream.dropped += 1
                log.warning("a viewer that does not read was cut off", client=_client(scope))
                abort: Callable[[], Any] | None = scope.get("state", {}).get("abort")
                if abort is not None:
                    abort()
                    await gone
        finally:
            stream.viewers -= 1
            for task in (gone, sending):
                task.cancel()
            await asyncio.wait({gone, sending})

    async def _send(self, send: Send) -> bool:
        """False: the viewer is too slow."""
        stream = self._stream
        number = stream.number  # an older frame is of when somebody looked last
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        while True:
            number, frame = await stream.after(number)
            message = {"type": "http.response.body", "body": frame, "more_body": not stream.closed}
            try:
                async with asyncio.timeout(stream.slow_s):
                    await send(message)
            except TimeoutError:
                return False
            if stream.closed:
                return True


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""
