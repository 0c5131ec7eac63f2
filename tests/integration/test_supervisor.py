"""`tailrace run` as a user starts it: real children, killed, refused, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml

from consumers import supervisor
from streamer.errors import EXIT_OK, EXIT_RUNTIME
from tests.harness.capture import until

START_S = 60.0  # a child starts in 2 s; the machine may have other work
STOP_S = 25.0  # what the program allows itself; 10 s are promised, on a machine without other work
ROOT = Path(__file__).parents[2]

Config = dict[str, Any]


class Running:
    """A `tailrace` process and the JSON lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.lines: list[dict[str, Any]] = []
        assert process.stdout is not None
        self._reading = asyncio.create_task(self._read(process.stdout))
        self._more = asyncio.Event()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(orjson.loads(line))
            self._more.set()
        self._more.set()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line that fits, printed already or to come."""
        seen = 0
        try:
            async with asyncio.timeout(START_S):
                while True:
                    for line in self.lines[seen:]:
                        seen += 1
                        if condition(line):
                            return line
                    assert not self._reading.done(), f"it ended; its log:\n{self.log.read_text()}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            pytest.fail(f"not in time; lines: {self.lines}\nlog:\n{self.log.read_text()}")

    async def part(self, part: str, state: str, **wanted: Any) -> dict[str, Any]:
        wanted |= {"part": part, "state": state}
        return await self.until(lambda line: all(line.get(k) == v for k, v in wanted.items()))

    async def end(self) -> int:
        async with asyncio.timeout(START_S):
            code = await self.process.wait()
            await self._reading
        return code


Start = Callable[[Config], Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `tailrace run` on a config; what still runs at the end of the test is killed."""
    started: list[Running] = []

    async def run(config: Config) -> Running:
        path = tmp_path / "tailrace.yaml"
        path.write_text(yaml.safe_dump(config))
        log = tmp_path / f"log-{len(started)}"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "consumers", "run", "-c", str(path), "--json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        running = Running(process, log)
        started.append(running)
        return running

    yield run
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
        await running.end()


@pytest.fixture
def config(kafka: str, kafka_name: str, database: str, target_database: str) -> Config:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, note text)")
        connection.execute("INSERT INTO orders VALUES (1, 'one')")
    return {
        "name": kafka_name,
        "kafka": {"brokers": kafka},
        "sources": {kafka_name: {"kind": "postgres", "url": database, "tables": {"public.*": {}}}},
        "targets": {"warehouse": {"kind": "postgres", "url": target_database}},
        "flows": {"mirror": {"from": f"{kafka_name}.public.*", "to": "warehouse.mirror"}},
    }


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids: int) -> None:
    async with asyncio.timeout(START_S):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - not our children, so nobody tells us
            await asyncio.sleep(0.05)


async def test_a_killed_child_comes_back_and_sigterm_ends_all(config: Config, start: Start) -> None:
    run = await start(config)
    name = config["name"]
    capture = await run.part(f"capture:{name}", "running")
    apply = await run.part("apply:warehouse", "running")
    await run.until(lambda line: line.get("flow") == "mirror" and line["state"] in ("OK", "IDLE"))

    os.kill(apply["pid"], signal.SIGKILL)
    fallen = await run.part("apply:warehouse", "backoff")
    assert fallen["reason"] == "killed by SIGKILL"
    again = await run.part("apply:warehouse", "running", restarts=1)
    assert again["pid"] != apply["pid"]
    assert alive(capture["pid"]), "the other part was not touched"

    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert await run.end() == EXIT_OK
    assert time.monotonic() - began < STOP_S
    assert not alive(capture["pid"])
    assert not alive(again["pid"])


@pytest.mark.thorough
async def test_an_error_for_a_person_stops_that_part_only(config: Config, start: Start) -> None:
    source = config["sources"][config["name"]]
    source["url"] = source["url"].replace("postgres:", "postgres:hunter2", 1)
    run = await start(config)
    refused = await run.part(f"capture:{config['name']}", "error")
    assert "hunter2" not in refused["reason"]
    assert "->" in refused["reason"], "it says what to do"
    assert (refused["next_try_us"] - refused["at_us"]) / 1e6 > 20, "not in a hot loop"
    apply = await run.part("apply:warehouse", "running")
    shown = await run.until(lambda line: line.get("flow") == "mirror" and line["state"] == "ERROR")
    assert "capture" in shown["reason"]
    assert alive(apply["pid"])
    run.process.send_signal(signal.SIGINT)
    assert await run.end() == EXIT_OK
    assert "hunter2" not in run.log.read_text()
    early = [line for line in run.lines if line.get("at_us", 0) < refused["next_try_us"]]
    assert all(line.get("restarts", 0) == 0 for line in early)


