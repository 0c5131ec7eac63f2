"""`tailrace process` as a real part: from a source's orders to derived rows in two kinds of target."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from random import Random
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from tests.harness.pipeline import REPO, Pipeline, execute
from tests.harness.reconcile import counts, proved, reconcile, samples

EXAMPLE = REPO / "config" / "examples" / "orders_by_customer" / "processors.py"
ORDERS = 400
BUSY_ORDERS, CUSTOMERS = 20_000, 2_000
DDL = (
    "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL,"
    " total numeric(12,2) NOT NULL, placed_at timestamptz NOT NULL)",
    "INSERT INTO orders SELECT i, i % 20, CASE WHEN i % 9 = 0 THEN 'cancelled' ELSE 'paid' END, i * 1.25,"
    f" '2026-01-01T00:00Z'::timestamptz + i * interval '1 minute' FROM generate_series(1, {ORDERS}) i",
)
SQL = (
    "SELECT customer_id, count(*) AS orders, sum(total) AS revenue, max(placed_at) AS last_order"
    " FROM orders WHERE status <> 'cancelled' GROUP BY customer_id"
)
CHANGES = (
    "UPDATE orders SET customer_id = customer_id + 20, total = total + 1 WHERE id % 7 = 0",
    "UPDATE orders SET status = 'cancelled' WHERE id % 11 = 0",
    "DELETE FROM orders WHERE id % 13 = 0",
    "UPDATE orders SET id = id + 100000 WHERE id % 17 = 0",
)


def with_processor(pipeline: Pipeline, valkey: str = "") -> str:
    """The example's processor; its `out`."""
    out = f"{pipeline.name}_revenue"
    (pipeline.folder / "processors.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    pipeline.config["kafka"]["topics"]["partitions"] = 2
    pipeline.config["processors"] = {
        "revenue": {
            "agent": "processors:revenue",
            "in": [f"{pipeline.source}.public.orders"],
            "out": out,
            "key": ["customer_id"],
        }
    }
    pipeline.config["flows"] = {"table": {"from": out, "to": "copy.mirror.revenue"}}
    pipeline.config["reconcile"] = {"revenue": {"flow": "table", "sql": SQL}}
    if valkey:
        pipeline.config["targets"]["cache"] = {"kind": "redis", "url": valkey}
        board = {"as": "zset", "key": f"{out}:board", "member": "customer_id", "score": "revenue"}
        pipeline.config["flows"]["board"] = {"from": out, "to": "cache", **board}
    pipeline.write_config()
    return out


async def derived(pipeline: Pipeline) -> None:
    """Until the target's table is what the query gives; the source must be quiet."""
    wanted = await rows(pipeline.source_url, f"{SQL} ORDER BY 1")
    found: Any = None

    async def check() -> bool:
        nonlocal found
        if await pipeline.target_value("SELECT to_regclass('mirror.revenue')::text") is None:
            return False
        names = "customer_id, orders, revenue, last_order"
        found = await rows(pipeline.target_url, f"SELECT {names} FROM mirror.revenue ORDER BY 1")
        return bool(found == wanted)

    try:
        await pipeline.until("the derived table is the query's", check)
    except AssertionError as error:
        raise AssertionError(f"{found}\nis not\n{wanted}\n{error}") from None


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def start(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *DDL)
    pipeline.start("capture")
    pipeline.start("process", "revenue")
    pipeline.start("apply")


async def board(valkey: str, out: str) -> dict[str, float]:
    async with Redis.from_url(valkey) as client:
        found = await client.zrange(f"{out}:board", 0, -1, withscores=True)
    return {member.decode(): score for member, score in found}


@pytest.mark.thorough
async def test_derived_rows_are_the_query_through_a_kill(pipeline: Pipeline, valkey: str) -> None:
    out = with_processor(pipeline, valkey)
    await start(pipeline)
    pipeline.start("apply", "cache")
    await derived(pipeline)
    (process,) = pipeline.running("process")
    for number, change in enumerate(CHANGES):
        await execute(pipeline.source_url, change)
        if number == 1:
            process.kill()
            pipeline.start("process", "revenue")
    await derived(pipeline)
    wanted = {str(row[0]): float(row[2]) for row in await rows(pipeline.source_url, SQL)}

    async def shown() -> bool:
        return await board(valkey, out) == wanted

    await pipeline.until("the leaderboard is the query's", shown)
    status: dict[str, Any] = {}

    async def told() -> bool:
        nonlocal status
        code, text = await pipeline.run("status", "--json")
        status = json.loads(text)
        return code == 0 and status["processors"][0]["lag_records"] == 0

    await pipeline.until("status says that the processor is well", told)
    (view,) = status["processors"]
    assert (view["state"], view["tasks"], view["parked"], view["out"]) == ("streaming", 2, 0, out)
    assert view["state_bytes"] > 0
    (table,) = [flow for flow in status["flows"] if flow["name"] == "table"]
    assert table["way"] == [f"capture:{pipeline.source}", "process:revenue", "apply:copy"]
    code, text = await pipeline.run("tail", out, "-n", "1")
    assert " 1:@" in text  # a derived row's version is its offset
    code, report = await reconcile(pipeline, "--wait", "20s")
    assert code == 0, report
    assert [(table["flow"], table["fence"]) for table in report["tables"]] == [
        ("table", "stream"),
        ("board", "stream"),
    ]


async def test_h19_drift_of_a_derived_table_is_found_and_not_repaired_by_a_backfill(
    pipeline: Pipeline,
) -> None:
    out = with_processor(pipeline)
    await start(pipeline)
    await derived(pipeline)
    await execute(
        pipeline.target_url,
        "UPDATE mirror.revenue SET revenue = revenue + 1 WHERE customer_id = 3",
        "DELETE FROM mirror.revenue WHERE customer_id = 4",
        "UPDATE mirror.revenue SET customer_id = 99 WHERE customer_id = 5",
    )
    code, text = await pipeline.run("doctor")
    assert code == 0, text
    assert "processors:revenue is an aggregate, 2 hops; exactly_once" in text
    code, report = await reconcile(pipeline, "revenue", "--repair", "--wait", "60s", timeout_s=120)
    (table,) = report["tables"]
    assert (code, counts(table)) == (1, {"missing": 2, "extra": 1, "different": 1})
    assert samples(report) == {("missing", "4"), ("missing", "5"), ("extra", "99"), ("different", "3")}
    assert table["fences"]  # all of them were waited for
    assert "`tailrace reset revenue --yes`" in table["repair"]["refused"]
    pipeline.config["reconcile"] |= {
        "misspelt": {"flow": "table", "sql": SQL.replace("AS revenue", "AS revenu")},
        "partly": {"flow": "table", "sql": "SELECT customer_id, 7 AS orders FROM orders GROUP BY 1"},
    }
    pipeline.write_config()
    code, report = await reconcile(pipeline, "misspelt", "partly", "--wait", "20s", timeout_s=120)
    misspelt, partly = report["tables"]  # each is compared with the query of its own
    assert (misspelt["verdict"], partly["verdict"]) == ("incomplete", "drift")
    assert "gives a column 'revenu'" in misspelt["reason"]
    assert "did you mean 'revenue'? Name it with AS in reconcile.misspelt.sql" in misspelt["reason"]
    assert partly["columns"] == ["customer_id", "orders"]
    assert "the query does not give revenue, last_order, largest: not compared" in partly["notes"]
    code, text = await pipeline.run("why", out, "3")
    assert code == 1
    assert text.startswith(f"flow table: {out} customer_id=3 -> copy.mirror.revenue\nDIFFERENT: "), text
    code, text = await pipeline.run("replay", "table", "--from-start", "-k", "4")
    assert code == 0, text
    assert await pipeline.target_value("SELECT orders FROM mirror.revenue WHERE customer_id = 4") == 18
    pipeline.running("process")[0].kill()
    await execute(pipeline.source_url, "UPDATE orders SET total = 0 WHERE id = 1")
    code, report = await reconcile(pipeline, "revenue", "--wait", "1s")
    assert code == 3
    assert "the processor revenue has not handled what its inputs hold" in report["tables"][0]["reason"]
    assert "start it: `tailrace process revenue`" in report["tables"][0]["reason"]


NAMED = """
from consumers.processors import join

named = join("{orders}", "{customers}", on={{"customer_id": "id"}}, take={{"name": "customer"}})
"""


@pytest.mark.thorough
async def test_h19_the_fence_waits_for_every_source_of_the_rows(pipeline: Pipeline) -> None:
    """The query sees both tables; the capture of one of them is away: what is missing is no drift."""
    config, other = pipeline.config, f"{pipeline.name}_crm"
    mine = config["sources"][pipeline.source]
    slot = {"name": f"{pipeline.slot}_crm"}
    config["sources"][other] = {**mine, "tables": {"public.customers": {}}, "slot": slot, "publication": slot}
    mine["tables"] = {"public.orders": {}}
    topics = {"orders": f"{pipeline.source}.public.orders", "customers": f"{other}.public.customers"}
    out = f"{pipeline.name}_named"
    (pipeline.folder / "named.py").write_text(NAMED.format(**topics))
    config["processors"] = {"named": {"agent": "named:named", "in": [*topics.values()], "out": out}}
    config["flows"] = {"named": {"from": out, "to": "copy.mirror.named"}}
    sql = "SELECT o.*, c.name AS customer FROM orders o LEFT JOIN customers c ON c.id = o.customer_id"
    config["reconcile"] = {"named": {"flow": "named", "sql": sql, "on": pipeline.source}}
    pipeline.write_config()
    await execute(
        pipeline.source_url,
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int)",
        "CREATE TABLE customers (id int PRIMARY KEY, name text)",
        "INSERT INTO customers VALUES (1, 'Ann')",
        "INSERT INTO orders VALUES (1, 1), (2, 1)",
    )
    capture = pipeline.start("capture", other)
    for role in (("capture",), ("process", "named"), ("apply",)):
        pipeline.start(*role)
    await proved(pipeline, "named")
    capture.kill()
    await execute(pipeline.source_url, "UPDATE customers SET name = 'Anna'")
    code, report = await reconcile(pipeline, "named", "--wait", "1s")
    (table,) = report["tables"]
    assert (code, counts(table)) == (3, {}), report
    assert f"the capture of {other} has not passed" in table["reason"]
    pipeline.start("capture", other)
    await proved(pipeline, "named")


