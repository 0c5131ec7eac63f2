"""A replay of everything, against what apply has made of the same rows in the same run.

    python -m tests.bench.bench_replay [--rows 200000]

Rows are inserted and then updated, which is measured as apply's figure. Then `tailrace replay --from-start`
sets the flow back beside the running process: what is older than the rows by now stays unwritten, the last
updates are written once more as they are. Both twice, the better one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import uuid
from pathlib import Path

import uvloop

from consumers.commands.replay import Wish, replay
from streamer.config import parse
from streamer.sandbox import Sandbox
from tests.bench.bench_apply import COLUMNS, PARTITIONS, publish, rate
from tests.bench.figures import Figure, show
from tests.harness.feeder import Feeder, applying, config_text

ROWS = 200_000

Rate = tuple[float, float, float]


async def measure(brokers: str, url: str, rows: int, folder: Path) -> tuple[Rate, Rate]:
    """The best of apply's updates, and of the replays of all."""
    path = folder / "tailrace.yaml"
    applied, replayed = [], []
    async with Feeder(brokers, f"b{uuid.uuid4().hex[:8]}") as feeder:
        table = await feeder.table("orders", COLUMNS, partitions=PARTITIONS)
        path.write_text(config_text(feeder, url))
        config = parse(path.read_text(), path, environ={})
        await publish(feeder, table, rows, 100)
        async with applying(config) as run:
            await rate(url, run, 0, rows)
            await run.stop()
        for already in (rows, 2 * rows):
            await publish(feeder, table, rows, 100 + already // rows)
            async with applying(config) as run:
                applied.append(await rate(url, run, already, rows))
                code = await asyncio.to_thread(replay, path, Wish("mirror", from_start=True), as_json=False)
                assert code == 0
                replayed.append(await rate(url, run, 0, already + rows))
                await run.stop()
    return max(applied), max(replayed)


def figures(rows: int = ROWS) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, Sandbox(postgres=1, kafka=1, fast=True) as sandbox:
        urls = sandbox.urls()
        url, brokers = urls["postgres"][0], urls["kafka"]
        applied, (replayed, cpu_us, rss_mb) = uvloop.run(measure(brokers, url, rows, Path(folder)))
    return [
        Figure(
            f"replay of all of {3 * rows:,} events, under a running apply",
            f"{replayed:,.0f} rows/s, {cpu_us:.1f} us of CPU a row, {rss_mb:.0f} MB",
            f"{replayed / applied[0]:.0%} of apply's upserts in the same run, {applied[0]:,.0f} rows/s,"
            f" {applied[1]:.1f} us",
            ">= 100%",
            replayed >= applied[0],
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
