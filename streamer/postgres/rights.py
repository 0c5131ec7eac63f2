"""What a role lacks to read tables of a source, or to write those of a target and the schema `_tailrace`.

Owns the sentences and the SQL that mends them, so that `doctor`, capture and apply say the same. Changes
nothing; asks without parameters where apply asks too, whose cursors spell them otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, sql

from streamer.changes.names import spelt
from streamer.errors import ConfigError
from streamer.postgres.catalog import identifier

OWN_SCHEMA = "_tailrace"
ROW_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
ROW_SECURITY = "row security"
NAMED_LIMIT = 5  # tables in a sentence; the statements have all

Name = tuple[str, str]  # schema, table


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that the role may not. `kind`: a word for what it is about; `fix` in words."""

    kind: str
    what: str
    fix: str
    statements: tuple[str, ...]


# ---- a source --------------------------------------------------------------------------------


async def reading(connection: AsyncConnection[Any], tables: Iterable[Name]) -> list[Lack]:
    """What the connection's role lacks to copy these tables; tables that are not there are left out."""
    cursor = await connection.execute(
        """SELECT current_user::text, n.nspname::text, c.relname::text, has_schema_privilege(n.oid, 'USAGE'),
                  has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
           FROM unnest(%s::text[], %s::text[]) wanted (schema_name, table_name)
           JOIN pg_namespace n ON n.nspname = schema_name
           JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = table_name
           ORDER BY 2, 3""",
        tuple(map(list, zip(*tables, strict=True))) or ([], []),
    )
    rows = await cursor.fetchall()
    closed: set[str] = set()
    unread: dict[str, list[str]] = defaultdict(list)
    hidden: list[str] = []
    for _, schema, table, may_use, may_read, secured in rows:
        if may_use is None or may_read is None:
            continue  # dropped since this query began
        closed |= set() if may_use else {schema}
        if not may_read:
            unread[schema].append(table)
        hidden += [spelt(schema, table)] if secured else []
    return _lacks(rows[0][0], sorted(closed), unread, hidden) if rows else []


def _lacks(role: str, closed: list[str], unread: Mapping[str, list[str]], hidden: list[str]) -> list[Lack]:
    to = identifier(role)
    found = []
    if closed:
        grants = [f"GRANT USAGE ON SCHEMA {identifier(schema)} TO {to};" for schema in closed]
        what = f"{role} may not use the schema {_named(closed)}"
        found.append(Lack("schemas", what, "let it", tuple(grants)))
    if unread:
        grants = [
            f"GRANT SELECT ON {', '.join(identifier(schema, table) for table in tables)} TO {to};"
            for schema, tables in unread.items()
        ]
        names = [spelt(schema, table) for schema, tables in unread.items() for table in tables]
        what = f"{role} may not read {_named(names)}: a copy needs it"
        found.append(Lack("SELECT", what, "let it read them", tuple(grants)))
    if hidden:
        what = f"row security hides rows of {_named(hidden)} from {role}: a copy would miss them"
        fix = "let the role read past the policies"
        found.append(Lack(ROW_SECURITY, what, fix, (f"ALTER ROLE {to} BYPASSRLS;",)))
    return found


def _named(names: Sequence[str]) -> str:
    """'a, b and 3 more'."""
    shown, more = ", ".join(names[:NAMED_LIMIT]), len(names) - NAMED_LIMIT
    return f"{shown} and {more} more" if more > 0 else shown


def as_owner(statements: Iterable[str]) -> str:
    """The cure of an error: words, and the exact SQL."""
    return f"as the owner, or an administrator, run {' '.join(statements)}"


async def require_reading(
    connection: AsyncConnection[Any], tables: Iterable[Name], *, copied: bool, where: str
) -> None:
    """Raises ConfigError with all of the SQL that is needed; `copied`: rows are read, not only locked."""
    lacks = [lack for lack in await reading(connection, tables) if copied or lack.kind != ROW_SECURITY]
    if lacks:
        what = "; ".join(lack.what for lack in lacks)
        raise ConfigError(what, where=where, fix=as_owner(s for lack in lacks for s in lack.statements))


