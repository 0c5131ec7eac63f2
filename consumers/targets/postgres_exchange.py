"""The exchange of two tables' names in a Postgres target, in a transaction that the caller holds.

It holds apply up at the live table's checkpoints, and the table beside is exactly there: what is kept of the
live table in the schema _tailrace holds for the other one as it is, versions beside the rows included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import errors

from consumers.targets import postgres_beside as beside
from consumers.targets import postgres_state as state
from consumers.targets.postgres_beside import Live, fitting
from consumers.targets.postgres_catalog import quote
from streamer.errors import ConfigError, TargetUnavailable

LOCK_TRIES = 5  # for the live table alone, while apply waits for its checkpoints
LOCK_TRY = "2s"  # its readers wait behind each; above deadlock_timeout, when an autovacuum gives way

OID = "SELECT to_regclass(format('%I.%I', $1::text, $2::text))::oid::bigint"
NUMBER = "SELECT id FROM _tailrace.versioned WHERE schema_name = $1 AND table_name = $2"
_SWAPPED = """UPDATE _tailrace.rebuilds SET swapped = now()
WHERE (flow, schema_name, into_name) = ($1, $2, $3)"""
# Versions of rows that the live table lacks, or has in an older one, come to the ones under its number.
_KEEP_VERSIONS = """INSERT INTO _tailrace.versions AS v
SELECT $2::int, n.key_1, n.key_2, n.epoch, n.lsn, n.ordinal FROM _tailrace.versions n
WHERE n.table_id = $1::int AND NOT EXISTS (SELECT FROM _tailrace.versions o WHERE o.table_id = $2::int
AND o.key_1 = n.key_1 AND o.key_2 = n.key_2 AND (o.epoch, o.lsn, o.ordinal) >= (n.epoch, n.lsn, n.ordinal))
ON CONFLICT (table_id, key_1, key_2) DO UPDATE SET epoch = excluded.epoch, lsn = excluded.lsn,
ordinal = excluded.ordinal"""
_GRANTS = """SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
a.privilege_type, a.is_grantable, NULL FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = $1::oid AND a.grantee <> c.relowner
UNION ALL SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
a.privilege_type, a.is_grantable, quote_ident(t.attname) FROM pg_class c
JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
WHERE c.oid = $1::oid AND a.grantee <> c.relowner AND NOT t.attisdropped"""


@dataclass(frozen=True, slots=True)
class Names:
    """`flow`: of the table beside, as its checkpoints have it; `of`: the live one's."""

    of: str
    flow: str
    topics: tuple[str, ...]
    schema: str
    live: str
    into: str
    old: str


class TableBusy(TargetUnavailable):
    """Somebody reads or writes the live table in a transaction that does not end."""


