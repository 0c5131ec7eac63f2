"""Makes the publications of a source, and says who may where its own role may not.

Owns the rights that it takes: a table is added by a role that owns it and the publication, a publication is
made by one that may CREATE in the database. What a message tells a person to run, the named role can run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import errors

from streamer.config import PostgresSource
from streamer.errors import ConfigError
from streamer.postgres import rights
from streamer.postgres.catalog import Publications, Table, identifier, publication_tables
from streamer.postgres.connection import Connection
from streamer.postgres.identity import harmed_tables, odd_partitions


@dataclass(frozen=True, slots=True)
class Hands:
    """Who may change publications. `owners`: of tables and publications; none may act for another.

    `grant`: what lets the first of them make a publication, and `granter`, who owns the database; '' where
    they may already.
    """

    role: str
    owners: tuple[str, ...]
    granter: str
    grant: str

    @property
    def who(self) -> str:
        """As whom to run the statements."""
        if len(self.owners) == 1:
            return f"as {self.owners[0]}, the owner,"
        return f"as a role that is a member of {', '.join(self.owners[:-1])} and {self.owners[-1]},"

    @property
    def own(self) -> bool:
        """Whether our role can do it itself, but for the grant."""
        return self.owners == (self.role,)

    @property
    def granting(self) -> str:
        return f"as {self.granter}, the database's owner, run {self.grant}" if self.grant else ""

    def advice(self, statements: Iterable[str]) -> str:
        """Everything that is to be run, by whom, in this order."""
        rest = f"{self.who} run {' '.join(statements)}"
        return f"{self.granting} then {rest}" if self.grant else rest


async def hands(
    connection: Connection, tables: Iterable[Table], publications: Iterable[str], *, makes: bool
) -> Hands:
    """`publications`: those of the names that are there are owned too; `makes`: another is to be made."""
    cursor = await connection.execute(
        """SELECT current_user::text, current_database()::text, pg_get_userbyid(datdba)::text,
                  has_database_privilege(current_database(), 'CREATE')
           FROM pg_database WHERE datname = current_database()"""
    )
    row = await cursor.fetchone()
    assert row is not None
    role, database, granter, may_make = row
    cursor = await connection.execute(
        """WITH owner AS (
             SELECT o.oid, o.rolname FROM pg_roles o WHERE o.oid IN (
               SELECT relowner FROM pg_class WHERE oid = ANY (%s::bigint[]::oid[])
               UNION SELECT pubowner FROM pg_publication WHERE pubname = ANY (%s)))
           SELECT rolname::text, pg_has_role(oid, 'USAGE'),
                  has_database_privilege(oid, current_database(), 'CREATE')
           FROM owner o WHERE NOT EXISTS (
             SELECT FROM owner other WHERE other.oid <> o.oid AND pg_has_role(other.oid, o.oid, 'USAGE')
               AND (other.oid < o.oid OR NOT pg_has_role(o.oid, other.oid, 'USAGE')))
           ORDER BY 1""",
        ([table.oid for table in tables], list(publications)),
    )
    found = await cursor.fetchall()
    owners = (role,)
    if not all(held for _, held, _ in found):
        owners = tuple(name for name, _, _ in found)
        may_make = any(creates for _, _, creates in found)
    grant = f"GRANT CREATE ON DATABASE {identifier(database)} TO {identifier(owners[0])};"
    return Hands(role, owners, granter, grant if makes and not may_make else "")


def by_hand(source: PostgresSource) -> str:
    """What else there is to do where the role may not make or change publications."""
    return (
        "tables made later need the same by hand, so say in the config"
        f" sources.{source.name}.publication: {{manage: false}}"
    )


async def adding(connection: Connection, publication: str, table: Table) -> str:
    """Who adds a table to a publication that is there, and how; before it what lets us read its rows."""
    lacks = await rights.reading(connection, [(table.schema, table.name)])
    first = f"{rights.as_owner(s for lack in lacks for s in lack.statements)} then " if lacks else ""
    may = await hands(connection, [table], [publication], makes=False)
    added = f"ALTER PUBLICATION {identifier(publication)} ADD TABLE {table.alone.as_string(None)};"
    return f"{first}{may.who} run {added}"


async def make_publications(
    connection: Connection, publications: Publications, source: PostgresSource
) -> None:
    """Before the slot exists: make the publications, or say which SQL who must run."""
    manage = source.publication.manage
    names = (publications.name, publications.inserts_name)
    for harmed in await harmed_tables(connection, *names):
        raise ConfigError(harmed.what, fix=harmed.fix)
    for odd in await odd_partitions(connection, *names, tables=publications.full):
        raise ConfigError(odd.what, fix=odd.fix)
    present = await publication_tables(connection, *names)
    statements = publications.statements(present, both=manage)
    if not statements:
        return
    texts = [f"{statement.as_string(connection)};" for statement in statements]
    makes = any(text.startswith("CREATE") for text in texts)
    may = await hands(connection, publications.tables, present, makes=makes)
    if not manage:
        raise ConfigError(
            f"publication {publications.name} does not carry every table of the config (manage: false)",
            fix=may.advice(texts),
        )
    for done, statement in enumerate(statements):
        try:
            await connection.execute(statement)
        except errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"the role {may.role} may not make the publication: {error.diag.message_primary}",
                where=f"source {source.name}",
                fix=may.granting if may.own else f"{may.advice(texts[done:])}\n     {by_hand(source)}",
            ) from error
