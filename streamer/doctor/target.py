"""The checks of a Postgres target: what apply will need there, tried with the role it will use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg

from streamer.changes.fitting import fits_type
from streamer.changes.marked import holds_marked
from streamer.config import ColumnRule, Config, Flow, PostgresTarget, VectorTarget, built_flows
from streamer.doctor.check import Findings
from streamer.doctor.identity import check_identity
from streamer.doctor.postgres import Server, connected, listed, one, rows
from streamer.doctor.source import SourceFacts, taken_tables
from streamer.doctor.vectors import check_vectors, chunk_columns
from streamer.postgres import rights
from streamer.postgres.catalog import identifier
from streamer.postgres.connection import Connection
from streamer.postgres.identity import checked_at_once
from streamer.postgres.live_rows import INDEXES, of_live_rows
from streamer.resetting import reset_steps

VERSION_COLUMNS = {
    "_tailrace_epoch": "int NOT NULL DEFAULT 0",
    "_tailrace_lsn": "bigint NOT NULL DEFAULT 0",
    "_tailrace_ordinal": "bigint NOT NULL DEFAULT 0",
}
PARAMETER_GRANTS_SINCE = 150000  # GRANT SET ON PARAMETER


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table that a flow will write: its place in the target and the columns that are sent to it.

    `columns`: (the target's name, type, in the key); `named`: those that the config names itself.
    """

    rules: Flow
    schema: str
    table: str
    columns: list[tuple[str, str, bool]]
    named: set[str]
    constants: set[str]
    casts: set[str]  # columns that are cast on the way

    @property
    def flow(self) -> str:
        return self.rules.name

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def key(self) -> set[str]:
        return {name for name, _, in_key in self.columns if in_key}

    @property
    def soft(self) -> str | None:
        """The column where a delete writes its time."""
        given = self.rules.delete
        return given[len("soft(") : -1].strip() if given.startswith("soft(") else None

    @property
    def own(self) -> dict[str, str]:
        """Columns that apply adds for itself: name and definition."""
        found = dict(VERSION_COLUMNS) if self.rules.version == "columns" else {}
        if found and self.rules.write == "append":
            found["_tailrace_op"] = "text NOT NULL DEFAULT ''"
        if self.soft is not None:
            found[self.soft] = "timestamptz"
        return found


def wanted_table(flow: Flow, schema: str, table: str, columns: list[tuple[str, str, bool]]) -> Wanted:
    """`columns`: the source's. As apply maps them, without its checks."""
    sent: list[tuple[str, str, bool]] = []
    named: set[str] = set()
    constants: set[str] = set()
    casts: set[str] = set()
    for name, rule in flow.columns.items():
        if isinstance(rule, ColumnRule) and "value" in rule.model_fields_set:
            constants.add(name)
    for name, type_, in_key in columns:
        given = flow.columns.get(name)
        if name in constants:
            continue
        if given is None:
            sent.append((name, type_, in_key))
            continue
        to, cast = (given, None) if isinstance(given, str) else (given.to or name, given.cast)
        sent.append((to, cast or type_, in_key))
        named.add(to)
        casts |= {to} if cast else set()
    return Wanted(flow, schema, table, sent, named, constants, casts)


async def check_target(
    findings: Findings,
    config: Config,
    target: PostgresTarget | VectorTarget,
    sources: Mapping[str, SourceFacts],
    bound: str | None = None,
) -> None:
    """All that can be tried of one target; tables of sources that did not answer are left out. `bound`: the
    id of the store that its group belongs to."""
    flows, stopped = built_flows(config, target.name)
    for reasons in stopped.values():
        for unbuilt in reasons:
            findings.warn("flows", f"{unbuilt.path}: {unbuilt.what}; the flow does not run", unbuilt.fix)
    if not flows:
        findings.warn("flows", "no flow that can run leads here", f"add one with `to: {target.name}`")
    async with connected(findings, target.url) as found:
        if found is None:
            return
        connection, server = found
        findings.store = "postgres", *server.place
        if server.in_recovery:
            findings.fail(
                "primary", "the server is a standby, which cannot be written", "give the primary's URL"
            )
            return
        if (await one(connection, "SELECT current_setting('default_transaction_read_only')"))[0] == "on":
            sql = [f"ALTER ROLE {identifier(server.role)} SET default_transaction_read_only = off;"]
            findings.fail("writable", "transactions are read-only here", "let this role write", sql)
        await check_identity(findings, connection, f"{config.name}.{target.name}", bound)
        wanted = _wanted(findings, flows, sources, server)
        made_in = await _existing(findings, connection, server, wanted)
        await _schemas(findings, connection, flows, wanted, made_in)
        await _replication_role(findings, connection, server)
        if isinstance(target, VectorTarget):
            await check_vectors(findings, connection, server, target, flows, sources)


