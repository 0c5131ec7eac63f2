"""The doctor on real servers: what it finds is true, and what it says to run mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import orjson
import psycopg
import pytest
import typer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from typer.testing import CliRunner

from consumers.targets.postgres_state import ensure
from streamer.changes.backfill import State
from streamer.commands.doctor import doctor
from streamer.config import Config, PostgresSource, PostgresTarget, parse
from streamer.doctor import Level, Report, examine
from streamer.doctor.check import Findings
from streamer.doctor.target import check_target
from streamer.errors import EXIT_FINDING, EXIT_OK, EXIT_USAGE, ConfigError, FatalError
from streamer.postgres.connection import connect
from streamer.postgres.slot import create_slot, drop_slot
from streamer.publisher import topics
from streamer.sandbox import Sandbox
from tests.harness.backfill import backfill
from tests.harness.capture import capturing, fails
from tests.harness.doctor import PASSWORD, Place, failed, place_with_role, told, with_login
from tests.servers import fresh_database

ROUNDS = 4  # a mend may bring to light what it hid; more rounds would mean that mends do not mend

SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, email varchar(40) NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, total numeric(10,2), note text);
INSERT INTO customers VALUES (1, 'a@b');
"""


@pytest.fixture
def source(database: str, kafka_name: str) -> Iterator[Place]:
    for place in place_with_role(database, f"{kafka_name}_Reader"):
        place.run(SHOP)
        yield place


@pytest.fixture
def target(target_database: str, kafka_name: str) -> Iterator[Place]:
    yield from place_with_role(target_database, f"{kafka_name}_Writer")


Make = Callable[..., Config]


@pytest.fixture
def config_of(database: str, target_database: str, kafka: str, kafka_name: str) -> Make:
    def make(
        *,
        source: str = database,
        target: str = target_database,
        brokers: str = kafka,
        tables: str = '{"public.*": {}}',
        more: str = "",
        topics: str = "{partitions: 2}",
        to: str = "copy.mirror",
        table: str = "*",
        flow: str = "",
        targets: str = "flows:\n",
    ) -> Config:
        text = f"""\
name: {kafka_name}
kafka: {{brokers: "{brokers}", topics: {topics}}}
sources:
  {kafka_name}: {{kind: postgres, url: "{source}", tables: {tables}{more}}}
targets:
  copy: {{kind: postgres, url: "{target}"}}
{targets}  mirror: {{from: "{kafka_name}.public.{table}", to: {to}, {flow}}}
"""
        return parse(text, environ={})

    return make


async def mended(config: Config, place: Place) -> Report:
    """Apply what the doctor says to the database until nothing is left."""
    report = await examine(config)
    for _ in range(ROUNDS):
        if report.ok:
            return report
        checks = failed(report)
        assert all(c.sql for c in checks), [c for c in checks if not c.sql]
        assert "superuser" not in str(checks).lower()
        place.mend(checks)
        report = await examine(config)
    raise AssertionError(failed(report))


async def test_all_is_well(config_of: Make, source: Place) -> None:
    report = await examine(config_of())
    assert failed(report) == []
    assert report.exit_code == EXIT_OK
    assert {c.subject.split()[0] for c in report.checks} == {"config", "source", "kafka", "target"}
    assert told(report, "replication", Level.OK)
    assert told(report, "transactions", Level.OK)
    assert "2: public.customers, public.orders" in told(report, "tables", Level.OK).what


