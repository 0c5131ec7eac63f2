"""What is done to single partitions of a captured table, of which the stream knows the root only."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

import pytest

from streamer.backfills import ask, read_runs
from streamer.changes.backfill import REPAIR, Request, State
from streamer.changes.ground import LeafFacts
from streamer.changes.lsn import parse_lsn
from streamer.config import Config
from streamer.postgres.connection import connect
from streamer.postgres.partitions import Strange, not_harmless
from tests.harness.backfill import backfill
from tests.harness.capture import Capture, capturing, events, run, until, values

Make = Callable[..., Config]

PARTITIONED = (
    "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY LIST (id)",
    "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1, 10)",
    "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)",
    "CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)",
    "INSERT INTO p VALUES (1, 1), (2, 2)",
)
KEEP_ROWS = (
    "VACUUM FULL p1",
    "VACUUM (FULL, ANALYZE) p3",
    "CLUSTER p2 USING p2_pkey",
    "REINDEX TABLE p1",
    "ALTER TABLE p ALTER v TYPE bigint",
    "ALTER TABLE p ADD g int GENERATED ALWAYS AS (id + 1) STORED",
)
TRUNCATED = "partition public.{} of public.p was truncated by itself, which the server does not send"
GONE = "partition public.{} of public.p was detached or dropped"


async def inserted_lsn(url: str) -> int:
    async with connect(url, application="test") as connection:
        row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def repaired(config: Config, request: Request) -> None:
    await ask(config.kafka.brokers, None, config.name, request, [(1,)])

    async def done() -> bool:
        runs = await read_runs(config.kafka.brokers, None, config.name)
        return runs[request.run].state is State.DONE

    await until(done)


async def looked(capture: Capture) -> list[str]:
    """The findings of a look that began after this call, and after the stream had shown all of before."""
    await capture.caught_up()
    looks = capture.looks  # one more may be under way
    await capture.until(lambda: capture.looks >= looks + 3)
    return capture.findings


@pytest.mark.thorough  # test_ground has the rules one by one, and the next test has the look
async def test_h05_one_partition_truncated_is_a_finding_that_a_repair_ends(
    database: str, make_config: Make
) -> None:
    await run(database, *PARTITIONED)
    config = make_config(database)
    async with capturing(config) as capture:
        assert await looked(capture) == []
        await run(database, *KEEP_ROWS, "CREATE TABLE p4 PARTITION OF p FOR VALUES IN (4)")
        await run(database, "INSERT INTO p VALUES (4, 4)")
        assert await looked(capture) == []  # files that were written anew, and a partition that came empty
        await run(database, "TRUNCATE p", "INSERT INTO p VALUES (1, 1), (2, 2), (4, 4)")
        assert await looked(capture) == []
        await run(database, "TRUNCATE p1", "INSERT INTO p VALUES (10, 10)", "ANALYZE p1")
        (finding,) = await looked(capture)
        assert finding.startswith(TRUNCATED.format("p1"))
        assert "`tailrace reconcile FLOW --repair --delete-extra`" in finding
    async with capturing(config) as capture:
        assert await looked(capture) == [finding]
        request = Request("r1", "shop", "public", "p", deletes=True, why=f"{REPAIR}r1", compared_lsn=1)
        await repaired(config, request)
        assert await looked(capture) == [finding], "its comparison may have been before they were gone"
        await run(database, "DROP TABLE p2", "ALTER TABLE p DETACH PARTITION p3")
        _, *gone = await looked(capture)
        assert [f.split(",")[0] for f in gone] == [GONE.format("p2"), GONE.format("p3")]
        await repaired(config, replace(request, run="r2", compared_lsn=await inserted_lsn(database)))
        await capture.until(lambda: capture.findings == [])
        await run(
            database,
            "CREATE TABLE p5 (LIKE p INCLUDING ALL)",
            "INSERT INTO p5 VALUES (5, 5)",
            "ALTER TABLE p ATTACH PARTITION p5 FOR VALUES IN (5)",
        )
        await capture.until(lambda: any("p5 of public.p was attached" in f for f in capture.findings))
        assert (await backfill(capture, "p")).state is State.DONE
        await capture.until(lambda: capture.findings == [])
    async with capturing(config) as capture:
        assert await looked(capture) == []
    found = values(await events(config, "p"))
    assert [v["before"]["id"] for v in found if v["op"] == "d"] == [1, 1]
    assert [v["op"] for v in found if v["after"] and v["after"]["id"] == 5] == ["r"]


@pytest.mark.thorough
async def test_h05_partitions_truncated_while_no_capture_ran_are_found_until_their_root_is(
    database: str, make_config: Make
) -> None:
    await run(database, *PARTITIONED)
    config = make_config(database)
    async with capturing(config):
        pass
    await run(database, *KEEP_ROWS, "TRUNCATE p1", "TRUNCATE p2", "INSERT INTO p VALUES (2, 2)", "ANALYZE p2")
    async with capturing(config) as capture:
        found = await looked(capture)
        assert [f.split(": ")[0] for f in found] == [TRUNCATED.format("p1"), TRUNCATED.format("p2")]
    await run(database, "TRUNCATE p")
    async with capturing(config) as capture:
        assert await looked(capture) == []


WAYS = {  # how partition {0}1 of {0} comes -> whether it is harmless
    "empty": (("CREATE TABLE {0}1 (LIKE {0} INCLUDING ALL)", "{attach}", "INSERT INTO {0} VALUES (1)"), True),
    "made": (("CREATE TABLE {0}1 PARTITION OF {0} FOR VALUES IN (1, 2)", "INSERT INTO {0} VALUES (1)"), True),
    "rows": (
        ("CREATE TABLE {0}1 (LIKE {0} INCLUDING ALL)", "INSERT INTO {0}1 VALUES (1)", "{attach}"),
        False,
    ),
    "at_once": (
        ("BEGIN; CREATE TABLE {0}1 (LIKE {0} INCLUDING ALL); INSERT INTO {0}1 VALUES (1); {attach}; COMMIT",),
        False,
    ),
    "made_at_once": (
        (
            "BEGIN; CREATE TABLE {0}1 PARTITION OF {0} FOR VALUES IN (1, 2); INSERT INTO {0} VALUES (1);"
            " COMMIT",
        ),
        True,
    ),
    "below": (
        (
            "CREATE TABLE {0}0 (LIKE {0} INCLUDING ALL) PARTITION BY LIST (id)",
            "CREATE TABLE {0}1 PARTITION OF {0}0 FOR VALUES IN (1, 2)",
            "INSERT INTO {0}0 VALUES (1)",
            "ALTER TABLE {0} ATTACH PARTITION {0}0 FOR VALUES IN (1, 2)",
        ),
        False,
    ),
}


async def test_h22_a_partition_comes_with_rows_or_without(database: str) -> None:
    """Also as a role sees it that may read no partition but by the root."""
    for name, (statements, _) in WAYS.items():
        attach = f"ALTER TABLE {name} ATTACH PARTITION {name}1 FOR VALUES IN (1, 2)"
        await run(
            database,
            f"CREATE TABLE {name} (id int PRIMARY KEY) PARTITION BY LIST (id)",
            f"CREATE TABLE {name}9 PARTITION OF {name} DEFAULT",
            *(statement.format(name, attach=attach) for statement in statements),
            f"INSERT INTO {name} VALUES (2), (9)",
        )
    async with connect(database, application="test") as connection:
        cursor = await connection.execute("SELECT relname, oid::bigint FROM pg_class WHERE relkind = 'r'")
        leaves = [LeafFacts(oid, name, 0, 0) for name, oid in await cursor.fetchall() if name[:-1] in WAYS]
        strange = [Strange(leaf, attached=True) for leaf in leaves if leaf.name.endswith("1")]
        wanted = {leaf.oid for leaf in leaves if leaf.name.endswith("1") and not WAYS[leaf.name[:-1]][1]}
        assert await not_harmless(connection, strange) == wanted
        role = f"reader_{secrets.token_hex(4)}"
        await connection.execute(f"CREATE ROLE {role}")
        try:
            for name in WAYS:
                await connection.execute(f"GRANT SELECT ON {name} TO {role}")
            await connection.execute(f"SET ROLE {role}")
            assert await not_harmless(connection, strange) == wanted
        finally:
            await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
