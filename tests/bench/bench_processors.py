"""A processor's throughput: records of a topic to derived records, by processes of `tailrace process`.

    python -m tests.bench.bench_processors [--rows 100000]

The records of a topic of 4 partitions are of one Kafka transaction, which commits when the workers are there
and share the partitions: from then on they, Kafka and nothing else share the cores. The rate is that of
derived records by their own timestamps, from the first to the last. State is in RocksDB.
"""

from __future__ import annotations

import argparse
import uuid
from dataclasses import dataclass
from pathlib import Path

import uvloop
import yaml
from orjson import dumps

from consumers.processors.operations import wait_through
from streamer.config import load
from streamer.sandbox import Sandbox
from tests.bench.bench_apply import COLUMNS, PARTITIONS, row
from tests.bench.figures import Figure, show
from tests.harness.feeder import Feeder
from tests.harness.pipeline import Pipeline
from tests.harness.processing import records_of

ROWS = 100_000
POLL_S = 0.2
LSN = 100
TWO_WORKERS = 1.6  # of one, where cores allow


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    work: str
    definition: str
    guarantee: str
    floor: int = 0  # records/s of one worker
    workers: int = 1
    one: str = ""  # the case of one worker that several are compared with


CASES = (
    Case("map", "map_", "mapped", "exactly_once", 6_000),
    Case("map_alo", "map_", "mapped", "at_least_once", 10_000),
    Case("agent", "@agent", "agent_mapped", "exactly_once", 6_000),
    Case("agent_alo", "@agent", "agent_mapped", "at_least_once", 10_000),
    Case("two", "map_", "mapped", "exactly_once", workers=2, one="map"),
    Case("groups", "aggregate of 5,000 groups", "by_customer", "exactly_once", 3_000),
    Case("two_groups", "aggregate", "by_customer", "exactly_once", workers=2, one="groups"),
)


@dataclass(frozen=True, slots=True)
class Measured:
    rate: float  # derived records/s
    cpu_us: float  # of all workers, a record
    rss_mb: float  # of the largest


async def measure(pipeline: Pipeline, feeder: Feeder, case: Case, rows: int) -> Measured:
    table = await feeder.table(f"orders_{case.name}", COLUMNS, partitions=PARTITIONS)
    children = [pipeline.start("process", case.name) for _ in range(case.workers)]
    config = load(pipeline.config_path)
    pids = {child.pid for child in children}

    async def sharing() -> bool:
        tasks = [len(r.detail.get("tasks") or ()) for r in await pipeline.status("process") if r.pid in pids]
        return len(tasks) == case.workers and set(tasks) == {PARTITIONS // case.workers}

    await pipeline.until("the workers share the partitions", sharing)
    before_s = sum(child.cpu_s() for child in children)
    template = table._template(LSN)
    for n in range(rows):
        after = row(n)
        table.raw(table.key_of(after), template.create(dumps(after), LSN, n))
    await feeder.flush()
    await wait_through(config, case.name, poll_s=POLL_S)
    cpu_s = sum(child.cpu_s() for child in children) - before_s
    rss_mb = max(child.peak_rss_bytes() for child in children) / 2**20
    for child in children:
        await child.stop()
    records = await records_of(pipeline.brokers, config.processors[case.name].out)
    assert len(records) >= rows, f"{len(records)} of {rows} came out"
    moments_ms = sorted(record.timestamp for record in records)
    seconds = max(0.001, (moments_ms[-1] - moments_ms[0]) / 1000)
    return Measured(len(records) / seconds, cpu_s / len(records) * 1e6, rss_mb)


async def run(brokers: str, folder: Path, rows: int) -> dict[str, Measured]:
    name = f"b{uuid.uuid4().hex[:8]}"
    nowhere = "postgresql://nobody@localhost/none"
    async with (
        Feeder(brokers, name) as feeder,
        Pipeline(folder, source_url=nowhere, target_url=nowhere, brokers=brokers, name=name) as pipeline,
    ):
        processors = {
            case.name: {
                "agent": f"tests.bench.derivations:{case.definition}",
                "in": [f"{feeder.source}.public.orders_{case.name}"],
                "out": f"{name}_{case.name}",
                "guarantee": case.guarantee,
            }
            for case in CASES
        }
        config = {
            "name": name,
            "kafka": {"brokers": brokers, "topics": {"partitions": PARTITIONS}},
            "sources": {feeder.source: {"kind": "postgres", "url": nowhere, "tables": {"public.*": {}}}},
            "processors": processors,
        }
        pipeline.config_path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return {case.name: await measure(pipeline, feeder, case, rows) for case in CASES}


def figures(rows: int = ROWS) -> list[Figure]:
    with Sandbox(kafka=1, fast=True) as sandbox:
        found = uvloop.run(run(sandbox.urls()["kafka"], Path(sandbox.folder) / "pipeline", rows))
    shown = []
    for case in CASES:
        got = found[case.name]
        compared, floor, held = "", f">= {case.floor:,} records/s", got.rate >= case.floor
        if case.one:
            ratio = got.rate / found[case.one].rate
            compared = f"{ratio:.2f} times one worker; Kafka shares the cores"
            floor, held = f">= {TWO_WORKERS} times where cores allow", None
        workers = "" if case.workers == 1 else f", {case.workers} workers"
        shown.append(
            Figure(
                f"processor, {case.work}, {case.guarantee}{workers}, {rows:,} records",
                f"{got.rate:,.0f} records/s, {got.cpu_us:.0f} us of CPU a record, {got.rss_mb:.0f} MB",
                compared,
                floor,
                held,
            )
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
