"""The shop at work: several connections, a steady rate, one large transaction, one TRUNCATE.

Owns: pacing, connections, commits and what becomes of a broken one. What a transaction does is in
shop.py. The same seed gives the same transactions on each connection; how the connections interleave
is up to the server.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg
from psycopg import AsyncConnection

from consumers.demo import shop
from streamer.errors import SourceUnavailable

CONNECTIONS = 4
CHANGES_PER_S = 1_500  # what two cores carry with five servers and processes beside it
BIG_ROWS = 100_000
BIG_AT = 0.35  # shares of the running time
TRUNCATE_AT = 0.65
SLICE_S = 0.05  # pacing: how far a connection may run ahead before it waits
RECONNECT_WAIT_S = 0.2
CONFLICT_RETRIES = 20  # deadlocks and serialization failures are the shop's daily life, not an error


@dataclass(slots=True)
class Done:
    """What has been committed so far. A commit whose outcome a crash hid is not counted."""

    transactions: int = 0
    changes: int = 0
    by_table: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    big_rows: int = 0
    truncates: int = 0


class Workload:
    """Runs against the database of `url`, whose tables `prepare` makes.

    `survive`: go on with a new connection when the server dies (the crash tests' servers do);
    otherwise a lost connection is SourceUnavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        seed: int,
        seconds: float,
        connections: int = CONNECTIONS,
        changes_per_s: float = CHANGES_PER_S,
        big_rows: int = BIG_ROWS,
        truncate: bool = True,
        survive: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = Done()
        self._url = url
        self._seed = seed
        self._seconds = seconds
        self._connections = connections
        self._rate = changes_per_s / connections
        self._big_rows = big_rows
        self._truncate = truncate
        self._survive = survive
        self._clock = clock

    async def prepare(self) -> None:
        """Make the shop's tables with their first rows, in one transaction."""
        async with await AsyncConnection.connect(self._url) as connection:
            await shop.create(connection, Random(f"{self._seed}:first"))

    async def run(self, stop: asyncio.Event | None = None) -> Done:
        """Until the time is up or `stop` is set; transactions in hand are finished.

        Raises:
            SourceUnavailable: the connection was lost (unless `survive`).
        """
        stop = stop or asyncio.Event()
        began = self._clock()
        lost: BaseExceptionGroup[psycopg.OperationalError] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._connections):
                    group.create_task(self._clerk(number, began, stop), name=f"workload {number}")
                if self._big_rows:
                    group.create_task(self._import(began, stop), name="workload import")
                if self._truncate:
                    group.create_task(self._clear(began, stop), name="workload truncate")
        except* psycopg.OperationalError as errors:
            lost = errors
        if lost is not None:  # raised here: Python before 3.11.4 wraps in a group what `except*` raises
            raise SourceUnavailable(
                f"the workload lost its connection to the source: {lost.exceptions[0]}",
                fix="look into the source server's log",
            ) from lost
        return self.done

    async def _clerk(self, number: int, began: float, stop: asyncio.Event) -> None:
        random = Random(f"{self._seed}:{number}")
        acts, weights = zip(*shop.ACTS, strict=True)
        made = 0
        line = _Line(self._url, self._survive, self.done)
        try:
            while not stop.is_set() and (elapsed := self._clock() - began) < self._seconds:
                ahead_s = made / self._rate - elapsed
                if ahead_s > SLICE_S:
                    await _wait(stop, ahead_s)
                    continue
                act = random.choices(acts, weights)[0]
                changes = await line.commit(act, random)
                made += changes.total()
                self._count(changes)
        finally:
            await line.close()

    async def _import(self, began: float, stop: asyncio.Event) -> None:
        await _wait(stop, began + BIG_AT * self._seconds - self._clock())
        if stop.is_set():
            return
        random = Random(f"{self._seed}:import")

        async def act(connection: shop.Connection, random: Random) -> shop.Changes:
            return await shop.big_import(connection, random, self._big_rows)

        changes = await self._once(act, random)
        self.done.big_rows += changes.total()

    async def _clear(self, began: float, stop: asyncio.Event) -> None:
        await _wait(stop, began + TRUNCATE_AT * self._seconds - self._clock())
        if stop.is_set():
            return
        await self._once(shop.empty_carts, Random(self._seed))
        self.done.truncates += 1

    async def _once(self, act: shop.Act, random: Random) -> shop.Changes:
        line = _Line(self._url, self._survive, self.done)
        try:
            changes = await line.commit(act, random)
        finally:
            await line.close()
        self._count(changes)
        return changes

    def _count(self, changes: shop.Changes) -> None:
        self.done.transactions += 1
        self.done.changes += changes.total()
        self.done.by_table += changes


class _Line:
    """One connection that is made again when the server has died."""

    def __init__(self, url: str, survive: bool, done: Done) -> None:
        self._url = url
        self._survive = survive
        self._done = done
        self._connection: AsyncConnection[Any] | None = None

    async def commit(self, act: shop.Act, random: Random) -> shop.Changes:
        """Run one transaction to its commit; again from the start when the server refused it."""
        conflicts = 0
        while True:
            try:
                connection = self._connection or await AsyncConnection.connect(self._url)
                self._connection = connection
                async with connection.transaction():
                    return await act(connection, random)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                conflicts += 1
                if conflicts > CONFLICT_RETRIES:
                    raise
            except (psycopg.OperationalError, psycopg.Rollback):
                # A Rollback comes out only when the line was lost before it could be sent.
                await self.close()
                if not self._survive:
                    raise
                self._done.reconnects += 1
                await asyncio.sleep(RECONNECT_WAIT_S)

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        return
