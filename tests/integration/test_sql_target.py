"""A SQLite file as a target of real apply processes, on a real Kafka."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from consumers.targets.registry import make_target
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Config, parse
from streamer.doctor import Level
from streamer.doctor.check import Findings
from streamer.doctor.sql import check_sql
from streamer.errors import EXIT_USAGE
from tests.harness.capture import until
from tests.harness.feeder import Feeder, Table, applying
from tests.harness.tiers import corners

COLUMNS = [
    ("id", "integer", "number"),
    ("name", "text", "text"),
    ("price", "numeric", "numeric"),
    ("paid", "boolean", "bool"),
]
ALL = "SELECT id, name, price, paid FROM orders ORDER BY id"
END_S = 60.0


def text_of(feeder: Feeder, url: str = "sqlite:///copy.db", flow: str = "") -> str:
    return f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets:
  lite: {{kind: sql, url: "{url}", batch: {{rows: 400}}}}
flows:
  mirror: {{from: "{feeder.source}.public.*", to: lite{flow}}}
"""


def config_of(feeder: Feeder, file: Path, flow: str = "") -> Config:
    return parse(text_of(feeder, f"sqlite:///{file}", flow), file.with_name("tailrace.yaml"), environ={})


def run(file: Path, *statements: str) -> list[tuple[Any, ...]]:
    """What the last one gives; nothing where a table is not there yet."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            try:
                rows = connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
    return rows


async def present(file: Path, query: str, expected: list[tuple[Any, ...]]) -> None:
    async def there() -> bool:
        return run(file, query) == expected

    await until(there)


def row(n: int, name: str = "a", price: str = "1.50", *, paid: bool = True) -> dict[str, Any]:
    return {"id": n, "name": name, "price": price, "paid": paid}


def stored(n: int, name: str = "a", price: str = "1.50", paid: int = 1) -> tuple[Any, ...]:
    return (n, name, price, paid)


async def test_every_change_arrives(feeder: Feeder, file: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    for n in range(20):
        table.create(row(n), 100)
    table.update(row(3, "three", "9.90"), 110)
    table.delete(row(4), 120)
    table.update(row(5, "five", UNAVAILABLE, paid=False), 130)
    await feeder.flush()
    async with applying(config_of(feeder, file), target="lite") as apply:
        expected = [stored(n) for n in range(20) if n not in (3, 4, 5)]
        expected += [stored(3, "three", "9.90"), stored(5, "five", "1.50", 0)]
        await present(file, ALL, sorted(expected))
        table.truncate(200)
        table.create(row(7, "after"), 210)
        table.create(row(8, "before"), 150)
        await feeder.flush()
        await apply.settled(feeder)
        assert run(file, ALL) == [stored(7, "after")]
        await apply.until(lambda: apply.flow()["applied"] == 24, "all of them told")
        assert apply.flow()["guarded"] == 1


async def test_a_refused_row_is_parked_alone_and_retried(feeder: Feeder, file: Path) -> None:
    run(
        file,
        "CREATE TABLE orders (id integer PRIMARY KEY, name text, price text, paid boolean)",
        "CREATE TRIGGER fits BEFORE INSERT ON orders WHEN NEW.name = 'bad'"
        " BEGIN SELECT RAISE(ABORT, 'no bad names'); END",
    )
    table = await feeder.table("orders", COLUMNS)
    for n in range(10):
        table.create(row(n, "bad" if n == 4 else "a"), 100, n)
    await feeder.flush()
    config = config_of(feeder, file)
    async with applying(config, target="lite") as apply:
        await present(file, ALL, [stored(n) for n in range(10) if n != 4])
        await present(file, "SELECT sequence, code FROM _tailrace_parked", [(1, "SQLITE_CONSTRAINT_TRIGGER")])
        table.update(row(4, "later", UNAVAILABLE), 110)
        await feeder.flush()
        await present(file, "SELECT sequence FROM _tailrace_parked ORDER BY sequence", [(1,), (2,)])
        table.update(row(5, "flows"), 120)
        await feeder.flush()
        await present(file, "SELECT name FROM orders WHERE id = 5", [("flows",)])
        run(file, "DROP TRIGGER fits")
        operator = make_target(config.targets["lite"], f"{config.name}.lite", list(config.flows.values()))
        await operator.open()
        (first, *_) = await operator.parked()
        assert "no bad names" in first.message
        assert await operator.ask([(first.place, first.key)], "retry", "ann@host") == 1
        await operator.close()
        await present(file, "SELECT name FROM orders WHERE id = 4", [("later",)])
        await present(file, "SELECT count(*) FROM _tailrace_parked", [(0,)])
        await apply.stop()


async def test_a_held_truncate_goes_on_when_it_is_approved(feeder: Feeder, file: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    for n in range(30):
        table.create(row(n), 100, n)
    await feeder.flush()
    config = config_of(feeder, file, ", truncate: hold")
    async with applying(config, target="lite") as apply:
        await present(file, "SELECT count(*) FROM orders", [(30,)])
        table.truncate(200)
        await feeder.flush()
        held = ("truncate", "held", 30, 30)
        await present(file, "SELECT kind, state, rows, table_rows FROM _tailrace_gates", [held])
        assert run(file, "SELECT count(*) FROM orders") == [(30,)]
        operator = make_target(config.targets["lite"], f"{config.name}.lite", list(config.flows.values()))
        await operator.open()
        assert len(await operator.decide("mirror", "approved", "ann@host", 2**60)) == 1
        await operator.close()
        await present(file, "SELECT count(*) FROM orders", [(0,)])
        await apply.stop()


async def test_a_locked_file_is_waited_for_and_said(
    feeder: Feeder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.targets.sql_sqlite.BUSY_TIMEOUT_S", 0.1)
    table = await feeder.table("orders", COLUMNS)
    table.create(row(1), 100)
    await feeder.flush()
    async with applying(config_of(feeder, file), target="lite") as apply:
        await present(file, "SELECT count(*) FROM orders", [(1,)])
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            table.create(row(2), 110)
            await feeder.flush()
            await apply.until(lambda: apply.status.record.state == "waiting", "waiting")
            assert "database is locked" in str(apply.status.record)
            other.execute("ROLLBACK")
        await present(file, "SELECT count(*) FROM orders", [(2,)])
        await apply.settled(feeder)


# Real processes


@asynccontextmanager
async def process(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`tailrace apply lite`; killed at the end if it runs still."""
    with path.with_suffix(".log").open("ab") as log:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "consumers", "apply", "lite", "-c", str(path)), stdout=log, stderr=log
        )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