async def test_what_it_says_makes_a_role_with_nothing_a_source(
    config_of: Make, source: Place, kafka_name: str
) -> None:
    source.run("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    config = config_of(source=source.url)
    report = await examine(config)
    assert {c.check for c in failed(report)} == {"replication", "schemas", "SELECT", "publication"}
    assert told(report, "replication").sql == (f'ALTER ROLE "{source.role}" REPLICATION;',)
    assert (await mended(config, source)).ok
    entry = config.sources[kafka_name]
    assert isinstance(entry, PostgresSource)
    async with connect(source.url) as control, connect(source.url, replication=True) as replication:
        assert (await create_slot(replication, entry.slot.name)).consistent_point > 0
        cursor = await control.execute("SELECT email FROM customers")
        assert await cursor.fetchone() == ("a@b",)
        cursor = await control.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert await cursor.fetchone() == (False,)
        await drop_slot(control, entry.slot.name)


async def test_what_it_says_makes_a_role_with_nothing_a_target(
    config_of: Make, source: Place, target: Place
) -> None:
    target.run(
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.customers (id bigint PRIMARY KEY, email varchar(10), must int NOT NULL)",
        "CREATE UNIQUE INDEX ON mirror.customers (email)",
        "CREATE TABLE mirror.children (customer bigint REFERENCES mirror.customers)",
    )
    config = config_of(target=target.url)
    report = await examine(config)
    assert {c.check for c in failed(report)} == {"schemas", "tables", "columns"}
    kept = told(report, "constraints", Level.WARN)
    assert "mirror.customers has foreign keys (children_customer_fkey), which hold" in kept.what
    statements = {sql for c in failed(report) for sql in c.sql}
    change = 'ALTER COLUMN "email" TYPE character varying(40) USING "email"::character varying(40);'
    assert any(sql.endswith(change) for sql in statements), statements
    kinds = " ".join(c.what for c in failed(report))
    for words in (
        "the schema _tailrace is not there",
        "no SELECT, INSERT, UPDATE, DELETE on mirror.customers",
        "lacks _tailrace_epoch, _tailrace_lsn, _tailrace_ordinal",
        "mirror.customers.email is character varying(10), which does not hold every character varying(40)",
        "mirror.customers.must must not be null",
    ):
        assert words in kinds
    note = told(report, "triggers", Level.NOTE)
    report = await mended(config, target)
    target.mend([note])
    assert told(await examine(config), "triggers", Level.OK)
    async with connect(target.url) as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("CREATE TABLE _tailrace.checkpoints (flow text)")
        await connection.execute("CREATE TABLE mirror.orders (id bigint PRIMARY KEY)")
        await connection.execute("INSERT INTO mirror.customers VALUES (1, 'longer than ten', NULL, 1, 2, 3)")


async def test_capture_says_what_the_doctor_says(
    source: Place, make_config: Callable[..., Config], kafka_name: str
) -> None:
    """Of rows that it may not read and of a publication that it may not make; the same statements mend it."""
    source.run(f'ALTER ROLE "{source.role}" REPLICATION')
    config = make_config(source.url)
    report = await examine(config)
    reading, publishing = told(report, "SELECT"), told(report, "publication")
    grant = f'GRANT SELECT ON "public"."customers", "public"."orders" TO "{source.role}";'
    assert reading.sql == (grant,)
    assert grant in str(await fails(config))
    source.mend([reading])
    error = await fails(config)
    assert isinstance(error, ConfigError)
    for said in (*publishing.sql, f'CREATE PUBLICATION "{kafka_name}" FOR TABLE ONLY "public"."customers"'):
        assert said in error.fix
    for fix in (error.fix, publishing.fix):
        assert "sources.shop.publication: {manage: false}" in fix
    source.mend([publishing])
    config = make_config(source.url, publication={"name": kafka_name, "manage": False})
    async with capturing(config) as capture:
        source.run(f'REVOKE SELECT ON orders FROM "{source.role}"')
        progress = await backfill(capture, "orders")
    assert progress.state is State.FAILED
    assert told(await examine(config), "SELECT").sql[0] in progress.reason
    assert f'GRANT SELECT ON "public"."orders" TO "{source.role}";' in progress.reason


@pytest.mark.parametrize("there", ["nothing", "schema", "tables"])
async def test_apply_says_of_its_schema_what_the_doctor_says(
    config_of: Make, source: Place, target: Place, kafka_name: str, there: str
) -> None:
    config, group = config_of(target=target.url, to="copy.public"), f"{kafka_name}.copy"
    target.run(f'GRANT USAGE, CREATE ON SCHEMA public TO "{target.role}"')
    if there == "schema":
        target.run("CREATE SCHEMA _tailrace")
    if there == "tables":
        await applied_to(target.admin, group)
    (found,) = failed(await examine(config))
    with pytest.raises(ConfigError) as caught:
        await applied_to(target.url, group)
    assert caught.value.what.startswith(found.what)
    assert " ".join(found.sql) in caught.value.fix
    target.mend([found])
    await applied_to(target.url, group)
    assert failed(await examine(config)) == []


async def test_a_flow_of_its_own_columns(config_of: Make, source: Place, target: Place) -> None:
    target.run(
        "CREATE SCHEMA crm",
        "CREATE TABLE crm.people (tenant text, person bigint, mail date, PRIMARY KEY (tenant, person))",
        f'GRANT USAGE ON SCHEMA crm TO "{target.role}"; GRANT ALL ON crm.people TO "{target.role}"',
    )
    flow = (
        "columns: {id: person, email: {to: mail, cast: %s}, tenant: {value: acme}}, unmapped: ignore,"
        " version: side"
    )
    to = {"target": target.url, "table": "customers", "to": "copy.crm.people"}
    report = await examine(config_of(**to, flow=flow % "date"))
    assert [c.what for c in failed(report) if "crm" in c.what] == []
    report = await examine(config_of(**to, flow=flow % "dated"))
    assert "crm.people.mail is cast to dated" in told(report, "columns").what


async def test_types_that_only_the_source_has_travel_as_text(
    config_of: Make, source: Place, target: Place
) -> None:
    source.run(
        "CREATE TYPE mood AS ENUM ('well')", "CREATE TABLE people (id int PRIMARY KEY, now mood, was mood)"
    )
    target.run(
        "CREATE TYPE feeling AS ENUM ('well')",
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, now feeling)",
        f'GRANT ALL ON mirror.people TO "{target.role}"',
    )
    config = config_of(target=target.url, tables="{public.people: {}}")
    report = await examine(config)
    assert 'ADD COLUMN "was" text' in told(report, "columns").sql[0]
    assert (await mended(config, target)).ok


