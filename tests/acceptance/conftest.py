"""Steps that the acceptance tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from consumers.demo.workload import Workload
from tests.harness.log import LogChecker, LogReport
from tests.harness.pipeline import Pipeline
from tests.harness.referee import Referee

SEED = 7
LOAD_S = 4.0
CHANGES_PER_S = 1_000
BIG_ROWS = 20_000  # several flushes of 1 MiB


class Shop:
    """The demo's shop on a pipeline's source, and its judge."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.checker = LogChecker(pipeline.brokers, name=pipeline.name, source=pipeline.source)
        self._referee = Referee(
            pipeline.source_url, slot=f"referee_{pipeline.name}", publication=pipeline.slot
        )
        self._seed = SEED

    async def open(self) -> None:
        """First rows in source and target, capture and apply running, the judge's slot in place."""
        await Workload(self.pipeline.source_url, seed=SEED, seconds=0).prepare()
        await self.pipeline.start_both()
        await asyncio.to_thread(self._referee.open)

    @asynccontextmanager
    async def at_work(
        self, *, seconds: float = LOAD_S, big_rows: int = BIG_ROWS, survive: bool = False
    ) -> AsyncIterator[Workload]:
        """Load for `seconds`, and longer where the block takes longer; leaving it waits for the last
        transaction."""
        workload = self._workload(seconds, big_rows, survive)
        left = asyncio.Event()

        async def load() -> None:
            await workload.run()
            while not left.is_set():
                await self._workload(seconds, 0, survive).run(left)

        task = asyncio.create_task(load(), name="load")
        try:
            yield workload
        except BaseException:
            task.cancel()
            await asyncio.wait([task])
            raise
        left.set()
        await task

    def _workload(self, seconds: float, big_rows: int, survive: bool) -> Workload:
        self._seed += 1
        return Workload(
            self.pipeline.source_url,
            seed=self._seed,
            seconds=seconds,
            changes_per_s=CHANGES_PER_S,
            big_rows=big_rows,
            survive=survive,
        )

    async def judge(self, timeout_s: float = 60.0) -> LogReport:
        """Target equal; the log has every row change of the WAL once, in order; its fold is the source."""
        await self.pipeline.equal(timeout_s)
        await asyncio.to_thread(self._referee.read)
        await self.checker.read()
        report = self.checker.report(self._referee.expected)
        assert report.ok, str(report)
        assert await self.checker.fold_differences(self.pipeline.source_url) == []
        return report


@pytest.fixture
def shop(pipeline: Pipeline) -> Shop:
    return Shop(pipeline)


@pytest.fixture
def shop_on() -> Callable[[Pipeline], Awaitable[Shop]]:
    """Opens the shop on a pipeline that the test has made itself."""

    async def open_on(pipeline: Pipeline) -> Shop:
        shop = Shop(pipeline)
        await shop.open()
        return shop

    return open_on
