"""What `tailrace serve` takes of a core while 200 flows change each second, with and without people who look.

    python -m tests.bench.bench_serve

The real command over a real Kafka, which two processes' heartbeats with 200 flows come through; a viewer is
a line that reads the page's stream. CPU is the process's own (user and system), a share of the time that
passed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from streamer.config import Config, load
from streamer.sandbox import Sandbox
from streamer.status import State, StatusWriter, read_status
from tests.bench import bench_control
from tests.bench.figures import Figure, show

VIEWERS = 5
SETTLE_S = 6.0  # the start is over, and the page has seen its first heartbeats
MEASURE_S = 20.0
START_S = 30.0
LIMIT_SHARE = 0.02


def config_of(folder: Path, brokers: str) -> Config:
    """With jobs and alerts: whoever has none needs no `serve`."""
    path = bench_control.config_of(folder, brokers).path
    text: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    first, second, *_ = text["flows"]
    text["control"] = {"http": "127.0.0.1:0"}
    text["reconcile"] = {"first": {"flow": first}, "second": {"flow": second}}
    text["schedules"] = {
        "jobs": {
            "first": {"reconcile": "first", "at": ["02:00"], "stale_after": "1d"},
            "second": {"reconcile": "second", "cron": "30 3 * * *"},
        }
    }
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return load(path, environ={})


@asynccontextmanager
async def heartbeats(config: Config) -> AsyncIterator[None]:
    details = {
        "capture": ("shop", bench_control.capture_detail(config)),
        "apply": ("warehouse", bench_control.apply_detail(config)),
    }
    async with AsyncExitStack() as stack:
        for kind, (name, detail) in details.items():
            writer = StatusWriter(
                config.kafka.brokers, None, config.name, kind=kind, part_name=name, replication_factor=1
            )
            writer.update(state=State.STREAMING, detail=detail)
            await stack.enter_async_context(writer)
        yield


async def view(url: str, taken: list[int]) -> None:
    """The bytes of each frame, until cancelled."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    writer.write(f"GET /api/stream HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    try:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                taken.append(len(line))
    finally:
        writer.close()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def share(pid: int) -> float:
    """Of a core."""
    before_s, began_s = cpu_s(pid), time.monotonic()
    await asyncio.sleep(MEASURE_S)
    return (cpu_s(pid) - before_s) / (time.monotonic() - began_s)


async def page_of(config: Config) -> str:
    async with asyncio.timeout(START_S):
        while True:
            for record in await read_status(config.kafka.brokers, None, config.name):
                if record.kind == "serve" and "page" in record.detail:
                    return str(record.detail["page"])


async def measured(config: Config, pid: int) -> tuple[float, float, list[int]]:
    """(share without a viewer, share with five, bytes of the frames)"""
    taken: list[int] = []
    async with heartbeats(config):
        url = await page_of(config)
        await asyncio.sleep(SETTLE_S)
        idle = await share(pid)
        viewers = [asyncio.create_task(view(url, taken)) for _ in range(VIEWERS)]
        await asyncio.sleep(SETTLE_S / 3)
        watched = await share(pid)
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)
    return idle, watched, taken


def figures() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, Sandbox(kafka=1, fast=True) as sandbox:
        config = config_of(Path(folder), sandbox.kafka.bootstrap)
        words = [sys.executable, "-m", "consumers", "serve", "-c", str(config.path)]
        with (Path(folder) / "log").open("wb") as log:
            serve = subprocess.Popen(words, stdout=log, stderr=log)
            try:
                idle, watched, taken = asyncio.run(measured(config, serve.pid))
            finally:
                serve.terminate()
                serve.wait(15)
    return [
        Figure(f"serve, {bench_control.FLOWS} flows, nobody looks", f"{idle:.1%} of a core"),
        Figure(
            f"serve, {bench_control.FLOWS} flows, {VIEWERS} viewers",
            f"{watched:.1%} of a core, {len(taken) / VIEWERS / (MEASURE_S + SETTLE_S / 3):.2f} frames/s each",
            f"frames of at most {max(taken) / 1000:.1f} kB",
            f"< {LIMIT_SHARE:.0%}",
            watched < LIMIT_SHARE,
        ),
    ]


if __name__ == "__main__":
    show(figures())