# ---- a target --------------------------------------------------------------------------------


async def writing(connection: AsyncConnection[Any], schema: str, table: str) -> list[Lack]:
    """What the connection's role lacks to make this table, or to write it where it is there."""
    there, lack = await using_table(connection, schema, table)
    use = await using_schema(connection, schema, creates=not there)
    return [each for each in (use, lack) if each is not None]


async def using_schema(connection: AsyncConnection[Any], schema: str, *, creates: bool) -> Lack | None:
    """`creates`: tables are to be made there; the schema too, where it is missing."""
    query = sql.SQL(
        """SELECT current_user::text, n.oid IS NOT NULL, has_database_privilege(current_database(), 'CREATE'),
                  coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
                  coalesce(has_schema_privilege(n.oid, 'CREATE'), false)
           FROM (SELECT) one LEFT JOIN pg_namespace n ON n.nspname = {}"""
    ).format(sql.Literal(schema))
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    role, there, may_make, usage, create = row
    name, to = identifier(schema), identifier(role)
    if not there:
        what = f"the schema {schema} is not there, and {role} may not make it"
        make = f"CREATE SCHEMA {name} AUTHORIZATION {to};"
        return None if may_make else Lack("schemas", what, "make it", (make,))
    missing = [word for word, has in (("USAGE", usage), ("CREATE", create or not creates)) if not has]
    verb = "make tables in" if "CREATE" in missing else "use"
    grant = f"GRANT {', '.join(missing)} ON SCHEMA {name} TO {to};"
    return (
        Lack("schemas", f"{role} may not {verb} the schema {schema}", "let it", (grant,)) if missing else None
    )


async def using_table(connection: AsyncConnection[Any], schema: str, table: str) -> tuple[bool, Lack | None]:
    """Whether it is there, and what of reading and writing its rows the role may not."""
    held = sql.SQL(", ").join(
        sql.SQL("has_table_privilege(c.oid, {})").format(sql.Literal(right)) for right in ROW_PRIVILEGES
    )
    query = sql.SQL(
        """SELECT current_user::text, {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = {} AND c.relname = {}"""
    ).format(held, sql.Literal(schema), sql.Literal(table))
    row = await (await connection.execute(query)).fetchone()
    if row is None:
        return False, None
    role, *has = row
    missing = ", ".join(right for right, held in zip(ROW_PRIVILEGES, has, strict=True) if not held)
    what = f"{role} has no {missing} on {spelt(schema, table)}"
    grant = f"GRANT {missing} ON {identifier(schema, table)} TO {identifier(role)};"
    return True, Lack("tables", what, "grant it", (grant,)) if missing else None


_OWN_CLOSED = f"""SELECT current_user::text, EXISTS (
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = '{OWN_SCHEMA}' AND c.relkind = 'r' AND NOT (
{" AND ".join(f"has_table_privilege(c.oid, '{right}')" for right in ROW_PRIVILEGES)}))"""


async def own_schema(connection: AsyncConnection[Any]) -> Lack | None:
    """What the role lacks for the schema `_tailrace`, where apply keeps its checkpoints beside the rows."""
    lack = await using_schema(connection, OWN_SCHEMA, creates=True)
    row = await (await connection.execute(_OWN_CLOSED)).fetchone()
    assert row is not None
    role, closed = row
    if not closed:
        return lack
    statements = lack.statements if lack is not None else ()
    everything = f"{', '.join(ROW_PRIVILEGES)} ON ALL TABLES IN SCHEMA {identifier(OWN_SCHEMA)}"
    grant = f"GRANT {everything} TO {identifier(role)};"
    what = lack.what if lack is not None else f"{role} may not use all tables of the schema {OWN_SCHEMA}"
    return Lack("schemas", what, "let it", (*statements, grant))
