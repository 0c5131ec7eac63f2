"""Any SQL database as a target by SQLAlchemy: a batch's rows and checkpoints in one transaction.

The driver waits, so that the session lives in a thread of its own and the apply loop goes on meanwhile.
SQLite is what there is today (sql_sqlite); MySQL and MariaDB are refused by name in the config.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from consumers.apply.checkpoint import Checkpoint, Place, Rewind
from consumers.targets.base import Batch, Gate, Look, Outcome, Parked, TableChanges, Unwhole, Versions
from consumers.targets.sql_dialect import dialect_of
from consumers.targets.sql_session import SqlSession
from streamer.config import Flow, sqlite_path
from streamer.config import SqlTarget as Settings
from streamer.errors import TargetUnavailable

T = TypeVar("T")


class SqlTarget:
    """One session; not for concurrent use. `group`: the consumer group bound to this target."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        flows: Sequence[Flow],
        *,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._file = sqlite_path(settings.url)
        self.place = f"target {settings.name!r} (sqlite {self._file})"
        self._group = group
        self._flows = flows
        self._clock_us = clock_us
        self._dialect = dialect_of(settings, self.place)
        self._executor: ThreadPoolExecutor | None = None
        self._session: SqlSession | None = None
        self._id = ""

    @property
    def id(self) -> str:
        return self._id

    @property
    def clock_offset_s(self) -> float:
        """The database has no clock but this machine's."""
        return 0.0

    def details(self) -> Mapping[str, Any]:
        return {}

    # Session

    async def open(self) -> None:
        """Raises TargetUnavailable, ConfigError, FatalError."""
        await self.close()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tailrace-sql")

        def start() -> SqlSession:
            arguments = self._group, self._flows, self.place, self._clock_us
            self._session = SqlSession(self._dialect, self._file, *arguments)
            return self._session

        try:
            self._id = (await asyncio.get_running_loop().run_in_executor(self._executor, start)).id
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """After what the thread is doing, a batch that was given up for one."""
        executor, self._executor = self._executor, None
        if executor is None:
            return

        def end() -> None:
            session, self._session = self._session, None
            if session is not None:
                session.close()

        ended = asyncio.get_running_loop().run_in_executor(executor, end)
        executor.shutdown(wait=False)
        await asyncio.shield(ended)

    async def _run(self, call: Callable[[SqlSession], T]) -> T:
        executor, session = self._executor, self._session
        if executor is None or session is None or session.has_ended:
            raise TargetUnavailable(
                "the session with the target has ended", where=self.place, fix="it opens again by itself"
            )

        def run() -> T:
            session.check()
            return call(session)

        return await asyncio.get_running_loop().run_in_executor(executor, run)

    # State

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        return await self._run(lambda session: session.checkpoints(places))

    async def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        return await self._run(lambda session: session.rewind(rewinds, who))

    async def look(self, places: Iterable[Place]) -> Look:
        return await self._run(lambda session: session.look(places))

    async def findings(self) -> list[str]:
        return await self._run(SqlSession.findings)

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        return await self._run(lambda session: session.rereads(topics, limit))

    async def sweep(self, keep_s: float) -> None:
        await self._run(lambda session: session.sweep(keep_s))

    async def versions(self, batch: Batch) -> Versions | None:
        return await self._run(lambda session: session.versions(batch))

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        return await self._run(lambda session: session.parked(places, asked))

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        return await self._run(lambda session: session.ask(keys, action, who))

    async def gates(self) -> list[Gate]:
        return await self._run(SqlSession.gates)

    async def hold(self, gate: Gate) -> None:
        await self._run(lambda session: session.hold(gate))

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        return await self._run(lambda session: session.decide(flow, state, who, up_to_us))

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        return await self._run(lambda session: session.recent_deletes(flow, topic, window_s))

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        return await self._run(lambda session: session.count_rows(table))

    async def count_below(self, changes: TableChanges, limit: int) -> int:
        return await self._run(lambda session: session.count_below(changes))

    # Batches

    async def prepare(self, batch: Batch) -> None:
        return

    async def apply(self, batch: Batch) -> Outcome:
        return await self._run(lambda session: session.apply(batch))