def _wanted(
    findings: Findings, flows: list[Flow], sources: Mapping[str, SourceFacts], server: Server
) -> list[Wanted]:
    wanted: list[Wanted] = []
    writers: dict[tuple[str, str], str] = {}
    for flow, facts, taken in taken_tables(findings, flows, sources):
        captured = {(t.schema, t.name) for t in facts.tables}
        for table in taken:
            place = flow.place(table.schema, table.name)
            if facts.server.place == server.place and place in captured:
                what = f"the flow {flow.name} writes {'.'.join(place)}, which is captured: an endless loop"
                fix = f"write another schema: `to: {flow.target}.copy`"
                findings.fail("flows", what, fix)
            origin = f"{flow.source}.{table.qualified}"
            other = writers.setdefault(place, origin)
            if other != origin:
                what = f"{other} and {origin} would both be written to {'.'.join(place)}"
                findings.fail("flows", what, "one table has one writer: send one of them to another schema")
                continue
            columns = facts.columns.get((table.schema, table.name), [])
            if flow.text is not None:
                columns = chunk_columns(flow, columns)
            wanted.append(wanted_table(flow, *place, columns))
    return wanted


async def _schemas(
    findings: Findings, connection: Connection, flows: list[Flow], wanted: list[Wanted], made_in: set[str]
) -> None:
    """Schemas: ours, those that flows name, and those where tables will be made."""
    names = {*(w.schema for w in wanted), *(f.table_schema for f in flows if f.table_schema)}
    query = "SELECT nspname::text FROM pg_namespace WHERE nspname = ANY (%s)"
    there = {name for (name,) in await rows(connection, query, ([*names, rights.OWN_SCHEMA],))}
    lacks = {rights.OWN_SCHEMA: await rights.own_schema(connection)}
    for schema in sorted(names):
        lacks[schema] = await rights.using_schema(connection, schema, creates=schema in made_in)
    for schema, lack in lacks.items():
        creates = schema in made_in or schema == rights.OWN_SCHEMA
        if lack is not None:
            findings.fail(lack.kind, lack.what, lack.fix, lack.statements)
        elif schema not in there:
            findings.ok("schemas", f"the schema {schema} can be made")
        else:
            findings.ok("schemas", f"{'tables can be made in' if creates else 'USAGE on'} {schema}")


async def _existing(
    findings: Findings, connection: Connection, server: Server, wanted: list[Wanted]
) -> set[str]:
    """Checks the tables that are there; returns the schemas in which tables are still to be made."""
    made_in = set()
    good = 0
    for table in wanted:
        found = await rows(
            connection,
            """SELECT c.oid::bigint, c.relkind::text, pg_has_role(c.relowner, 'USAGE'),
                      row_security_active(c.oid),
                      (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = %s AND c.relname = %s""",
            (table.schema, table.table),
        )
        if not found:
            made_in.add(table.schema)
            continue
        oid, kind, owned, secured, triggers = found[0]
        before = len(findings.checks)
        if kind not in ("r", "p"):
            fix = f"send the flow {table.flow} to another schema, or rename it"
            findings.fail("tables", f"{table.name} is there and is no table", fix)
            continue
        _, lack = await rights.using_table(connection, table.schema, table.table)
        if lack is not None:
            findings.fail(lack.kind, lack.what, lack.fix, lack.statements)
        await _key(findings, connection, table, oid)
        await _live_rows(findings, connection, table, oid)
        await _foreign_keys(findings, connection, server, table, oid)
        await _column_types(findings, connection, server, table, oid, owned)
        if secured:
            sql = [f"ALTER ROLE {identifier(server.role)} BYPASSRLS;"]
            findings.fail(
                "row security", f"policies of {table.name} may refuse rows", "let the role past them", sql
            )
        if triggers and not await _may_replicate(connection):
            what = f"{table.name} has {triggers} trigger(s), which will fire for every row that is applied"
            findings.warn("triggers", what, *_replication_role_fix(server))
        good += len(findings.checks) == before
    if good:
        findings.ok("tables", f"{good} table{'s' if good != 1 else ''} there already, as needed")
    if len(wanted) > good and made_in:
        findings.ok("tables", f"tables will be made in {listed(sorted(made_in))}")
    return made_in


