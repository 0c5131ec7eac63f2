"""Cures that take several statements or roles: each is run as printed, as the role that is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from streamer.config import Config
from streamer.doctor import Check, Level, Report, examine
from streamer.errors import ConfigError
from tests.harness.capture import capturing, fails
from tests.harness.doctor import PASSWORD, Place, failed, told, with_login

Make = Callable[..., Config]

PARTITIONED = (
    "CREATE TABLE parts (id int NOT NULL, note text) PARTITION BY LIST (id)",
    "CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1)",
    'CREATE TABLE "Parts 2" PARTITION OF parts FOR VALUES IN (2, 3) PARTITION BY LIST (id)',
    'CREATE TABLE parts2a PARTITION OF "Parts 2" FOR VALUES IN (2)',
    "INSERT INTO parts VALUES (1, 'a'), (2, 'b')",
)
USE = ("UPDATE parts SET note = 'c'", "DELETE FROM parts")


@dataclass
class Office:
    """A database of somebody who owns it, an application that owns tables, and a role that captures."""

    place: Place
    owner: str
    app: str
    other: str
    reader: str

    def as_role(self, role: str, *statements: str) -> None:
        with psycopg.connect(with_login(self.place.admin, role, PASSWORD), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    @property
    def url(self) -> str:
        """As the role that captures."""
        return with_login(self.place.admin, self.reader, PASSWORD)

    def follow(self, check: Check) -> None:
        """Run its SQL as whom it says; tables are the application's where it names no role."""
        several = re.search(r"as a role that is a member of (.*?),? run", check.fix)
        named = re.search(r"as (\S+), the (?:database's )?owner,", check.fix)
        if several is None:
            self.as_role(named[1] if named else self.app, *check.sql)
            return
        member = f"{self.app}_member"
        roles = several[1].replace(" and ", ", ").split(", ")
        in_roles = ", ".join(f'"{role}"' for role in roles)
        self.place.run(f"CREATE ROLE \"{member}\" LOGIN PASSWORD '{PASSWORD}' IN ROLE {in_roles}")
        self.as_role(member, *check.sql)
        self.place.run(f'DROP ROLE "{member}"')