def change_some(table: Table, model: dict[int, tuple[Any, ...]], lsn: int, chance: random.Random) -> None:
    for ordinal in range(40):
        n = chance.randrange(200)
        if n in model and chance.random() < 0.3:
            del model[n]
            table.delete(row(n), lsn, ordinal)
        else:
            model[n] = stored(n, f"{lsn}.{ordinal}")
            table.update(row(n, f"{lsn}.{ordinal}"), lsn, ordinal)


@pytest.mark.thorough
async def test_kill_9_at_any_moment_and_two_processes_end_equal(feeder: Feeder, file: Path) -> None:
    path = file.with_name("tailrace.yaml")
    path.write_text(text_of(feeder), encoding="utf-8")
    chance = random.Random(11)
    table = await feeder.table("orders", COLUMNS, partitions=4)
    model: dict[int, tuple[Any, ...]] = {}
    lsn = 100
    for round_ in range(4):
        for _ in range(25):
            lsn += 8
            change_some(table, model, lsn, chance)
        await feeder.flush()
        already = run(file, "SELECT sum(next_offset) FROM _tailrace_checkpoints")

        async def moved(before: list[tuple[Any, ...]] = already) -> bool:
            found = run(file, "SELECT sum(next_offset) FROM _tailrace_checkpoints")
            return bool(found) and found != before and (found[0][0] or 0) > 0

        async with process(path) as one:
            await until(moved)
            if round_ % 2:
                one.kill()
                await one.wait()
            else:
                one.send_signal(signal.SIGKILL)
                await one.wait()
        assert run(file, "PRAGMA integrity_check") == [("ok",)]
    async with process(path) as one, process(path) as two:
        expected = [value for _, value in sorted(model.items())]
        await present(file, ALL, expected)
        lsn += 8
        change_some(table, model, lsn, chance)
        await feeder.flush()
        await present(file, ALL, [value for _, value in sorted(model.items())])
        assert one.returncode is None
        assert two.returncode is None
        for each in (one, two):
            each.terminate()
            assert await each.wait() == 0, path.with_suffix(".log").read_text(encoding="utf-8")
    assert run(file, ALL) == [value for _, value in sorted(model.items())]


@pytest.mark.parametrize(
    ("url", "words"),
    corners(
        [
            ("sqlite:///none/copy.db", ["there is no folder", "mkdir -p"]),
            ("sqlite:///:memory:", ["targets.lite.url", "in memory", "kind: memory"]),
            ("mysql://u:hunter2@h/d", ["a sql target in mysql is not built yet", "sqlite:///FILE"]),
            ("oracle://u:hunter2@h/d", ["there is no sql target for 'oracle'"]),
        ],
        "mysql://u:hunter2@h/d",
    ),
)
async def test_what_a_wrong_url_is_told(feeder: Feeder, tmp_path: Path, url: str, words: list[str]) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(text_of(feeder, url), encoding="utf-8")
    async with process(path) as started:
        async with asyncio.timeout(END_S):
            assert await started.wait() == EXIT_USAGE
    log = path.with_suffix(".log").read_text(encoding="utf-8")
    assert all(word in log for word in words), log
    assert "hunter2" not in log
    assert "Traceback" not in log


# Doctor


async def examined(config: Config) -> list[tuple[str, str]]:
    findings = Findings("target lite")
    target = config.targets["lite"]
    assert target.kind == "sql"
    await check_sql(findings, config, target, {})
    return [(check.level.value, check.what) for check in findings.checks]


async def test_the_doctor_looks_at_the_file_and_makes_none(feeder: Feeder, file: Path) -> None:
    config = config_of(feeder, file)
    assert await examined(config) == [(Level.OK, f"{file} will be made")]
    assert list(file.parent.glob("copy*")) == []
    lost = config_of(feeder, file.parent / "none" / "copy.db")
    assert await examined(lost) == [(Level.FAIL, f"there is no folder {file.parent / 'none'} for copy.db")]
    target = make_target(config.targets["lite"], "other.lite", [])
    await target.open()
    await target.close()
    (identity, *_) = await examined(config)
    assert identity == (
        Level.FAIL,
        f"the target belongs to the consumer group other.lite, not to {feeder.name}.lite",
    )
    run(file, f"UPDATE _tailrace_identity SET consumer_group = '{feeder.name}.lite'")
    assert {level for level, _ in await examined(config)} == {Level.OK}
    words = file.with_name("words")
    words.write_text("not a database " * 100, encoding="utf-8")
    (found,) = await examined(config_of(feeder, words))
    assert found == (Level.FAIL, f"{words}: file is not a database")
