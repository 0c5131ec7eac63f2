"""A subscription, its signs and a line that writes, on one Redis or Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from streamer.redis.connection import RedisConnection, connect
from streamer.redis.gaps import Gaps, Reason
from streamer.redis.notifications import KEYS_LIMIT, Watch, needed_classes
from streamer.redis.replies import Arg
from streamer.redis.signs import Signs

EVERY_TYPE = needed_classes(["string", "hash", "list", "set", "zset", "stream"])
CANARY = b"__tailrace__:test"
WAIT_S = 60.0


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password, safe='')}@{host}"))


@dataclass
class Watching:
    """What a session has, without the session."""

    gaps: Gaps
    watch: Watch
    signs: Signs
    commands: RedisConnection
    writer: RedisConnection

    async def run(self, *lines: str) -> None:
        """Commands as one types them."""
        await self.writer.pipeline([line.split() for line in lines])

    async def settle(self) -> None:
        """A look, and then until all that was notified before it has arrived."""
        await self.signs.look()
        async with asyncio.timeout(WAIT_S):
            await self.watch.passed(self.signs.looks)

    async def touched(self) -> set[tuple[int, bytes]]:
        """The keys that were notified since the last call."""
        await self.settle()
        return {(db, key) for db, key, _ in self.watch.take(KEYS_LIMIT)}

    async def reasons(self) -> set[Reason]:
        """The gaps that a look finds, and those before it."""
        await self.settle()
        return {gap.reason for gap in self.gaps.take()}


@asynccontextmanager
async def watching(
    url: str,
    globs: Mapping[int, Sequence[bytes]] | None = None,
    *,
    writer_url: str = "",
    subscribe_url: str = "",
    limit: int = KEYS_LIMIT,
    manage: bool = True,
) -> AsyncIterator[Watching]:
    """Started; the gaps of the start are taken. Without `globs`: every key of databases 0 and 1."""
    gaps = Gaps()
    async with (
        connect(subscribe_url or url) as line,
        connect(url) as commands,
        connect(writer_url or url) as writer,
    ):
        watch = Watch(
            line,
            {0: [b"*"], 1: [b"*"]} if globs is None else globs,
            gaps,
            canary=CANARY,
            clock_s=time.monotonic,
            limit=limit,
        )
        await watch.start()
        signs = Signs(commands, watch, gaps, needed=EVERY_TYPE, manage=manage, clock_s=time.monotonic)
        await signs.start()
        result = Watching(gaps, watch, signs, commands, writer)
        await result.settle()
        gaps.take()
        yield result


async def execute(url: str, *commands: Sequence[Arg]) -> list[object]:
    """Commands on a line of their own."""
    async with connect(url) as line:
        replies: list[object] = await line.pipeline(commands)
        return replies
