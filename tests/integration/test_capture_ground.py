"""What is done to tables under a running capture, and what the stream does not tell, becomes a finding."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from streamer.changes.backfill import State
from streamer.config import Config
from streamer.errors import FatalError
from streamer.runner import reset_source
from tests.harness.backfill import over, reach, request
from tests.harness.capture import Capture, capturing, current_lsn, events, fails, run, values
from tests.harness.tiers import corners

Make = Callable[..., Config]

UNDER_A_CAPTURE = {
    "rename": (
        ("ALTER TABLE t RENAME TO other",),
        "public.t was renamed to public.other",
    ),
    "made again": (
        ("DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, v text)"),
        "public.t was captured before and is out of its publication",
    ),
    "taken out and put back": (
        ("ALTER PUBLICATION {name} DROP TABLE t", "ALTER PUBLICATION {name} ADD TABLE t"),
        "public.t was taken out of its publication",
    ),
    "taken out": (
        ("DELETE FROM t", "ALTER PUBLICATION {name} DROP TABLE t"),
        "public.t was captured before and is out of its publication",
    ),
    "key of a full identity dropped": (
        ("ALTER TABLE f DROP CONSTRAINT f_pkey",),
        "the key or the replica identity of public.f changed",
    ),
    "keyless gets a key": (
        ("ALTER TABLE bag ADD PRIMARY KEY (v)",),
        "public.bag has a key or a replica identity now, but only its INSERT and TRUNCATE are captured",
    ),
    "partition attached": (
        (
            "CREATE TABLE p2 (id int NOT NULL)",
            "INSERT INTO p2 VALUES (2)",
            "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)",
        ),
        "partition public.p2 of public.p was attached with rows",
    ),
    "partition dropped": (
        ("DROP TABLE p1",),
        "partition public.p1 of public.p was detached or dropped",
    ),
}


@pytest.mark.parametrize("name", corners(UNDER_A_CAPTURE, "made again", "partition attached"))
async def test_h22_h27_what_the_stream_does_not_tell_is_a_finding(
    name: str, database: str, make_config: Make
) -> None:
    statements, finding = UNDER_A_CAPTURE[name]
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE TABLE f (id int PRIMARY KEY)",
        "ALTER TABLE f REPLICA IDENTITY FULL",
        "CREATE TABLE bag (v text NOT NULL)",
        "CREATE TABLE p (id int NOT NULL) PARTITION BY LIST (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO bag VALUES ('a')",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        assert capture.findings == []
        await run(database, *(statement.format(name=config.name) for statement in statements))
        await capture.until(lambda: any(finding in found for found in capture.findings))
        assert any("`tailrace reset shop --yes`" in found for found in capture.findings)


@pytest.mark.thorough
async def test_h22_what_is_done_while_no_capture_runs_is_found_at_every_later_start(
    database: str, make_config: Make
) -> None:
    await run(
        database,
        "CREATE TABLE renamed (id int PRIMARY KEY)",
        "CREATE TABLE remade (id int PRIMARY KEY)",
        "CREATE TABLE taken (id int PRIMARY KEY)",
        "CREATE TABLE retyped (id int PRIMARY KEY, v int, kept int)",
        "INSERT INTO retyped VALUES (1, 1, 1)",
        "CREATE TABLE p (id int NOT NULL) PARTITION BY LIST (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "CREATE TABLE later (id int PRIMARY KEY, v int)")
        looks = capture.looks  # one more may be under way; the next publishes it, and one more compares it
        await capture.until(lambda: capture.looks >= looks + 3)
    await run(
        database,
        "ALTER TABLE renamed RENAME TO other",
        "DROP TABLE remade",
        "CREATE TABLE remade (id int PRIMARY KEY)",
        f"ALTER PUBLICATION {config.name} ADD TABLE remade",
        f"ALTER PUBLICATION {config.name} DROP TABLE taken",
        f"ALTER PUBLICATION {config.name} ADD TABLE taken",
        "ALTER TABLE retyped ALTER v TYPE text USING 'n' || v, ALTER kept TYPE bigint",
        "ALTER TABLE later RENAME v TO w",
        "DROP TABLE p1",
        "VACUUM FULL retyped",
    )
    expected = (
        "public.renamed was renamed to public.other",
        "public.remade was dropped and made again",
        "public.taken was taken out of its publication",
        "column v of public.retyped was integer and is text now",
        "column v of public.later was renamed to w",
        "partition public.p1 of public.p was detached or dropped",
    )
    for _ in range(2):  # a finding is no news that the first look at it swallows
        async with capturing(config) as capture:
            await capture.until(lambda c=capture: bool(c.looks))  # type: ignore[misc]
            for finding in expected:
                assert sum(finding in found for found in capture.findings) == 1, finding
            assert len(capture.findings) == len(expected)
            failed = await request(capture, "gone")
            assert (await over(capture, failed)).state is State.FAILED
    await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        assert capture.findings == []
        await reach(capture, failed, lambda entry: entry["state"] is State.CANCELLED)


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (("DROP PUBLICATION {name}", "CREATE PUBLICATION {name} FOR TABLE t"), "was dropped or made again"),
        pytest.param(
            ("ALTER PUBLICATION {name} SET (publish = 'insert')",),
            "was told to publish other operations",
            marks=pytest.mark.thorough,
        ),
    ],
)
async def test_h04_a_publication_changed_while_no_capture_ran_stops_the_source(
    statements: tuple[str, ...], what: str, database: str, make_config: Make
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config):
        pass
    await run(database, *(statement.format(name=config.name) for statement in statements))
    for _ in range(2):
        error = await fails(config)
        assert isinstance(error, FatalError)
        assert f"publication {config.name} {what} after its capture began" in str(error)
        assert "tailrace reset shop" in str(error)


async def test_h22_a_deferrable_key_leaves_the_application_working(database: str, make_config: Make) -> None:
    """PostgreSQL takes no deferrable key as replica identity."""
    await run(
        database, "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v int)", "INSERT INTO t VALUES (1, 1)"
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "UPDATE t SET v = 2", "INSERT INTO t VALUES (2, 2)")
        await capture.until(lambda: any("public.t had 1 UPDATEs" in found for found in capture.findings))
    assert [(v["op"], v["after"]["id"]) for v in values(await events(config, "t"))] == [("r", 1), ("c", 2)]


async def test_two_tables_whose_topics_have_one_name_are_told_apart(database: str, make_config: Make) -> None:
    await run(
        database,
        'CREATE TABLE "tä" (id int PRIMARY KEY)',
        'CREATE SCHEMA a; CREATE SCHEMA "a.b"; CREATE TABLE "a.b".c (id int PRIMARY KEY)',
    )
    config = make_config(database, tables={"public.*": {}, "a*.*": {}})
    async with capturing(config) as capture:
        await run(database, 'CREATE TABLE "tö" (id int PRIMARY KEY)', 'INSERT INTO "tö" VALUES (7)')
        await run(database, 'CREATE TABLE a."b.c" (id int PRIMARY KEY)')
        for finding in (
            "public.tö is not captured: its topic would be that of public.tä",
            'a."b.c" is not captured: its topic would be that of "a.b".c',
        ):
            await capture.until(lambda f=finding: any(f in found for found in capture.findings))  # type: ignore[misc]
        await run(database, 'INSERT INTO "tä" VALUES (1)')
        await capture.caught_up()
    assert [v["after"]["id"] for v in values(await events(config, "t_"))] == [1]
    await run(database, f"SELECT pg_drop_replication_slot('{config.name}')")
    assert "tailrace reset shop" in str(await fails(config))


@pytest.mark.thorough
async def test_h04_an_idle_source_is_resumed_where_its_heartbeat_ended(
    database: str, make_config: Make
) -> None:
    """The position never lies beyond what the server has written."""
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    for _ in range(3):
        capture = Capture(config)
        capture.start()
        await capture.state("streaming")
        before = capture.status.record.detail["lsn"] or 0
        await capture.until(lambda c=capture, b=before: (c.status.record.detail["lsn"] or 0) > b)  # type: ignore[misc]
        assert capture.status.record.detail["lsn"] <= await current_lsn(database)
        await capture.kill()
    async with capturing(config) as capture:
        await run(database, "INSERT INTO t VALUES (1)")
        await capture.caught_up()


async def finds(capture: Capture, finding: str) -> None:
    await capture.until(lambda: any(finding in found for found in capture.findings))
    assert [found for found in capture.findings if "`tailrace reset shop --yes`" not in found] == []
    assert len(capture.findings) == 1


@pytest.mark.parametrize("written", [True, False])
async def test_h22_a_table_left_out_for_a_while_is_a_finding_when_it_is_wanted_again(
    written: bool, database: str, make_config: Make
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE u (id int PRIMARY KEY)")
    async with capturing(make_config(database)):
        pass
    async with capturing(make_config(database, tables={"public.t": "exclude", "public.*": {}})) as capture:
        if written:
            await run(database, "INSERT INTO t VALUES (1)")
        await run(database, "INSERT INTO u VALUES (1)")
        await capture.caught_up()
        await capture.until(lambda: bool(capture.looks))
        assert capture.findings == []  # nothing is missing yet that anybody wants
    config = make_config(database)
    for _ in range(2):
        async with capturing(config) as capture:
            await finds(capture, "public.t was left out by `tables:` for a while")
    await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        assert capture.findings == []


RENAMED_AND_BACK = (
    "ALTER TABLE t RENAME TO other",
    "INSERT INTO other VALUES (1)",
    "ALTER TABLE other RENAME TO t",
    "INSERT INTO t VALUES (2)",
)


@pytest.mark.parametrize("tables", [{"public.*": {}}, {"public.t": {}}])
@pytest.mark.parametrize("stopped", [True, False])
async def test_h22_a_table_renamed_there_and_back_is_a_finding(
    stopped: bool, tables: dict[str, object], database: str, make_config: Make
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database, tables=tables)
    finding = "public.t was renamed to public.other"
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        if not stopped:
            async with await psycopg.AsyncConnection.connect(database) as connection:
                for statement in RENAMED_AND_BACK:  # one transaction: no look at the catalogue sees it
                    await connection.execute(statement)
            await finds(capture, finding)
    if stopped:
        await run(database, *RENAMED_AND_BACK)
    for _ in range(2):
        async with capturing(config) as capture:
            await finds(capture, finding)
            await capture.caught_up()
    assert [v["after"]["id"] for v in values(await events(config, "t"))] == [2]


async def test_rows_of_a_child_table_are_copied_once(database: str, make_config: Make) -> None:
    await run(
        database,
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO child VALUES (2)",
    )
    config = make_config(database)
    async with capturing(config):
        pass
    assert [v["after"]["id"] for v in values(await events(config, "parent"))] == [1]
    assert [v["after"]["id"] for v in values(await events(config, "child"))] == [2]


async def test_h06_text_that_reads_like_the_placeholder_is_text(database: str, make_config: Make) -> None:
    text = "__debezium_unavailable_value"
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v text)", f"INSERT INTO t VALUES (1, '{text}')")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, f"INSERT INTO t VALUES (2, '{text}')", f"UPDATE t SET v = '{text}' WHERE id = 2")
        await capture.caught_up()
    records = await events(config, "t")
    assert {v["after"]["v"] for v in values(records)} == {text}
    assert not any(text.encode() in (record.value or b"") for record in records)


@pytest.mark.thorough
async def test_h22_stored_values_that_a_type_or_a_default_changes_are_found(
    database: str, make_config: Make
) -> None:
    """Nothing of it is in the stream. What a backfill sends again is mended by one; a key is a reset's."""
    await run(
        database,
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN moods AS mood[]",
        "CREATE DOMAIN nine AS int DEFAULT 9 CHECK (VALUE > 8)",
        "CREATE TYPE place AS (street text, number int)",
        "CREATE TABLE keyed (id mood PRIMARY KEY)",
        "CREATE TABLE bare (id int PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, m moods, p place, untouched int)",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
        "INSERT INTO keyed VALUES ('sad')",
        "INSERT INTO t VALUES (1, '{sad}', '(a,1)')",
        "INSERT INTO p VALUES (1)",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        await run(
            database,
            "ALTER TYPE mood ADD VALUE 'glad' BEFORE 'ok'",
            "ALTER TYPE place RENAME ATTRIBUTE street TO road",
            "ALTER TABLE t ADD COLUMN null_ int",
            "ALTER TABLE bare ADD COLUMN w int DEFAULT 7",
            "ALTER TABLE bare ADD COLUMN r float DEFAULT random()",
            "ALTER TABLE t ADD COLUMN later float",
            "ALTER TABLE t ALTER later SET DEFAULT random()",
        )
        looks = capture.looks
        await capture.until(lambda: capture.looks >= looks + 2)
        assert capture.findings == [], "no stored value is another one"
    await run(
        database,
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'low'",
        "ALTER TYPE place ADD ATTRIBUTE zip text",
        "ALTER TABLE t ADD COLUMN w int NOT NULL DEFAULT 7",
        "ALTER TABLE p ADD COLUMN w int DEFAULT 7",
        "ALTER TABLE t ADD COLUMN r float DEFAULT random()",
        "ALTER TABLE t ADD COLUMN i int GENERATED BY DEFAULT AS IDENTITY",
        "ALTER TABLE t ADD COLUMN s serial",
        "ALTER TABLE t ADD COLUMN d nine",
        "ALTER TABLE p ADD COLUMN r float DEFAULT random()",
    )
    mended_by_a_backfill = (
        "column m of public.t has the value 'low' where it had 'sad'",
        "column p of public.t has got an attribute of its composite type",
        *(f"column {column} of public.t was added with a default" for column in "wrisd"),
        *(f"column {column} of public.p was added with a default" for column in "wr"),
    )
    of_the_key = "column id of public.keyed has the value 'low' where it had 'sad'"
    for _ in range(2):
        async with capturing(config) as capture:
            await capture.until(lambda c=capture: bool(c.looks))  # type: ignore[misc]
            for finding in (*mended_by_a_backfill, of_the_key):
                assert sum(finding in found for found in capture.findings) == 1, finding
            assert len(capture.findings) == 10
            assert sum("`tailrace backfill shop public.t`" in found for found in capture.findings) == 7
    async with capturing(config) as capture:
        for table in ("t", "p"):
            assert (await over(capture, await request(capture, table))).state is State.DONE
        await capture.until(lambda: len(capture.findings) == 1)
        (found,) = capture.findings
        assert of_the_key in found
        assert "`tailrace reset shop --yes`" in found
    sent = [v["after"] for v in values(await events(config, "t"))][-1]
    assert (sent["m"], sent["p"], sent["w"]) == (["low"], "(a,1,)", 7)
    assert (sent["i"], sent["s"], sent["d"], 0 <= sent["r"] < 1) == (1, 1, 9, True)
    await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        await capture.until(lambda: bool(capture.looks))
        assert capture.findings == []
