"""Backfills in tests: asked for, waited for, and judged by the fold of the topics."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from streamer.backfills import ask, read_runs, wish
from streamer.changes.backfill import Progress, Request, Wanted
from streamer.config import Config
from tests.harness.capture import WAIT_S, Capture
from tests.harness.log import LogChecker
from tests.harness.redis_capture import RedisCapture

_numbers = itertools.count(1)


async def request(
    capture: Capture, table: str, keys: Iterable[Sequence[Any]] | None = None, **more: Any
) -> str:
    """Ask for a run of a table of `public`; its id."""
    config = capture.config
    run = more.pop("run", None) or f"run{next(_numbers)}"
    asked = Request(
        run, capture.source, schema="public", table=table, by="test", asked_us=time.time_ns() // 1000, **more
    )
    await ask(config.kafka.brokers, None, config.name, asked, keys)
    return run


def shown(capture: Capture, run: str) -> dict[str, Any]:
    """What `status` says of the run; {} while it does not know it."""
    for entry in capture.status.record.detail.get("backfills") or ():
        if entry["run"] == run:
            return dict(entry)
    return {}


async def reach(capture: Capture, run: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until `status` says so of the run."""
    await capture.until(lambda: bool(shown(capture, run)) and reached(shown(capture, run)))
    return shown(capture, run)


async def over(capture: Capture, run: str) -> Progress:
    """Wait until the run is over, as its record in Kafka says."""
    await reach(capture, run, lambda entry: entry["state"].over)
    return await recorded(capture.config, run)


async def recorded(config: Config, run: str) -> Progress:
    """The run's last committed progress that is over, waited for."""
    async with asyncio.timeout(WAIT_S):
        while True:
            progress = (await read_runs(config.kafka.brokers, None, config.name))[run].progress
            if progress is not None and progress.state.over:
                return progress


async def backfill(
    capture: Capture, table: str, keys: Iterable[Sequence[Any]] | None = None, **more: Any
) -> Progress:
    return await over(capture, await request(capture, table, keys, **more))


async def tell(capture: Capture | RedisCapture, run: str, wanted: Wanted) -> None:
    config = capture.config
    await wish(
        config.kafka.brokers,
        None,
        config.name,
        source=capture.source,
        run=run,
        wanted=wanted,
        by="test",
        now_us=time.time_ns() // 1000,
    )


async def differences(config: Config, source: str = "shop") -> list[str]:
    """The fold of the source's topics against its tables, and what the log itself has wrong."""
    checker = LogChecker(config.kafka.brokers, name=config.name, source=source)
    await checker.read()
    report = checker.report()
    wrong = [] if report.ok else [str(report)]
    return wrong + await checker.fold_differences(config.sources[source].url.get_secret_value())