async def test_a_part_that_runs_again_keeps_why_it_fell_and_not_what_to_do(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(supervisor, "SLOW_RETRY_S", 0.1)
    states: list[supervisor.PartState] = []
    stop = asyncio.Event()

    def changed(state: supervisor.PartState) -> None:
        states.append(state)
        if state.state == "running" and state.restarts:
            stop.set()

    arguments = ["apply", "nowhere", "-c", str(path), "--json"]
    child = supervisor.Child("apply:nowhere", arguments, changed=changed, line=lambda _part, _text: None)
    async with asyncio.timeout(START_S):
        await child.keep(stop)
    [fallen] = [state for state in states if state.state == "error"]
    [again] = [state for state in states if state.state == "running" and state.restarts]
    what, _, fix = fallen.reason.partition("\n")
    assert "->" in fix, fallen.reason
    assert again.reason == what


@pytest.mark.thorough
async def test_children_end_with_a_killed_supervisor(config: Config, start: Start) -> None:
    run = await start(config)
    parts = (f"capture:{config['name']}", "apply:warehouse")
    pids = [(await run.part(part, "running"))["pid"] for part in parts]
    await run.until(lambda line: line.get("flow") == "mirror" and line["state"] in ("OK", "IDLE"))
    run.process.kill()
    await gone(*pids)


@pytest.mark.thorough
async def test_a_second_run_is_refused(config: Config, start: Start) -> None:
    first = await start(config)
    await first.part("apply:warehouse", "running")
    second = await start(config)
    assert await second.end() == EXIT_RUNTIME
    assert f"as process {first.process.pid}" in second.log.read_text()
    assert second.lines == []
    first.process.send_signal(signal.SIGTERM)
    assert await first.end() == EXIT_OK


async def copied(url: str, ids: list[int]) -> None:
    """Until the target has these orders."""

    async def there() -> bool:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            try:
                found = await connection.execute("SELECT id FROM mirror.orders ORDER BY id")
            except psycopg.errors.UndefinedTable:
                return False
            return [row[0] for row in await found.fetchall()] == ids

    await until(there)


@pytest.mark.thorough
async def test_the_embedded_kafka_is_kept(config: Config, start: Start, tmp_path: Path) -> None:
    config["kafka"] = {"brokers": "embedded"}
    run = await start(config)
    kafka = await run.part("kafka:embedded", "running")
    target_url = config["targets"]["warehouse"]["url"]
    await copied(target_url, [1])
    with psycopg.connect(config["sources"][config["name"]]["url"], autocommit=True) as connection:
        connection.execute("INSERT INTO orders VALUES (2, 'two')")
    await copied(target_url, [1, 2])  # by the stream: a first copy that is killed would raise the epoch
    with psycopg.connect(target_url) as connection:
        found = connection.execute("SELECT DISTINCT _tailrace_epoch FROM mirror.orders").fetchall()
    ((epoch,),) = found
    os.kill(kafka["pid"], signal.SIGKILL)
    again = await run.part("kafka:embedded", "running", restarts=1)
    assert (tmp_path / ".tailrace" / "kafka").is_dir()
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert await run.end() == EXIT_OK
    assert time.monotonic() - began < STOP_S, "the children first, then Kafka"
    assert not alive(again["pid"])
    # A healthy source is reset while nothing runs: the command starts that Kafka for itself.
    (source,) = config["sources"]
    file = str(tmp_path / "tailrace.yaml")
    command = [sys.executable, "-m", "consumers", "reset", source, "--yes", "--json", "-c", file]
    reset = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    stdout, _ = await reset.communicate()
    assert orjson.loads(stdout) == {"source": source, "epoch": epoch + 1}
