"""The other sources that derived rows come from: the captures of all of them pass the fence, too.

A query runs on one source's server, and may read there what another capture publishes: two captures of one
server, a foreign table. Rows of one that is behind would be missing, and no drift. Where a source keeps what
is committed to itself, as a query's rows may show it already, the fence waits as for its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from consumers.reconcile import fence
from consumers.reconcile.origins.redis import APPLICATION, RedisClock
from consumers.reconcile.sides import postgres
from streamer.changes.lsn import format_lsn
from streamer.config import Config, PostgresSource, RedisSource
from streamer.redis.connection import connect
from streamer.redis.notifications import canary_channel
from streamer.redis.rights import capture_rights


class Clock(Protocol):
    """Where a source is now."""

    async def insert_lsn(self) -> int: ...
    async def holds_commits(self) -> bool: ...
    def shown(self, lsn: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Other:
    name: str
    clock: Clock
    log: fence.Log


class Beside:
    """Of one derived table. `config` names the brokers; `sources`: all but the one that the query runs on."""

    def __init__(
        self, config: Config, sources: Sequence[str], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._sources = sources
        self._clock_s = clock_s
        self._stack = AsyncExitStack()
        self._others: list[Other] = []

    async def close(self) -> None:
        await self._stack.aclose()

    async def pass_(self, stall_s: float) -> None:
        """Raises fence.NotPassed, and the errors of the servers."""
        for other in await self._opened():
            lsn = await other.clock.insert_lsn()
            patience = fence.Patience(self._clock_s, stall_s)
            await fence.pass_captured(other.log, other.name, lsn, other.clock.shown, patience)

    async def holds_commits(self) -> bool:
        return any([await other.clock.holds_commits() for other in await self._opened()])

    async def _opened(self) -> list[Other]:
        if not self._others:
            self._others = [await self._open(name) for name in self._sources]
        return self._others

    async def _open(self, name: str) -> Other:
        config, enter = self._config, self._stack.enter_async_context
        settings = config.sources[name]
        clock: Clock
        if isinstance(settings, RedisSource):
            url, rights = settings.url.get_secret_value(), capture_rights(config.name, settings)
            line = await enter(connect(url, application=APPLICATION, rights=rights))
            clock = _Redis(RedisClock(line, canary_channel(config.name, name)))
        else:
            assert isinstance(settings, PostgresSource)  # what else has no capture
            session = postgres.Session(settings.url.get_secret_value(), "source")
            self._stack.push_async_callback(session.close)
            await session.open()
            clock = _Postgres(session)
        return Other(name, clock, await enter(fence.opened_log(config, config.kafka.brokers, name)))


class _Postgres:
    def __init__(self, session: postgres.Session) -> None:
        self._session = session

    async def insert_lsn(self) -> int:
        return await self._session.insert_lsn()

    async def holds_commits(self) -> bool:
        return await self._session.holds_commits()

    def shown(self, lsn: int) -> str:
        return format_lsn(lsn)


class _Redis:
    def __init__(self, clock: RedisClock) -> None:
        self._clock = clock

    async def insert_lsn(self) -> int:
        return await self._clock.mark()

    async def holds_commits(self) -> bool:
        return False  # what is notified is there

    def shown(self, lsn: int) -> str:
        return datetime.fromtimestamp(lsn / 1_000_000, UTC).isoformat(timespec="microseconds")
