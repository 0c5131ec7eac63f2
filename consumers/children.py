"""The end of a child process, and its log by lines. What they mean is known by who has started it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

STOP_S = 9.0  # from SIGTERM to SIGKILL; the promise is 10 s
LINE_BYTES = 64 * 1024  # a longer line of a child's log is cut


async def until_end(
    process: asyncio.subprocess.Process,
    stop: asyncio.Event,
    reading: Awaitable[object],
    name: str,
    *,
    stopping: Callable[[], None] = lambda: None,
) -> int:
    """The exit code, once it has ended by itself or as `stop` was set, and `reading` has read all of it.

    When this is cancelled, the process is killed. `stopping`: it is being asked to end.
    """
    ended = asyncio.create_task(process.wait(), name=f"end of {name}")
    asked = asyncio.create_task(stop.wait(), name=f"stop of {name}")
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            stopping()
            process.terminate()
            await asyncio.wait({ended}, timeout=STOP_S)
    finally:
        asked.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await ended
        await reading
    return code


async def read_lines(stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    """To its end."""

    def one(line: bytes) -> None:
        take(line.decode(errors="replace").rstrip())

    rest = b""
    while chunk := await stream.read(LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            one(line)
        if len(rest) > LINE_BYTES:
            one(rest)
            rest = b""
    if rest:
        one(rest)


def is_error(line: str) -> bool:
    """Whether a line of the log is the JSON of the error that a command has ended with."""
    return line.startswith('{"error":')
