"""`tailrace demo` as a user runs it: the whole walk on short settings, and its verdict in the exit code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml

from streamer.errors import EXIT_FINDING, EXIT_OK

ROOT = Path(__file__).parents[2]
LIMIT_S = 150  # 20 s on two calm cores
SHOP_S = 5  # the least that the command takes
POLL_S = 0.2

pytestmark = pytest.mark.thorough


@asynccontextmanager
async def demo(config: Path, *options: str) -> AsyncIterator[Process]:
    """Without its end, killed: its guardian ends the servers."""
    command = f"-m consumers demo --seconds {SHOP_S} --json".split()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "-c",
        str(config),
        *options,
        cwd=ROOT,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def verdict(process: Process) -> tuple[int | None, dict[str, Any]]:
    printed, _ = await process.communicate()
    return process.returncode, orjson.loads(printed)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


async def target_of(config: Path) -> str:
    while True:
        with suppress(OSError, TypeError, KeyError, yaml.YAMLError):
            return str(yaml.safe_load(read(config))["targets"]["copy"]["url"])
        await asyncio.sleep(POLL_S)


async def tamper(url: str) -> None:
    """One value of a row that is there, under a version that no later change of the row passes."""
    statement = """UPDATE mirror.products SET title = title || '?', _tailrace_epoch = 2147483647
                   WHERE sku = (SELECT min(sku) FROM mirror.products)
                     AND (SELECT count(*) FROM mirror.order_lines) > 100000  -- the shop is open"""
    while True:
        with suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                if (await connection.execute(statement)).rowcount:
                    return
        await asyncio.sleep(POLL_S)


def alive(pid: int) -> bool:
    """A process that has ended may wait for whoever has adopted it to notice."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False


async def test_equal_and_what_is_kept_is_stopped_by_the_command_that_it_prints(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    async with demo(config, "--keep") as process:
        code, told = await verdict(process)
        assert (code, told["equal"], told["passed"], told["shortfalls"]) == (EXIT_OK, True, True, [])
        assert sum(table["rows"] for table in told["verdict"]["tables"]) > 100_000
        kept = told["running"]
        for url in (kept["source"], kept["target"]):
            async with await psycopg.AsyncConnection.connect(url) as connection:
                assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
        program, *stop = kept["stop"].split()
        assert program == "tailrace"
        stopped = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "consumers", *stop, cwd=ROOT, stdout=DEVNULL
        )
        assert await stopped.wait() == EXIT_OK
        assert not any(alive(kept[name]) for name in ("supervisor_pid", "guardian_pid"))
        assert not Path(kept["log"]).parent.exists()
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(kept["source"])


async def test_one_value_that_was_changed_in_the_target_is_not_equal(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    async with demo(config, "--catch-up", "8") as process:
        await tamper(await target_of(config))
        code, told = await verdict(process)
    assert (code, told["equal"], told["passed"]) == (EXIT_FINDING, False, False)
    wrong = {t["source"]["table"]: t for t in told["verdict"]["tables"] if not t["equal"]}
    assert list(wrong) == ["products"]
    assert wrong["products"]["missing"] == 0
    assert wrong["products"]["different"] + wrong["products"]["extra"] == 1  # the shop may have deleted it
    assert len(wrong["products"]["samples"]) == 1


def test_make_hands_the_wish_to_keep_on() -> None:
    for said, kept in (("KEEP=1", True), ("KEEP=0", False), ("", False)):
        shown = subprocess.run(
            ["make", "-n", "demo", *([said] if said else [])],
            cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "MAKEFLAGS": ""},
        )  # fmt: skip
        assert ("tailrace demo --keep" in shown.stdout) is kept, shown.stdout