async def _key(findings: Findings, connection: Connection, table: Wanted, oid: int) -> None:
    if not table.key or table.rules.write == "append":
        return
    place = identifier(table.schema, table.table)
    indexes = await rows(
        connection,
        """SELECT (SELECT coalesce(array_agg(a.attname::text ORDER BY 1), '{}') FROM pg_attribute a
                   WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])),
                  i.indimmediate, x.relname::text, i.indisprimary
           FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
           WHERE i.indrelid = %s::bigint::oid AND i.indisunique AND NOT i.indisexclusion AND i.indpred IS NULL
             AND i.indexprs IS NULL AND i.indisvalid""",
        (oid,),
    )
    fitting = [index for index in indexes if table.key <= set(index[0]) <= table.key | table.constants]
    late = [index for index in fitting if not index[1]]
    if late:  # even beside another: ON CONFLICT takes every index on its columns
        columns, _, name, primary = late[0]
        what = f"{table.name}: its key {name} is deferrable, which an upsert cannot use"
        sql = [checked_at_once((table.schema, table.table), name, columns, primary=primary)]
        findings.fail("constraints", what, "as its owner run", sql)
    elif not fitting:
        columns_text = ", ".join(identifier(n) for n, _, key in table.columns if key)
        sql = [f"CREATE UNIQUE INDEX ON {place} ({columns_text});"]
        findings.fail(
            "constraints", f"{table.name} has no unique key on {', '.join(sorted(table.key))}", "add it", sql
        )


async def _live_rows(findings: Findings, connection: Connection, table: Wanted, oid: int) -> None:
    """Under a soft delete, unique indexes in which a deleted row stands in another one's way."""
    soft = table.soft
    if soft is None or table.rules.write == "append":
        return
    sent = {name for name, _, _ in table.columns} | table.constants
    for name, columns, depends, predicate, definition, kind in await rows(connection, INDEXES, (oid,)):
        if set(columns) >= table.key or not holds_marked(depends, sent, table.key, predicate, soft):
            continue
        what = f"{table.name}: its unique index {name} holds rows that are deleted, which keep their values"
        place = table.schema, table.table
        statements = of_live_rows(place, name, definition, predicate, kind, soft)
        fix = f"make it one of rows that are there, or write delete: apply in the flow {table.flow}"
        findings.fail("constraints", what, fix, statements)


async def _foreign_keys(
    findings: Findings, connection: Connection, server: Server, table: Wanted, oid: int
) -> None:
    """They are off for applied rows where the role may; else what comes before its parent waits."""
    names = [
        name
        for (name,) in await rows(
            connection,
            """SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND conparentid = 0
                 AND (conrelid = %s::bigint::oid OR confrelid = %s::bigint::oid) ORDER BY 1""",
            (oid, oid),
        )
    ]
    if names and not await _may_replicate(connection):
        what = (
            f"{table.name} has foreign keys ({listed(names)}), which hold for applied rows: what arrives"
            " before the row that it refers to waits for it"
        )
        findings.warn("constraints", what, *_replication_role_fix(server))


