"""The page of `tailrace serve` over real heartbeats: ready, streaming, and taken over by the next process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import orjson
import pytest

from streamer.sandbox import Sandbox
from streamer.status import StatusWriter
from tests.harness.pipeline import Child, Pipeline

ADMIN = "a-key-of-the-test"


@pytest.fixture
async def client(pipeline: Pipeline, sandbox: Sandbox) -> AsyncIterator[httpx2.AsyncClient]:
    """Of the page's address, which nobody has yet."""
    address = f"127.0.0.1:{sandbox.guardian.free_port()}"
    pipeline.config["control"] = {"http": address, "keys": {"admin": ADMIN}}
    pipeline.config["schedules"] = {
        "jobs": {"greet": {"exec": "builtins:print", "cron": "0 0 29 2 *", "args": {"end": "hello"}}}
    }
    pipeline.write_config()
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with httpx2.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=60) as client:
        yield client


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx2.HTTPError:
        return False


async def test_it_shows_heartbeats_and_runs_jobs(pipeline: Pipeline, client: httpx2.AsyncClient) -> None:
    flow = {"state": "streaming", "applied": 5, "lag_records": 2, "lag_s": 0.5, "parked": 0, "rate": 3.0}
    capture = StatusWriter(pipeline.brokers, None, pipeline.name, kind="capture", part_name=pipeline.source)
    apply = StatusWriter(pipeline.brokers, None, pipeline.name, kind="apply", part_name="copy")
    async with capture, apply:
        capture.update(state="streaming", detail={"lag_s": 0.1})
        apply.update(state="streaming", detail={"flows": {"mirror": flow}})
        serve = pipeline.start("serve")
        await pipeline.until("the page is ready", lambda: _is_ready(client))

        async def flow_is_ok() -> bool:
            found = (await client.get("/api/flows/mirror")).json()
            return (found["state"], found["lag_s"]) == ("OK", 0.5)

        await pipeline.until("the flow is seen", flow_is_ok)
        assert (await client.post("/api/jobs/greet/run")).json()["joined"] is False

        async def has_run() -> bool:
            runs = (await client.get("/api/jobs/greet")).json()["history"]
            return bool(runs) and runs[0]["outcome"] == "ok"

        await pipeline.until("the job has run", has_run)
        async with asyncio.timeout(60), client.stream("GET", "/api/stream") as stream:
            lines = stream.aiter_lines()
            frame: dict[str, Any] = {"jobs": []}
            # The first one may be from before the run's end: one is made a second.
            while [(job["name"], job["state"]) for job in frame["jobs"]] != [("greet", "OK")]:
                line = await anext(lines)
                if line.startswith("data: "):
                    frame = orjson.loads(line.removeprefix("data: "))
            assert [row[:2] for row in frame["flows"]] == [["mirror", "OK"]]
            assert frame["scheduler"].endswith(f"-{serve.pid}")
            assert await serve.stop() == 0  # with a viewer that looks on
            rest = [line async for line in lines]
            assert rest


@pytest.mark.thorough
async def test_the_page_moves_to_the_next_process(pipeline: Pipeline, client: httpx2.AsyncClient) -> None:
    first = pipeline.start("serve")
    await pipeline.until("the page is ready", lambda: _is_ready(client))
    second = pipeline.start("serve")
    await pipeline.until("the second waits", lambda: _says(second, "another process has the page's address"))
    first.kill()
    await pipeline.until("the page is there again", lambda: _is_ready(client))
    assert await second.stop() == 0


async def _says(child: Child, words: str) -> bool:
    return words in child.log()


async def test_an_address_of_nobody_here_is_told(pipeline: Pipeline) -> None:
    pipeline.config["control"] = {"http": "192.0.2.1:8088"}
    pipeline.write_config()
    code, out = await pipeline.run("serve")
    assert code == 64
    assert "control.http" in out
