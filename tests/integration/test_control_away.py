"""A control database that goes away under a real `tailrace serve`: told, waited for, no job runs twice."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.schedule.plan import Outcome
from consumers.schedule.view import Past
from streamer.config import load
from streamer.errors import EXIT_RUNTIME
from streamer.sandbox import PostgresServer
from tests.harness.pipeline import Child, Pipeline, execute
from tests.harness.small_disk import small_disk
from tests.servers import fresh_folder

pytestmark = pytest.mark.thorough

CHORE = """
import time
from pathlib import Path

def tick():
    with Path(__file__).with_name("began").open("a") as file:
        file.write("x")
    time.sleep(0.5)
"""
RUNS = 2  # seen before it goes away, and again once it is back
SMALL_MB, LARGE_MB = 1, 16

Gone = Callable[[], AbstractAsyncContextManager[None]]  # away while it is open


@asynccontextmanager
async def a_locked_file(folder: Path) -> AsyncIterator[tuple[str, Gone]]:
    @asynccontextmanager
    async def gone() -> AsyncIterator[None]:
        with closing(sqlite3.connect(folder / "control.db", isolation_level=None)) as line:
            line.execute("BEGIN EXCLUSIVE")
            yield
            line.execute("ROLLBACK")

    yield "sqlite:///control.db", gone


@asynccontextmanager
async def a_moved_file(folder: Path) -> AsyncIterator[tuple[str, Gone]]:
    """With what SQLite keeps beside it."""
    place, elsewhere = folder / "control", folder / "elsewhere"

    @asynccontextmanager
    async def gone() -> AsyncIterator[None]:
        place.rename(elsewhere)
        yield
        elsewhere.rename(place)

    yield "sqlite:///control/control.db", gone


@asynccontextmanager
async def a_removed_database(folder: Path) -> AsyncIterator[tuple[str, Gone]]:
    """Without what Tailrace notes beside it; and meanwhile commands that would have made it."""
    place, elsewhere = folder / ".tailrace", folder / "elsewhere"

    @asynccontextmanager
    async def gone() -> AsyncIterator[None]:
        elsewhere.mkdir()
        for path in place.glob("control.db*"):
            path.rename(elsewhere / path.name)
        for words in (["jobs"], ["alerts"], ["reconcile", "history"]):
            said = await tailrace(folder, *words)
            assert "its file is gone" in said, said
            assert "put it back; or start `tailrace serve` again" in said
        assert list(place.glob("control.db*")) == []
        (place / "control.db").touch()  # nor is another one taken for it
        yield
        (place / "control.db").unlink()
        for path in elsewhere.iterdir():
            path.rename(place / path.name)

    yield "sqlite:///.tailrace/control.db", gone


async def tailrace(folder: Path, *words: str) -> str:
    """What it says when it fails."""
    program = [sys.executable, "-m", "consumers", *words, "-c", str(folder / "tailrace.yaml")]
    command = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await command.communicate()
    assert command.returncode == EXIT_RUNTIME, said
    return said.decode()


@asynccontextmanager
async def a_full_disk(folder: Path) -> AsyncIterator[tuple[str, Gone]]:
    with small_disk(folder / "small", SMALL_MB) as disk:

        @asynccontextmanager
        async def gone() -> AsyncIterator[None]:
            with (disk.path / "filler").open("wb", buffering=0) as filler:
                while disk.free_bytes:
                    filler.write(bytes(disk.free_bytes))
            yield
            disk.grow(LARGE_MB)

        yield "sqlite:///small/control.db", gone


@asynccontextmanager
async def a_killed_postgres(_: Path) -> AsyncIterator[tuple[str, Gone]]:
    server = PostgresServer(fresh_folder() / "postgres", fast=True)  # where its user may enter
    await asyncio.to_thread(server.start)

    @asynccontextmanager
    async def gone() -> AsyncIterator[None]:
        await asyncio.to_thread(server.kill)
        yield
        await asyncio.to_thread(server.start)

    try:
        yield server.url, gone
    finally:
        await asyncio.to_thread(server.close)


@pytest.mark.parametrize(
    "store", [a_locked_file, a_moved_file, a_removed_database, a_full_disk, a_killed_postgres]
)
async def test_it_is_told_and_waited_for(
    pipeline: Pipeline, store: Callable[[Path], AbstractAsyncContextManager[tuple[str, Gone]]]
) -> None:
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    (pipeline.folder / "chores.py").write_text(CHORE)
    async with store(pipeline.folder) as (url, gone):
        pipeline.config["control"] = {"url": url, "http": "127.0.0.1:0"}
        pipeline.config["schedules"] = {"jobs": {"tick": {"exec": "chores:tick", "every": "1s"}}}
        pipeline.write_config()
        await execute(pipeline.source_url, "CREATE TABLE item (id int PRIMARY KEY)")
        for role in ("capture", "apply"):
            await pipeline.state(role, "streaming", child=pipeline.start(role))
        serve = pipeline.start("serve")
        await pipeline.state("serve", "running", child=serve)
        jobs = Jobs(Database(load(pipeline.config_path)))
        await pipeline.until("the job has run", lambda: _has_run(jobs, RUNS))
        (page,) = [r.detail["page"] for r in await pipeline.status("serve") if "page" in r.detail]
        async with httpx2.AsyncClient(base_url=page, timeout=20) as http:
            await pipeline.until("it is ready", lambda: _is_ready(http))
            async with gone():
                said = await pipeline.state("serve", "waiting", child=serve)
                assert "the control database" in said.reason, said.reason
                await pipeline.until("it is not ready", lambda: _is_not_ready(http))
                await pipeline.until("the page's sentence says so", lambda: _is_told(http))
                assert (await http.get("/healthz")).status_code == 200
                await pipeline.until("the log says so", lambda: _is_logged(serve))
            await pipeline.state("serve", "running", child=serve)
            before = await asyncio.to_thread(jobs.history, "tick", 1000)
            again = len([run for run in before if run.outcome is Outcome.OK]) + RUNS
            await pipeline.until("the job runs again", lambda: _has_run(jobs, again))
            await pipeline.until("it is ready again", lambda: _is_ready(http))
        assert await serve.stop() == 0
        known = await asyncio.to_thread(jobs.history, "tick", 1000)
    runs = [run for run in reversed(known) if run.outcome is not Outcome.SKIPPED]
    assert len((pipeline.folder / "began").read_text()) <= len(runs), "each was noted before it began"
    for earlier, later in pairwise(runs):
        assert earlier.ended_us is not None
        assert earlier.ended_us <= later.began_us, "two at once"


async def _has_run(jobs: Jobs, times: int) -> bool:
    runs: list[Past] = await asyncio.to_thread(jobs.history, "tick", 1000)
    return len([run for run in runs if run.outcome is Outcome.OK]) >= times


async def _is_ready(http: httpx2.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200


async def _is_told(http: httpx2.AsyncClient) -> bool:
    verdict: str = (await http.get("/api/status")).json()["verdict"]
    return verdict.startswith("serve:") and " waits: " in verdict and "the control database" in verdict


async def _is_logged(serve: Child) -> bool:
    return "jobs wait" in serve.log()


async def _is_not_ready(http: httpx2.AsyncClient) -> bool:
    answer = await http.get("/readyz")
    return answer.status_code == 503 and "no job begins" in answer.json()["problems"]