async def test_a_target_key_on_other_columns(config_of: Make, source: Place, target_database: str) -> None:
    place = Place(target_database, "", "")
    place.run(
        "CREATE SCHEMA mirror", "CREATE TABLE mirror.orders (id bigint, total numeric(10,2), note text)"
    )
    config = config_of()
    assert "has no unique key on id" in told(await examine(config), "constraints").what
    assert (await mended(config, place)).ok
    place.run("ALTER TABLE mirror.orders ADD PRIMARY KEY (id) DEFERRABLE")
    assert "orders_pkey is deferrable" in told(await examine(config), "constraints").what
    assert (await mended(config, place)).ok


async def test_a_unique_index_that_holds_deleted_rows(
    config_of: Make, source: Place, target_database: str
) -> None:
    place = Place(target_database, "", "")
    place.run(
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.orders (id bigint PRIMARY KEY, total numeric(10,2), note text UNIQUE,"
        " gone_at timestamptz, UNIQUE (id, note))",
        "CREATE UNIQUE INDEX large ON mirror.orders (total) WHERE total > 10",
        "CREATE UNIQUE INDEX live ON mirror.orders (lower(note)) WHERE gone_at IS NULL",
    )
    assert (await examine(config_of())).ok
    config = config_of(flow="delete: soft(gone_at)")
    found = [c.what for c in failed(await examine(config))]
    assert [what.partition(" holds")[0] for what in found] == [
        f"mirror.orders: its unique index {name}" for name in ("large", "orders_note_key")
    ]
    assert (await mended(config, place)).ok


async def test_wal_level_free_slots_and_senders(sandbox: Sandbox, config_of: Make, kafka_name: str) -> None:
    server = sandbox.add_postgres().start()
    try:
        Place(server.url, "", "").run(
            "ALTER SYSTEM SET wal_level = 'replica'",
            "ALTER SYSTEM SET max_replication_slots = 1",
            "ALTER SYSTEM SET max_wal_senders = 0",
            "ALTER SYSTEM SET idle_replication_slot_timeout = '60s'",
        )
        server.restart()
        for url in fresh_database(server):
            place = Place(url, "", url)
            place.run(SHOP, f"SELECT pg_create_physical_replication_slot('{kafka_name}')")
            config = config_of(source=url)
            report = await examine(config)
            assert "wal_level is replica" in told(report, "wal_level").what
            assert "all 1 replication slots are taken" in told(report, "slot").what
            assert f"idle now: {kafka_name}" in told(report, "slot").fix
            assert {c.check for c in failed(report)} == {"wal_level", "slot", "WAL senders"}
            place.mend([*failed(report), told(report, "idle slots", Level.WARN)])
            server.restart()
            report = await examine(config)
            assert failed(report) == []
            assert all(c.check != "idle slots" for c in report.checks)
            place.run(f"SELECT pg_drop_replication_slot('{kafka_name}')")
    finally:
        server.stop()


async def test_tables_that_are_not_there(config_of: Make, source: Place) -> None:
    report = await examine(config_of(tables="{public.custmers: {}}"))
    assert "public.custmers" in told(report, "tables").what
    assert "did you mean public.customers" in told(report, "tables").fix
    report = await examine(config_of(tables='{"public.*": {}, "sales.*": {}}'))
    assert '"sales.*" fits no table' in told(report, "tables").what
    report = await examine(config_of(tables='{"public.*": {}, "public.o*": {}}'))
    assert "a pattern above it takes" in told(report, "tables", Level.WARN).what
    assert report.ok


async def test_an_unlogged_table_is_named_with_what_makes_it_fit(config_of: Make, source: Place) -> None:
    source.run("CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)")
    warning = told(await examine(config_of()), "tables", Level.WARN)
    assert warning.what.startswith("public.scratch is UNLOGGED: its changes are not in the server's log")
    assert (await examine(config_of(tables='{public.scratch: exclude, "public.*": {}}'))).checks
    config = config_of(tables="{public.scratch: {}}")
    failure = told(await examine(config), "tables")
    assert failure.what.startswith("table public.scratch is UNLOGGED")
    assert failure.fix.endswith(warning.sql[0])
    source.mend([warning])
    assert all("UNLOGGED" not in check.what for check in (await examine(config)).checks)


async def test_a_table_without_a_key_is_a_warning_with_its_mend(config_of: Make, source: Place) -> None:
    source.run('CREATE TABLE "Log lines" (at timestamptz, line text)')
    config = config_of()
    report = await examine(config)
    assert report.ok
    warning = told(report, "replica identity", Level.WARN)
    assert warning.sql == ('ALTER TABLE "public"."Log lines" REPLICA IDENTITY FULL;',)
    source.mend([warning])
    assert all(c.check != "replica identity" for c in (await examine(config)).checks)


async def test_tables_whose_topics_collide(config_of: Make, source: Place) -> None:
    source.run('CREATE TABLE "a b" (id int PRIMARY KEY)', 'CREATE TABLE "a/b" (id int PRIMARY KEY)')
    assert "would share the topic" in told(await examine(config_of()), "topics").what


async def test_a_table_whose_rule_is_not_built_is_left_out(config_of: Make, source: Place) -> None:
    report = await examine(config_of(tables='{public.orders: {where: "id > 1"}, "public.*": {}}'))
    assert report.ok
    assert "a row filter is not built yet" in told(report, "tables", Level.WARN).what


async def test_row_security_hides_nothing_unseen(config_of: Make, source: Place) -> None:
    source.run(
        "ALTER TABLE customers ENABLE ROW LEVEL SECURITY",
        f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{source.role}"',
    )
    config = config_of(source=source.url)
    assert "hides rows of public.customers" in told(await examine(config), "row security").what
    assert (await mended(config, source)).ok


async def test_a_publication_that_would_lose_changes(config_of: Make, source: Place) -> None:
    source.run(
        "CREATE PUBLICATION p FOR TABLE customers (id), orders WHERE (id > 1) WITH (publish = 'insert')"
    )
    config = config_of(more=", publication: {name: p, manage: false}")
    whats = [c.what for c in failed(await examine(config))]
    assert any("does not publish what capture needs" in w for w in whats)
    assert any("filters rows or columns of public.customers" in w for w in whats)
    assert any("filters rows or columns of public.orders" in w for w in whats)
    assert (await mended(config, source)).ok


async def test_h27_a_publication_that_takes_children_along(config_of: Make, source: Place) -> None:
    """And a partitioned root: its owner's statements name each table alone."""
    source.run(
        "CREATE TABLE child (extra int) INHERITS (customers)",
        "CREATE TABLE bag (id int) PARTITION BY LIST (id)",
        "CREATE TABLE bag1 PARTITION OF bag FOR VALUES IN (1)",
        "INSERT INTO bag VALUES (1)",
        "INSERT INTO child VALUES (1, 'a', 1)",
        "CREATE PUBLICATION p FOR TABLE customers, orders, bag WITH (publish_via_partition_root = true)",
    )
    config = config_of(
        tables='{public.child: exclude, "public.*": {}}', more=", publication: {name: p, manage: false}"
    )
    for update in ("UPDATE child SET extra = 2", "UPDATE bag SET id = 1"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            source.run(update)
    report = await examine(config)
    whats = [c.what for c in failed(report)]
    for table in ("child", "bag"):
        assert any(f"UPDATE and DELETE of public.{table} fail in the application" in w for w in whats)
    assert "p_inserts is not there" in whats
    assert (await mended(config, source)).ok
    source.run("UPDATE child SET extra = 2", "UPDATE bag SET id = 1")


async def test_h27_a_publication_of_all_tables_lets_none_go(config_of: Make, source: Place) -> None:
    source.run(
        "CREATE TABLE bag (id int)",
        "INSERT INTO bag VALUES (1)",
        "CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)",
    )
    config = config_of(more=", publication: {name: p, manage: false}")
    assert any("of public.bag fail in the application" in c.what for c in failed(await examine(config)))
    assert (await mended(config, source)).ok
    source.run("UPDATE bag SET id = 2")


async def test_a_publication_that_somebody_else_manages(config_of: Make, source: Place) -> None:
    config = config_of(more=", publication: {name: p, manage: false}")
    finding = told(await examine(config), "publication")
    assert "as postgres, the owner, run" in finding.fix
    assert finding.sql[0].startswith('CREATE PUBLICATION "p" FOR TABLE ONLY "public"."customers", ONLY')
    assert (await mended(config, source)).ok


async def test_a_slot_of_something_else(config_of: Make, source: Place, kafka_name: str) -> None:
    slot = f"{kafka_name}_other"
    source.run(f"SELECT pg_create_physical_replication_slot('{slot}')")
    finding = told(await examine(config_of(more=f", slot: {{name: {slot}}}")), "slot")
    assert "belongs to something else (physical" in finding.what
    source.run(f"SELECT pg_drop_replication_slot('{slot}')")


async def test_a_flow_into_the_tables_it_reads(config_of: Make, source: Place, database: str) -> None:
    report = await examine(config_of(target=database, to="copy"))
    assert "an endless loop" in told(report, "flows").what


async def applied_to(url: str, group: str) -> None:
    """What apply does first in a target. Raises what it refuses."""
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, cursor_factory=psycopg.AsyncRawCursor
    ) as connection:
        await ensure(connection, group)


async def test_h30_a_target_of_another_group_and_a_copied_target(
    config_of: Make, source: Place, target_database: str, kafka_name: str
) -> None:
    """What apply would refuse; what the doctor says to run is what apply then takes."""
    config, group, target = config_of(), f"{kafka_name}.copy", Place(target_database, "", "")
    await applied_to(target_database, "another.copy")
    with pytest.raises(FatalError, match="belongs to the consumer group"):
        await applied_to(target_database, group)
    found = told(await examine(config), "identity")
    assert f"belongs to the consumer group 'another.copy', not to '{group}'" in found.what
    assert (await mended(config, target)).ok
    await applied_to(target_database, group)
    target.run("UPDATE _tailrace.identity SET database_oid = 1")
    with pytest.raises(FatalError, match="a copy of another"):
        await applied_to(target_database, group)
    assert "a copy of another target" in told(await examine(config), "identity").what
    assert (await mended(config, target)).ok
    assert group in told(await examine(config), "identity", Level.OK).what
    await applied_to(target_database, group)
    findings, copy = Findings("target copy"), config.targets["copy"]
    assert isinstance(copy, PostgresTarget)
    await check_target(findings, config, copy, {}, "the id of a store that is gone")
    elsewhere = told(Report(tuple(findings.checks)), "identity")
    assert "belongs to another target than this store (its id is the id of a store" in elsewhere.what
    assert "`tailrace adopt copy`" in elsewhere.fix


async def test_h30_two_targets_that_only_the_server_knows_to_be_one(
    config_of: Make, source: Place, target_database: str, kafka_name: str
) -> None:
    """The doctor says it before either has written; apply, when the other one has."""
    assert "127.0.0.1" in target_database
    spelt = target_database.replace("127.0.0.1", "127.1")  # one address to the resolver
    second = f'  second: {{kind: postgres, url: "{spelt}"}}'
    flow = f"  other: {{from: {kafka_name}.public.notes, to: second.b}}"
    config = config_of(targets=f"{second}\nflows:\n{flow}\n")
    found = told(await examine(config), "store")
    assert found.subject == "target second"
    assert "this is the store of target 'copy', too" in found.what
    assert "(`to: copy`), or give second another database" in found.fix
    await applied_to(target_database, f"{kafka_name}.second")
    with pytest.raises(FatalError, match="where second and copy are both in the file"):
        await applied_to(target_database, f"{kafka_name}.copy")


async def test_servers_that_refuse(config_of: Make, source: Place, sandbox: Sandbox) -> None:
    wrong = with_login(source.admin, source.role, "wr0ng-password")
    report = await examine(config_of(source=wrong))
    assert "refuses the user or the password (not shown)" in told(report, "login").what
    assert "wr0ng" not in str(report)
    report = await examine(config_of(source=urlunsplit(urlsplit(source.url)._replace(path="/nowhere"))))
    assert "no such database" in told(report, "database").what
    assert told(report, "database").sql[0].startswith('CREATE DATABASE "nowhere" OWNER')
    source.run(f'ALTER ROLE "{source.role}" NOLOGIN')
    config = config_of(source=source.url)
    finding = told(await examine(config), "login")
    source.mend([finding])
    assert told(await examine(config), "reachable", Level.OK)
    gone = "postgresql://u:hunter2@127.0.0.1:1/d"
    report = await examine(config_of(source=gone, target=gone, brokers="127.0.0.1:1"))
    assert [c.check for c in failed(report)] == ["reachable", "reachable", "reachable"]
    assert "hunter2" not in str(report)
    assert "kafka 127.0.0.1:1" in str(failed(report)[1])


async def test_topics_that_do_not_fit(config_of: Make, source: Place, kafka: str, kafka_name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    configs = {"max.message.bytes": "100000", "cleanup.policy": "compact"}
    topic = NewTopic(f"{kafka_name}.public.orders", 5, 1, topic_configs=configs)
    await admin.create_topics([topic])
    try:
        report = await examine(config_of())
        finding = told(report, "partitions")
        assert "5 partitions, kafka.topics.partitions says 2" in finding.what
        assert "set kafka.topics.partitions to 5" in finding.fix
        assert "max.message.bytes is 100,000" in told(report, "max_message").what
        assert "cleanup.policy=compact" in told(report, "cleanup").what
        fixed = await examine(config_of(topics="{partitions: 5, max_message: 90kB}"))
        assert {c.check for c in failed(fixed)} == {"cleanup"}
        report = await examine(config_of(topics="{partitions: 5, replication_factor: 3}"))
        assert "replication_factor is 3, the cluster has 1 broker" in told(report, "copies").what
    finally:
        await admin.delete_topics([topic.name])
        await admin.close()


async def test_thousands_of_partitions_are_asked_for_in_several_requests(
    config_of: Make, source: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka refuses all of what is too much for it at once, for one reason, which is one finding."""
    source.run("; ".join(f"CREATE TABLE many{n} (id int PRIMARY KEY)" for n in range(9)))
    config = config_of(topics="{partitions: 1000}")
    made = [check.what for check in (await examine(config)).checks if check.check == "topics"]
    assert made[0].startswith("14 can be made: ")
    monkeypatch.setattr(topics, "REQUEST_RECORDS", 50_000)
    (finding,) = (check for check in failed(await examine(config)) if check.check == "topics")
    assert " and 9 more: " in finding.what


def test_the_command(
    tmp_path: Path, source: Place, kafka: str, kafka_name: str, target_database: str
) -> None:
    app = typer.Typer()
    app.command()(doctor)
    path = tmp_path / "tailrace.yaml"
    path.write_text(
        f"name: {kafka_name}\n"
        f"kafka: {{brokers: '{kafka}'}}\n"
        f"sources: {{shop: {{kind: postgres, url: '{source.url}', tables: {{'public.*': {{}}}}}}}}\n"
        f"targets: {{copy: {{kind: postgres, url: '{target_database}'}}}}\n"
        "flows: {mirror: {from: 'shop.public.*', to: copy}}\n"
    )
    result = CliRunner().invoke(app, ["-c", str(path)])
    assert result.exit_code == EXIT_FINDING, result.output
    assert "✓ wal_level" in result.output
    assert f'ALTER ROLE "{source.role}" REPLICATION;' in result.output
    assert PASSWORD not in result.output
    assert quote(PASSWORD, safe="") not in result.output
    result = CliRunner().invoke(app, ["-c", str(path), "--json"])
    answer = orjson.loads(result.stdout)
    assert answer["ok"] is False
    assert {"subject", "check", "ok", "level", "what", "fix", "sql"} == set(answer["checks"][0])
    path.write_text("nam: x\n")
    result = CliRunner().invoke(app, ["-c", str(path), "--json"])
    assert result.exit_code == EXIT_USAGE
    told = [check["what"] for check in orjson.loads(result.stdout)["checks"]]
    assert told == [f"{path}:1: unknown key 'nam'"]