class Exchange:
    """`place`: of the target, for errors."""

    def __init__(self, connection: state.Connection, names: Names, place: str) -> None:
        self.connection = connection
        self.names = names
        self.place = place

    async def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await (await self.connection.execute(query, parameters, prepare=False)).fetchall()

    async def _do(self, statement: str, *parameters: object) -> None:
        await self.connection.execute(statement, parameters or None, prepare=False)

    async def run(self, live: Live, oid: int, *, drop_old: bool) -> list[str]:
        """What could not be carried over, as SQL to run. Raises ConfigError, TableBusy, psycopg.Error."""
        names = self.names
        await beside.add_indexes(self.connection, live, names.into, forbidding=True)
        await self._keep_versions()
        await self._alone(live)
        await self._check(live, oid)
        await self._sequences(live, oid)
        await self._rename(live)
        failed = await self._grants(live)
        if drop_old:
            await self._do(f"DROP TABLE {quote(live.schema)}.{quote(names.old)}")
        await self._do(_SWAPPED, names.of, names.schema, names.into)
        return failed

    async def _alone(self, live: Live) -> None:
        for _ in range(LOCK_TRIES):
            try:
                async with self.connection.transaction():
                    await self._do(f"SET LOCAL lock_timeout = '{LOCK_TRY}'")
                    await self._do(f"LOCK TABLE {live.relation} IN ACCESS EXCLUSIVE MODE")
                return
            except errors.LockNotAvailable:
                continue
        raise TableBusy(
            f"{live.schema}.{live.name} is in use by a transaction that does not end",
            where=self.place,
            fix="see pg_stat_activity for it; then run this again, which goes on where it is",
        )

    async def _check(self, live: Live, oid: int) -> None:
        """That both are what they were, now that nobody can change them."""
        names = self.names
        await beside.obstacles(self.connection, live)
        for name, known in ((names.live, live.oid), (names.into, oid)):
            ((found,),) = await self._rows(OID, names.schema, name)
            if found != known:
                raise ConfigError(
                    f"{names.schema}.{name} is another table than it was when this began",
                    where=self.place,
                    fix="run it again: it begins anew",
                )
        if not await beside.same_columns(self.connection, live.oid, oid):
            raise ConfigError(
                f"{names.schema}.{names.live} has other columns than the table beside it by now",
                where=self.place,
                fix=f"DROP TABLE {quote(names.schema)}.{quote(names.into)}; and run it again",
            )

    async def _keep_versions(self) -> None:
        schema, into, live = self.names.schema, self.names.into, self.names.live
        ours, theirs = (
            await number(self.connection, schema, into),
            await number(self.connection, schema, live),
        )
        if ours is not None and theirs is not None:
            await self._do(_KEEP_VERSIONS, ours, theirs)

    async def _sequences(self, live: Live, oid: int) -> None:
        """A sequence of its own goes on where the old one is; one that stands in a default comes along."""
        ours = await beside.columns(self.connection, oid)
        into = f"{quote(live.schema)}.{quote(self.names.into)}"
        for column in (await beside.columns(self.connection, live.oid)).values():
            if column.sequence is None:
                continue
            mine = ours[column.name].sequence
            if not column.identity or mine is None:
                await self._do(f"ALTER SEQUENCE {column.sequence} OWNED BY {into}.{quote(column.name)}")
                continue
            await self._do(f"SELECT setval('{_text(mine)}', last_value, is_called) FROM {column.sequence}")
            names = "SELECT relname::text FROM pg_class WHERE oid = $1::text::regclass"
            ((kept,),) = await self._rows(names, column.sequence)
            aside = fitting(self.names.old, f"_{column.name}_seq")
            await self._do(f"ALTER SEQUENCE {column.sequence} RENAME TO {quote(aside)}")
            await self._do(f"ALTER SEQUENCE {mine} RENAME TO {quote(kept)}")

    async def _rename(self, live: Live) -> None:
        names, schema = self.names, quote(live.schema)
        indexes = await beside.indexes(self.connection, live.oid)
        await self._do(f"ALTER TABLE {live.relation} RENAME TO {quote(names.old)}")
        await self._do(f"ALTER TABLE {schema}.{quote(names.into)} RENAME TO {quote(names.live)}")
        for index in indexes:
            aside, mine = fitting(names.old, f"_{index.oid}"), beside.index_name(names.into, index)
            await self._do(f"ALTER INDEX {schema}.{quote(index.name)} RENAME TO {quote(aside)}")
            await self._do(f"ALTER INDEX {schema}.{quote(mine)} RENAME TO {quote(index.name)}")
            if live.identity == "i" and index.identity:
                using = f"USING INDEX {quote(index.name)}"
                await self._do(f"ALTER TABLE {live.relation} REPLICA IDENTITY {using}")
        if live.identity in "fn":
            kind = "FULL" if live.identity == "f" else "NOTHING"
            await self._do(f"ALTER TABLE {live.relation} REPLICA IDENTITY {kind}")

    async def _grants(self, live: Live) -> list[str]:
        failed = []
        for grantee, privilege, grantable, column in await self._rows(_GRANTS, live.oid):
            on = f" ({column})" if column else ""
            more = " WITH GRANT OPTION" if grantable else ""
            statement = f"GRANT {privilege}{on} ON {live.relation} TO {grantee}{more}"
            try:
                async with self.connection.transaction():
                    await self._do(statement)
            except (errors.InsufficientPrivilege, errors.UndefinedObject):
                failed.append(f"{statement};")
        return failed


async def number(connection: state.Connection, schema: str, table: str) -> int | None:
    """The table's, in the side table of versions."""
    there = await (
        await connection.execute("SELECT to_regclass('_tailrace.versioned') IS NOT NULL", prepare=False)
    ).fetchone()
    if not there or not there[0]:
        return None
    row = await (await connection.execute(NUMBER, (schema, table), prepare=False)).fetchone()
    return int(str(row[0])) if row else None


def _text(name: str) -> str:
    return name.replace("'", "''")