async def writes(url: str, stop: asyncio.Event, rows_per_s: int) -> int:
    """Updates, moves between customers, deletes and inserts; how many."""
    random, written = Random(7), 0
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while not stop.is_set():
            at = random.randint(1, BUSY_ORDERS)
            for statement in (
                f"UPDATE orders SET total = total + 1 WHERE id BETWEEN {at} AND {at + 9}",
                f"UPDATE orders SET customer_id = {random.randint(1, CUSTOMERS)} WHERE id = {at}",
                f"DELETE FROM orders WHERE id = {at + 1}",
                f"INSERT INTO orders VALUES ({at + 1}, {random.randint(1, CUSTOMERS)}, 'paid', 1, now())"
                " ON CONFLICT DO NOTHING",
            ):
                written += (await connection.execute(statement.encode())).rowcount
            await asyncio.sleep(max(0.0, began_s + written / rows_per_s - loop.time()))
    return written


@pytest.mark.slow
async def test_h19_no_false_alarm_while_a_thousand_rows_a_second_are_written(pipeline: Pipeline) -> None:
    with_processor(pipeline)
    await execute(
        pipeline.source_url,
        DDL[0],
        f"INSERT INTO orders SELECT i, i % {CUSTOMERS}, 'paid', i * 1.25, now()"
        f" FROM generate_series(1, {BUSY_ORDERS}) i",
    )
    pipeline.start("capture")
    pipeline.start("process", "revenue")
    pipeline.start("apply")
    await derived(pipeline)
    stop = asyncio.Event()
    writer = asyncio.create_task(writes(pipeline.source_url, stop, 1_000))
    settled = 0
    try:
        for _ in range(3):
            code, report = await reconcile(pipeline, "revenue", "--wait", "20s", timeout_s=120)
            (table,) = report["tables"]
            found = {name: n for name, n in counts(table).items() if name != "in_flight"}
            assert (code, found, table["complete"]) == (0, {}, True), report
            settled += table["settled"]
            assert not writer.done(), writer.result()
    finally:
        stop.set()
        written = await writer
    assert written > 1_000
    assert settled > 0  # rows that were on their way, and nothing else
    await derived(pipeline)
    await execute(pipeline.target_url, "UPDATE mirror.revenue SET orders = orders + 1 WHERE customer_id = 7")
    code, report = await reconcile(pipeline, "revenue", "--wait", "20s")
    assert (code, counts(report["tables"][0])) == (1, {"different": 1})


@pytest.mark.thorough
async def test_run_keeps_a_processor_running_and_has_its_rows_proven(pipeline: Pipeline) -> None:
    with_processor(pipeline)
    await execute(pipeline.source_url, *DDL)
    pipeline.start("run")
    await derived(pipeline)
    process = await pipeline.state("process", "streaming")
    os.kill(process.pid, signal.SIGKILL)
    await execute(pipeline.source_url, *CHANGES)
    await derived(pipeline)
    status: dict[str, Any] = {}

    async def proven() -> bool:
        nonlocal status
        _, text = await pipeline.run("status", "--json")
        status = json.loads(text)
        proof = status["flows"][0]["proof"]
        return proof is not None and proof["verdict"] == "equal"

    await pipeline.until("the derived flow has its first proof", proven, 60)
    (part,) = [part for part in status["parts"] if part["part"] == "process:revenue" and not part["ended"]
               and part["pid"] != process.pid]  # fmt: skip
    assert part["restarts"] == 1
