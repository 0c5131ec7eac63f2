"""Makes the publications of a source, and says who may where its own role may not.

Owns the rights that it takes: a table is added by a role that owns it and the publication, a publication is
made by one that may CREATE in the database. What a message tells a person to run, the named role can run.

Owns the locks too. A publication takes SHARE UPDATE EXCLUSIVE on each table that comes into it, and whoever
waits for one table while it has another can be half of a deadlock, of which the server ends the half that
has waited longer: a migration. So a wait for a table is a wait without another table, and what is waited for
with one in hand is given up before anybody who waits for us looks for a deadlock (deadlock_timeout).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import errors, sql

from streamer.config import PostgresSource
from streamer.errors import ConfigError
from streamer.postgres import rights
from streamer.postgres.catalog import Publications, Table, identifier, publication_tables
from streamer.postgres.connection import Connection
from streamer.postgres.identity import harmed_tables, odd_partitions

# Of a table that came later, whose writers wait behind us; above deadlock_timeout (1 s), after which an
# autovacuum in the way gives up. A table that is busy for longer is tried again at the next look.
NEW_TABLE_LOCK_TIMEOUT = "1200ms"
# With a table in hand: for its partitions, for the publication itself.
_BRIEFLY = """SELECT set_config('lock_timeout', greatest(1, least(500, setting::int / 2))::text, true)
FROM pg_settings WHERE name = 'deadlock_timeout'"""
_ALL_OF_IT_BRIEFLY = "SELECT set_config('statement_timeout', current_setting('lock_timeout'), true)"


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
    missing = publications.missing(present)
    texts = _texts(connection, statements)
    makes = any(text.startswith("CREATE") for text in texts)
    may = await hands(connection, publications.tables, present, makes=makes)
    if not manage:
        raise ConfigError(
            f"publication {publications.name} does not carry every table of the config (manage: false)",
            fix=may.advice(texts),
        )
    try:
        lockable = await _lockable(connection, missing)
        if len(lockable) < len(missing) or not await _add_at_once(connection, missing, statements):
            await _add_singly(connection, publications, missing, lockable)
    except errors.InsufficientPrivilege as error:
        present = await publication_tables(connection, *names)
        texts = _texts(connection, publications.statements(present, both=manage))
        raise ConfigError(
            f"the role {may.role} may not make the publication: {error.diag.message_primary or error}",
            where=f"source {source.name}",
            fix=may.granting if may.own else f"{may.advice(texts)}\n     {by_hand(source)}",
        ) from error


def _texts(connection: Connection, statements: Iterable[sql.Composed]) -> list[str]:
    return [f"{statement.as_string(connection)};" for statement in statements]


async def _lockable(connection: Connection, tables: Sequence[Table]) -> frozenset[int]:
    """Of those that the role must own, the oids that it may LOCK: an owner can lack every right but that."""
    cursor = await connection.execute(
        """SELECT c.oid::bigint, pg_has_role(c.relowner, 'USAGE'),
                  has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')
           FROM pg_class c WHERE c.oid = ANY (%s::bigint[]::oid[])""",
        ([table.oid for table in tables],),
    )
    found = {oid: (owned, lockable) for oid, owned, lockable in await cursor.fetchall()}
    for table in tables:
        if not found.get(table.oid, (True, True))[0]:  # the server would say so with every table locked
            raise errors.InsufficientPrivilege(f"must be owner of table {table.qualified}")
    return frozenset(oid for oid, (_, lockable) in found.items() if lockable)


async def _add_at_once(
    connection: Connection, tables: Sequence[Table], statements: Iterable[sql.Composed]
) -> bool:
    """All in one transaction, which waits for no table; False when one of them is in use."""
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(table.identifier) for table in tables)
    try:
        async with connection.transaction():
            if tables:
                await connection.execute(
                    sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE NOWAIT").format(names)
                )
            await _only_briefly(connection)
            for statement in statements:
                await connection.execute(statement)
    except errors.LockNotAvailable:
        return False
    return True


async def _add_singly(
    connection: Connection, publications: Publications, tables: Iterable[Table], lockable: frozenset[int]
) -> None:
    """Each table in a transaction of its own: one is waited for, for the session's lock_timeout, while no
    other is held. What has been added stays, also when LockNotAvailable is raised for the next.
    """
    names = (publications.name, publications.inserts_name)
    none = Publications(publications.name, ())
    for statement in none.statements(await publication_tables(connection, *names), both=True):
        await connection.execute(statement)
    for table in tables:
        async with connection.transaction():
            if table.oid in lockable:
                await connection.execute(
                    sql.SQL("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE").format(table.identifier)
                )
                await _only_briefly(connection)
            await connection.execute(_adds(publications.home(table), table))


def _adds(publication: str, table: Table) -> sql.Composed:
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publication), table.alone)


async def _only_briefly(connection: Connection) -> None:
    """What this transaction waits for from here on, with a table in hand, is soon given up."""
    await connection.execute(_BRIEFLY)


async def add_table(connection: Connection, publication: str, table: Table, *, with_rows: bool) -> bool:
    """Add a table made after the first snapshot; False when it has rows and is to be added only without.

    SHARE ROW EXCLUSIVE waits for every writer and keeps new ones out until the publication has the
    table, so that no row can come between the look and the change: rows written before it show in every
    later snapshot, those written after it come by the stream. Raises LockNotAvailable when it, or one of
    its partitions, is in use.
    """
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{NEW_TABLE_LOCK_TIMEOUT}'")
        await connection.execute(
            sql.SQL("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE").format(table.identifier)
        )
        await _only_briefly(connection)
        await connection.execute(_ALL_OF_IT_BRIEFLY)
        try:  # the statement's timeout, as each partition may be waited for
            await connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.alone))
        except errors.QueryCanceled as error:
            raise errors.LockNotAvailable(f"a partition of {table.qualified} is in use") from error
        await connection.execute("SET LOCAL statement_timeout = 0")
        if not with_rows:
            cursor = await connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.alone))
            row = await cursor.fetchone()
            if row is not None and row[0]:
                return False
        await connection.execute(_adds(publication, table))
    return True
