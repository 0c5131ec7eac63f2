"""The pgvector target without a model: batches of rows into chunks with vectors of 256 dimensions.

    python -m tests.bench.bench_vectors [--rows 20000]

The embedding function gives one constant matrix, so that what is measured is cutting, hashing, sending and
storing. Batches are prepared and applied in turn, as the apply loop does it while they do not overlap. The
table has no hnsw index yet: it is made when a first copy is through. A second pass changes metadata alone.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from consumers.targets.vectors import VectorTarget
from consumers.testing import Log
from streamer.config import VectorTarget as Settings
from streamer.config import parse
from streamer.sandbox import Sandbox
from tests.bench.figures import Figure, show

DIMENSIONS = 256
FLOOR = 5000.0  # rows/s
BODY = "a note of some fifty words about nothing in particular, as people write them; " * 4

_VECTOR = np.random.default_rng(1).standard_normal((1, DIMENSIONS)).astype(np.float32)


def embed(texts: list[str]) -> Any:
    return np.repeat(_VECTOR, len(texts), axis=0)


def row(number: int, tag: str) -> dict[str, Any]:
    return {
        "id": number,
        "title": f"note {number}",
        "body": f"{number} {BODY}",
        "tag": tag,
        "likes": number % 99,
    }


async def measure(url: str, rows: int) -> dict[str, tuple[float, float]]:
    """By name: rows/s, and microseconds of this process's CPU a row."""
    text = yaml.safe_dump(
        {
            "name": "bench",
            "sources": {"app": {"kind": "postgres", "url": url, "tables": {"public.*": {}}}},
            "targets": {"vectors": {"kind": "pgvector", "url": url}},
            "flows": {
                "notes": {
                    "from": "app.public.notes",
                    "to": "vectors.search.notes",
                    "text": "{title}\n\n{body}",
                    "embed": f"{__name__}:embed",
                    "dimensions": DIMENSIONS,
                }
            },
        }
    )
    config = parse(text, Path("tailrace.yaml"), environ={})
    settings = config.targets["vectors"]
    assert isinstance(settings, Settings)
    flows = list(config.flows.values())
    target = VectorTarget(settings, "bench.vectors", flows)
    await target.open()
    found: dict[str, tuple[float, float]] = {}
    try:
        log = Log("app", partitions=1)
        columns = {"id": "bigint", "title": "text", "body": "text", "tag": "text", "likes": "integer"}
        table = log.table("notes", columns)
        at = 0
        for name, tag in (("first rows", "x"), ("metadata alone", "y")):
            for number in range(rows):
                table.update(row(number, tag))
            (place,) = log.places(flows)
            await target.checkpoints([place])
            spent_s = cpu_s = 0.0
            end = at + rows
            while at < end:
                step = min(settings.batch.rows, end - at)
                batch = await log.batch(flows, {place: at}, {place[1:]: at + step})  # type: ignore[dict-item]
                began_s, cpu_began_s = time.perf_counter(), time.process_time()
                await target.prepare(batch)
                await target.apply(batch)
                spent_s += time.perf_counter() - began_s
                cpu_s += time.process_time() - cpu_began_s
                at += step
            found[name] = rows / spent_s, cpu_s / rows * 1e6
        assert target.details()["texts_embedded"] == rows
    finally:
        await target.close()
    return found


def figures(rows: int = 20_000) -> list[Figure]:
    with Sandbox(postgres=1, fast=True) as sandbox:
        found = asyncio.run(measure(sandbox.urls()["postgres"][0], rows))
    return [
        Figure(
            f"pgvector target without the model, {name}, {rows:,} rows of {DIMENSIONS} dimensions",
            f"{rate:,.0f} rows/s, {cpu_us:.0f} us of CPU a row",
            "",
            f">= {FLOOR:,.0f} rows/s" if name == "first rows" else "",
            rate >= FLOOR if name == "first rows" else None,
        )
        for name, (rate, cpu_us) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