async def _column_types(
    findings: Findings, connection: Connection, server: Server, table: Wanted, oid: int, owned: bool
) -> None:
    place = identifier(table.schema, table.table)
    there = {
        name: (type_, required, generated, builtin)
        for name, type_, required, generated, builtin in await rows(
            connection,
            """SELECT a.attname::text,
                      CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod)
                                     ELSE format_type(a.atttypid, a.atttypmod) END,
                      a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
                      a.attgenerated <> '',
                      t.typnamespace = 'pg_catalog'::regnamespace
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               WHERE a.attrelid = %s::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped
               ORDER BY a.attnum""",
            (oid,),
        )
    }
    sent = {
        name: type_
        for name, type_, _ in table.columns
        if name in there or table.rules.unmapped == "add" or name in table.named
    }
    unknown = {
        type_
        for (type_,) in await rows(
            connection,
            "SELECT x FROM unnest(%s::text[]) x WHERE to_regtype(x) IS NULL",
            (list(sent.values()),),
        )
    }
    made = {name: "text" if type_ in unknown else type_ for name, type_ in sent.items()}
    add = {name: type_ for name, type_ in (made | table.own).items() if name not in there}
    if add and not owned:
        what = f"{table.name} lacks {listed(list(add))}, and {server.role} does not own it"
        columns = ", ".join(f"ADD COLUMN {identifier(name)} {type_}" for name, type_ in add.items())
        findings.fail("columns", what, "as the table's owner run", [f"ALTER TABLE {place} {columns};"])
    for name, (type_, required, generated, builtin) in there.items():
        column = identifier(name)
        if name in sent:
            if generated:  # left to the target
                if name in table.key:
                    what = f"{table.name}.{name} is computed by the target, and is the key of the source"
                    findings.fail("columns", what, f"send the flow {table.flow} to another table")
            elif name in table.casts:
                if sent[name] in unknown:
                    what = f"{table.name}.{name} is cast to {sent[name]}, which this server does not know"
                    findings.fail("columns", what, f"correct `cast` under flows.{table.flow}.columns")
            elif table.rules.embed and name == "embedding":
                _check_vectors(findings, table, place, type_, sent[name])
            elif not fits_type(sent[name], type_) and not (sent[name] in unknown and not builtin):
                what = f"{table.name}.{name} is {type_}, which does not hold every {sent[name]} of the source"
                wanted = made[name]
                change = f"ALTER TABLE {place} ALTER COLUMN {column} TYPE {wanted} USING {column}::{wanted};"
                fix = (
                    f"change the column's type; or, when each value is fit for it, give it a `cast` under"
                    f" flows.{table.flow}.columns; or send the flow to another schema"
                )
                findings.fail("columns", what, fix, [change])
        elif required and name not in table.own and name not in table.constants:
            what = f"{table.name}.{name} must not be null, has no default, and the source does not send it"
            sql = [f"ALTER TABLE {place} ALTER COLUMN {column} DROP NOT NULL;"]
            findings.fail("columns", what, "give it a default, or allow nulls", sql)


def _check_vectors(findings: Findings, table: Wanted, place: str, found: str, wanted: str) -> None:
    if found.rpartition(".")[2] != wanted:
        what = f"{table.name}.embedding is {found}, and the flow {table.flow} makes {wanted}"
        anew = f"have all embedded anew: drop the table, then {reset_steps(table.rules.source)}"
        fix = f"write `dimensions` as it has them; or {anew}"
        findings.fail("columns", what, fix, [f"DROP TABLE {place};"])


async def _may_replicate(connection: Connection) -> bool:
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _replication_role_fix(server: Server) -> tuple[str, list[str]]:
    if server.version < PARAMETER_GRANTS_SINCE:
        return "this server cannot grant that setting (15 can); disable the triggers on the copy", []
    grant = f"GRANT SET ON PARAMETER session_replication_role TO {identifier(server.role)};"
    return "let the role switch triggers off for its own session", [grant]


async def _replication_role(findings: Findings, connection: Connection, server: Server) -> None:
    if await _may_replicate(connection):
        findings.ok("triggers", "triggers of the target stay off for applied rows (session_replication_role)")
    else:
        what = f"{server.role} may not set session_replication_role: triggers on target tables would fire"
        findings.note("triggers", what, *_replication_role_fix(server))