@pytest.fixture
def office(database: str, kafka_name: str) -> Iterator[Office]:
    place = Place(database, "", database)
    names = [f"{kafka_name}_{name}" for name in ("dba", "app", "billing", "reader")]
    for name in names:
        place.run(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{PASSWORD}'")
    made = Office(place, *names)
    own = sql.SQL("ALTER DATABASE {} OWNER TO {}")
    with psycopg.connect(database, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(own.format(name, sql.Identifier(made.owner)))
    place.run(
        f'ALTER ROLE "{made.reader}" REPLICATION',
        f'GRANT ALL ON SCHEMA public TO "{made.app}", "{made.other}", "{made.reader}"',
        f'ALTER DEFAULT PRIVILEGES FOR ROLE "{made.app}", "{made.other}"'
        f' GRANT SELECT ON TABLES TO "{made.reader}"',
    )
    yield made
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(own.format(name, sql.Identifier(connection.info.user)))
        for role in names:
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
        for role in names:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def cured(office: Office, config: Config, *found: Check) -> Report:
    for check in found:
        office.follow(check)
    report = await examine(config)
    assert failed(report) == []
    return report


def identities(report: Report) -> list[Check]:
    return [c for c in report.checks if c.check == "replica identity"]


@pytest.mark.parametrize(
    "by",
    [
        "FULL",
        pytest.param("USING INDEX parts_id", marks=pytest.mark.thorough),
        pytest.param("DEFAULT", marks=pytest.mark.thorough),
    ],
)
async def test_every_partition_that_differs_from_its_root(office: Office, make_config: Make, by: str) -> None:
    office.as_role(office.app, *PARTITIONED)
    office.as_role(office.app, "CREATE UNIQUE INDEX parts_id ON parts (id)")
    if by == "DEFAULT":
        office.as_role(office.app, "ALTER TABLE parts ADD PRIMARY KEY (id)")
        office.as_role(
            office.app, *(f"ALTER TABLE {p} REPLICA IDENTITY NOTHING" for p in ("parts1", "parts2a"))
        )
    office.as_role(office.app, f"ALTER TABLE parts REPLICA IDENTITY {by}")
    config = make_config(office.place.admin)
    found = told(await examine(config), "replica identity")
    assert (
        "partitions public.parts1, public.parts2a have another replica identity than public.parts"
        in found.what
    )
    assert len(found.sql) == 2
    assert " ".join(found.sql) in str(await fails(config))
    assert identities(await cured(office, config, found)) == []
    async with capturing(config):
        office.as_role(office.app, *USE)


@pytest.mark.parametrize("key", ["", "PRIMARY KEY (id) DEFERRABLE"])
async def test_partitions_of_a_root_without_an_identity(office: Office, make_config: Make, key: str) -> None:
    office.as_role(office.app, *PARTITIONED, *([f"ALTER TABLE parts ADD {key}"] if key else []))
    config = make_config(office.place.admin)
    found = told(await examine(config), "replica identity", Level.WARN)
    assert ("its primary key (id) is DEFERRABLE" in found.what) is bool(key)
    assert len(found.sql) == 3
    assert identities(await cured(office, config, found)) == []
    async with capturing(config):
        office.as_role(office.app, *USE)


@pytest.mark.parametrize("cure", ["index", "whole rows"])
async def test_a_deferrable_primary_key_is_no_identity(office: Office, make_config: Make, cure: str) -> None:
    office.as_role(
        office.app,
        'CREATE TABLE "Bags" (a int, "B" int, note text, PRIMARY KEY (a, "B") DEFERRABLE)',
        'CREATE INDEX "Bags_identity" ON "Bags" (note)',
        """INSERT INTO "Bags" VALUES (1, 1, 'x')""",
    )
    config = make_config(office.place.admin)
    found = told(await examine(config), "replica identity", Level.WARN)
    assert "its primary key (a, B) is DEFERRABLE, which no replica identity can be" in found.what
    assert "no primary key" not in found.what
    if cure == "index":
        assert identities(await cured(office, config, found)) == []
    else:
        office.as_role(office.app, re.findall(r"with (ALTER TABLE .*?),", found.fix)[0])
        assert identities(await examine(config)) == []
    async with capturing(config) as capture:
        office.as_role(office.app, 'UPDATE "Bags" SET note = NULL')
        assert capture.findings == []


async def test_a_unique_index_that_is_there_becomes_the_identity(office: Office, make_config: Make) -> None:
    """And a primary key that NOTHING put out of use."""
    office.as_role(
        office.app,
        'CREATE TABLE bags ("Key" int NOT NULL UNIQUE, half int UNIQUE)',
        "CREATE TABLE boxes (id int PRIMARY KEY)",
        "ALTER TABLE boxes REPLICA IDENTITY NOTHING",
    )
    config = make_config(office.place.admin)
    found = identities(await examine(config))
    assert {s for check in found for s in check.sql} == {
        'ALTER TABLE "public"."bags" REPLICA IDENTITY USING INDEX "bags_Key_key";',
        'ALTER TABLE "public"."boxes" REPLICA IDENTITY DEFAULT;',
    }
    assert identities(await cured(office, config, *found)) == []


async def test_a_role_that_owns_its_tables_and_may_make_no_publication(
    office: Office, make_config: Make
) -> None:
    office.as_role(office.reader, "CREATE TABLE own (id int PRIMARY KEY)")
    config = make_config(office.url)
    (found,) = failed(await examine(config))
    assert found.fix == f"as {office.owner}, the database's owner, run; capture then makes it"
    assert re.fullmatch(rf'GRANT CREATE ON DATABASE "\w+" TO "{office.reader}";', " ".join(found.sql))
    error = await fails(config)
    assert isinstance(error, ConfigError)
    assert error.fix == f"as {office.owner}, the database's owner, run {found.sql[0]}"
    await cured(office, config, found)
    async with capturing(config):
        pass
    assert "carry 1 table" in told(await examine(config), "publication", Level.OK).what


async def test_tables_of_an_application_that_may_make_no_publication(
    office: Office, make_config: Make
) -> None:
    """Then a table that the application makes later, and one of somebody else."""
    office.as_role(office.app, "CREATE TABLE orders (id int PRIMARY KEY)")
    config = make_config(office.url)
    grant, create = failed(await examine(config))
    assert grant.fix == f"as {office.owner}, the database's owner, run"
    assert grant.sql[0].endswith(f'TO "{office.app}";')
    assert f"as {office.app}, the owner, run" in create.fix
    error = await fails(config)
    assert isinstance(error, ConfigError)
    for said in (*grant.sql, *create.sql):
        assert said in error.fix
    await cured(office, config, grant, create)
    async with capturing(config) as capture:
        office.as_role(office.app, "CREATE TABLE later (id int PRIMARY KEY)")
        office.as_role(office.other, "CREATE TABLE bills (id int PRIMARY KEY)")
        adding = [
            f'as {office.app}, the owner, run ALTER PUBLICATION "{config.name}" ADD TABLE ONLY'
            ' "public"."later";',
            f"as a role that is a member of {office.app} and {office.other}, run ALTER PUBLICATION"
            f' "{config.name}" ADD TABLE ONLY "public"."bills";',
        ]
        await capture.until(lambda: all(any(a in f for f in capture.findings) for a in adding))
        (found,) = failed(await examine(config))
        assert f"as a role that is a member of {office.app} and {office.other}, run" in found.fix
        office.follow(found)
        await capture.until(lambda: not capture.findings)
    assert failed(await examine(config)) == []
