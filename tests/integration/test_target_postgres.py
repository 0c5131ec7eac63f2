"""The Postgres target: types, tables that were there before, and what is refused with which cure."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from pydantic import SecretStr

from consumers.apply import holdups as apply_holdups
from consumers.targets.postgres import PostgresTarget
from streamer.config import PostgresTarget as Settings
from streamer.config.base import NAME_KEY
from streamer.doctor.check import Findings
from streamer.doctor.postgres import connected
from streamer.errors import ConfigError
from streamer.postgres.connection import connect
from streamer.sandbox import KafkaServer
from tests.harness.feeder import Feeder, Table, applying, config_of

COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]


async def execute(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement)


# type, kind, JSON value, the target's text
_AT = "2016-11-04T11:51:30"
KINDS: list[tuple[str, str, Any, str]] = [
    ("smallint", "number", -5, "-5"),
    ("bigint", "number", 9223372036854775807, "9223372036854775807"),
    ("oid", "number", 4294967295, "4294967295"),
    ("real", "float", 1.5, "1.5"),
    ("double precision", "float", "NaN", "NaN"),
    ("double precision", "float", -0.0, "-0"),
    ("boolean", "bool", True, "true"),
    ("numeric", "numeric", "123.4500", "123.4500"),
    ("numeric(12,2)", "numeric", "-1.50", "-1.50"),
    ("money", "money", "-1234.11", "-$1,234.11"),
    ("text", "text", 'tab\t nl\n q" b\\ é 🐟 {}', 'tab\t nl\n q" b\\ é 🐟 {}'),
    ("character varying(5)", "text", "abcde", "abcde"),
    ("character(4)", "text", "ab  ", "ab"),
    ('"char"', "text", "x", "x"),
    ("name", "text", "n", "n"),
    ("uuid", "text", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
    ("inet", "text", "10.0.0.1/8", "10.0.0.1/8"),
    ("bytea", "bytea", "AQJc", "\\x01025c"),
    ("json", "json", '{"a" : "\\"x"}', '{"a" : "\\"x"}'),
    ("jsonb", "json", '{"a": null}', '{"a": null}'),
    ("date", "date", "infinity", "infinity"),
    ("date", "date", "0044-03-15 BC", "0044-03-15 BC"),
    ("time without time zone", "time", "24:00:00", "24:00:00"),
    ("timestamp without time zone", "timestamp", "2016-11-04T13:51:30.5Z", "2016-11-04 13:51:30.5"),
    ("timestamp without time zone", "timestamp", "0044-03-15T01:00:00Z BC", "0044-03-15 01:00:00 BC"),
    ("timestamp with time zone", "timestamptz", f"{_AT}.123456Z", "2016-11-04 11:51:30.123456+00"),
    ("timestamp with time zone", "timestamptz", "-infinity", "-infinity"),
    ("time with time zone", "timetz", "11:51:30Z", "11:51:30+00"),
    ("interval", "interval", "P1Y2M3DT4H5M6.78S", "1 year 2 mons 3 days 04:05:06.78"),
    ("bit(1)", "bit1", True, "1"),
    ("bit varying", "bits", "0101", "0101"),
    ("bit(3)", "bits", "011", "011"),
    ("integer[]", "array:number", [[1, None], [3, 4]], "{{1,NULL},{3,4}}"),
    ("text[]", "array:text", ["a,b", 'q"', None, "NULL"], '{"a,b","q\\"",NULL,"NULL"}'),
    ("timestamp with time zone[]", "array:timestamptz", [f"{_AT}Z"], '{"2016-11-04 11:51:30+00"}'),
    ("point", "text", "(1,2)", "(1,2)"),
    ("box[]", "text", "{(2,2),(1,1);(4,4),(3,3)}", "{(2,2),(1,1);(4,4),(3,3)}"),
    ("int4range", "text", "[1,5)", "[1,5)"),
    ("int4multirange", "text", "{[1,3),[5,7)}", "{[1,3),[5,7)}"),
    ("tsvector", "text", "'a' 'b'", "'a' 'b'"),
    ("pg_lsn", "text", "1/A", "1/A"),
    ("unknown.mood", "text", "sad", "sad"),
    ("regclass", "text", "elsewhere.orders", "elsewhere.orders"),
    ("regtype[]", "array:text", ["elsewhere.mood", None], "{elsewhere.mood,NULL}"),
]


async def test_every_kind_arrives_as_it_was(feeder: Feeder, target_database: str) -> None:
    """Also where the database would have NULL in an array read as a word."""
    database = psycopg.conninfo.conninfo_to_dict(target_database)["dbname"]
    await execute(target_database, f"ALTER DATABASE {database} SET array_nulls = off")
    kinds = KINDS
    columns = [("id", "integer", "number")] + [(f"c{n}", t, kind) for n, (t, kind, _, _) in enumerate(kinds)]
    table = await feeder.table("kinds", columns, partitions=1)
    full = {"id": 1, **{f"c{n}": value for n, (_, _, value, _) in enumerate(kinds)}}
    empty = {"id": 2, **{f"c{n}": None for n in range(len(kinds))}}
    table.create(full, 100)
    table.create(empty, 100, 1)
    await feeder.flush()
    texts = ", ".join(f"c{n}::text" for n in range(len(kinds)))
    expected = [tuple(text for _, _, _, text in kinds), (None,) * len(kinds)]
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.kinds", [(2,)])
    async with await psycopg.AsyncConnection.connect(target_database, autocommit=True) as connection:
        await connection.execute("SET TimeZone = 'UTC'")
        found = await (await connection.execute(f"SELECT {texts} FROM mirror.kinds ORDER BY id")).fetchall()
    assert found == expected


async def refused(feeder: Feeder, url: str, table: Table, *statements: str) -> str:
    """The error when the table was made by these statements before."""
    await execute(url, "CREATE SCHEMA mirror", *statements)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, url)) as run:
        return str(await run.fails())


async def test_a_column_of_an_incompatible_type_is_refused(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    made = "CREATE TABLE mirror.people (id int PRIMARY KEY, name date, note text)"
    error = await refused(feeder, target_database, table, made)
    for part in ("mirror.people", "'name'", "date", "text"):
        assert part in error
    fix = 'ALTER TABLE "mirror"."people" ALTER COLUMN "name" TYPE text USING "name"::text;'
    assert fix in error
    await execute(target_database, fix)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id, name FROM mirror.people", [(1, "a")])


async def test_a_table_without_a_unique_index_on_the_key_is_refused(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS)
    made = "CREATE TABLE mirror.people (id int, name text, note text)"
    error = await refused(feeder, target_database, table, made)
    assert 'has got a key, or another one: DROP TABLE "mirror"."people"; and stop' in error
    fix = 'CREATE UNIQUE INDEX ON "mirror"."people" ("id")'
    assert fix in error
    await execute(target_database, fix)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id, name FROM mirror.people", [(1, "a")])


async def test_a_table_that_was_there_gets_version_columns(feeder: Feeder, target_database: str) -> None:
    """Wider types stay, the user's own columns too, and rows from before are older than every event."""
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar,"
        " note text, own int DEFAULT 7, twice text GENERATED ALWAYS AS (name || name) STORED)",
        "INSERT INTO mirror.people (name) VALUES ('before'), ('kept')",
    )
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    table.create({"id": 9, "name": "z", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT id, name, own, twice, _tailrace_lsn FROM mirror.people ORDER BY id"
        rows = [(1, "a", 7, "aa", 100), (2, "kept", 7, "keptkept", 0), (9, "z", 7, "zz", 100)]
        await run.rows(target_database, query, rows)


async def test_keys_that_are_one_to_the_target(feeder: Feeder, target_database: str) -> None:
    """1.0 and 1.00 are two keys in JSON and one in a numeric primary key."""
    columns = [("id", "numeric", "numeric"), ("name", "text", "text")]
    table = await feeder.table("scales", columns, partitions=1)
    table.create({"id": "1.0", "name": "a"}, 100)
    table.create({"id": "1.00", "name": "b"}, 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT name FROM mirror.scales", [("b",)])


SLOWLY = """CREATE FUNCTION mirror.slowly(name text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    IF name LIKE 'again%' AND nextval('mirror.' || name) = 1 THEN
        PERFORM pg_sleep(0.02);
        RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN name <> 'bad';
END $$"""


AGAIN = [f"again{n}" for n in range(6)]


async def test_what_fails_once_all_of_a_batch_is_sent_costs_no_session(
    feeder: Feeder, target_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was to be prepared behind it in the same pipeline is not there, and must not be thought to be."""
    made = "CREATE TABLE mirror.people (id int PRIMARY KEY, name text CHECK (mirror.slowly(name)), note text)"
    tries = [f"CREATE SEQUENCE mirror.{name}" for name in AGAIN]
    await execute(target_database, "CREATE SCHEMA mirror", *tries, SLOWLY, made)
    table = await feeder.table("people", COLUMNS, partitions=1)
    async with applying(config_of(feeder, target_database)) as run:
        for number, name in enumerate(["bad", *AGAIN[:3], "bad", "good", *AGAIN[3:]]):
            table.create({"id": number, "name": name, "note": None}, 100 + number)
            await feeder.flush()
            await run.until(lambda end=number + 1: run.flow("mirror").get("applied") == end, "applied")
    assert "does not take writes" not in caplog.text


async def test_a_newer_format_is_refused(feeder: Feeder, target_database: str) -> None:
    await feeder.table("people", COLUMNS)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT format FROM _tailrace.identity", [(1,)])
        await run.stop()
    await execute(target_database, "UPDATE _tailrace.identity SET format = 99")
    async with applying(config_of(feeder, target_database)) as run:
        assert "format 99" in str(await run.fails())


async def test_a_role_without_create_uses_the_schemas_that_an_administrator_made(
    feeder: Feeder, target_database: str
) -> None:
    role = f"r_{feeder.name}"
    await execute(
        target_database,
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'",
        f"CREATE SCHEMA _tailrace AUTHORIZATION {role}",
        f"CREATE SCHEMA mirror AUTHORIZATION {role}",
    )
    given = psycopg.conninfo.conninfo_to_dict(target_database)
    url = f"postgresql://{role}:secret-word@{given['host']}:{given['port']}/{given['dbname']}"
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, url)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.people", [(1,)])
    await execute(target_database, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


async def test_a_missing_privilege_is_waited_for_with_its_cure(feeder: Feeder, target_database: str) -> None:
    role = f"r_{feeder.name}"
    await execute(target_database, f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    url = psycopg.conninfo.make_conninfo(target_database, user=role, password="secret-word")
    given = psycopg.conninfo.conninfo_to_dict(url)
    url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**given)
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, url)) as run:
        error = str(await run.fails())
    fix = f'CREATE SCHEMA "_tailrace" AUTHORIZATION "{role}";'
    assert fix in error
    await execute(target_database, fix)
    async with applying(config_of(feeder, url)) as run:
        fix = f'CREATE SCHEMA "mirror" AUTHORIZATION "{role}";'
        await run.until(lambda: fix in run.status.record.reason, "the schema is asked for")
        await execute(target_database, fix)
        await run.rows(target_database, "SELECT id FROM mirror.people", [(1,)])
    wrong = url.replace("secret-word", "wrong-word")
    async with applying(config_of(feeder, wrong)) as run:
        error = str(await run.fails())
    assert "password authentication failed" in error
    assert "wrong-word" not in error
    await execute(target_database, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


async def test_a_role_that_may_not_connect_is_told_the_grant_wherever_it_asks(target_database: str) -> None:
    """The target, the source and doctor say the same statement, which lets the role in."""
    database = psycopg.conninfo.conninfo_to_dict(target_database)["dbname"]
    role = f"guest of {database}"
    grant = f'GRANT CONNECT ON DATABASE "{database}" TO "{role}";'
    await execute(
        target_database,
        f"""CREATE ROLE "{role}" LOGIN PASSWORD 'secret-word'""",
        f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
    )
    at = psycopg.conninfo.conninfo_to_dict(target_database)
    url = f"postgresql://{quote(role)}:secret-word@{at['host']}:{at['port']}/{database}"
    settings = Settings.model_validate({NAME_KEY: "copy", "kind": "postgres", "url": url})
    try:
        for opens in (PostgresTarget(settings, "acme.copy", []).open, partial(connects, url)):
            with pytest.raises(ConfigError) as caught:
                await opens()
            assert caught.value.fix == f"as the database's owner run {grant}"
        findings = Findings("target copy")
        async with connected(findings, SecretStr(url)) as found:
            assert found is None
        assert [(c.fix, c.sql) for c in findings.checks] == [("as the database's owner run", (grant,))]
        await execute(target_database, grant)
        await connects(url)
    finally:
        await execute(target_database, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def connects(url: str) -> None:
    async with connect(url):
        pass


@pytest.mark.parametrize(
    "lock", ["UPDATE mirror.people SET name = 'secret' WHERE id = 1", "LOCK TABLE _tailrace.checkpoints"]
)
async def test_who_has_a_lock_that_apply_waits_for_is_named_until_it_ends(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """Of a row, and of what apply itself looks at when no change comes."""
    monkeypatch.setattr(apply_holdups, "LONG_S", 0.1)
    monkeypatch.setattr(apply_holdups, "ASK_S", 0.1)
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT name FROM mirror.people", [("a",)])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute(lock.encode())
            if lock.startswith("UPDATE"):
                table.create({"id": 1, "name": "b", "note": None}, 200)
                await feeder.flush()
            pid = other.info.backend_pid
            await run.until(lambda: f"waits for pid {pid} (user " in run.status.record.reason, "it is named")
            assert run.status.record.state == "waiting"
            assert "secret" not in run.status.record.reason
            await other.rollback()
        table.create({"id": 1, "name": "c", "note": None}, 300)
        await feeder.flush()
        await run.rows(target_database, "SELECT name FROM mirror.people", [("c",)])
        await run.until(lambda: run.status.record.state == "streaming", "nothing is waited for")
        assert run.status.record.reason == ""


@pytest.mark.thorough
async def test_a_kafka_that_is_down_is_waited_for(
    feeder: Feeder, target_database: str, kafka_server: KafkaServer
) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.people", [(1,)])
        kafka_server.kill()
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        assert "Kafka" in run.status.record.reason
        kafka_server.start()
        await run.until(lambda: run.status.record.state == "streaming", "streaming")
        table.create({"id": 2, "name": "a", "note": None}, 200)
        await feeder.flush()
        await run.rows(target_database, "SELECT id FROM mirror.people ORDER BY 1", [(1,), (2,)])
