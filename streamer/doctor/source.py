"""The checks of a Postgres source: what capture will need, tried with the role it will use."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from streamer.changes.names import spelt
from streamer.config import (
    Flow,
    PostgresSource,
    TableRule,
    check_topics,
    unbuilt_source,
    unbuilt_table_rule,
)
from streamer.config.patterns import fits_parts
from streamer.doctor.check import Findings
from streamer.doctor.postgres import CONNECT_DEADLINE_S, Server, connected, listed, one, rows
from streamer.errors import ConfigError, TailraceError
from streamer.postgres import rights
from streamer.postgres.catalog import (
    Publications,
    Table,
    identifier,
    list_tables,
    publication_tables,
)
from streamer.postgres.connection import Connection, connect
from streamer.postgres.identity import Unidentified, harmed_tables, odd_partitions, unidentified
from streamer.postgres.omissions import omissions, unlogged_tables
from streamer.postgres.publishing import by_hand, hands
from streamer.postgres.slot import identify_system, read_slot
from streamer.resetting import reset_fix

PLUGIN = "pgoutput"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What other checks need of a source that answered. `columns`: table -> [(name, type, in the key)]."""

    server: Server
    tables: tuple[Table, ...]
    columns: dict[tuple[str, str], list[tuple[str, str, bool]]]


def taken_tables(
    findings: Findings, flows: Iterable[Flow], sources: Mapping[str, SourceFacts]
) -> Iterator[tuple[Flow, SourceFacts, list[Table]]]:
    """The captured tables that each flow takes; a flow that takes none is a failure.

    Tables of sources that did not answer, or have no catalogue, are left out.
    """
    for flow in flows:
        facts = sources.get(flow.source)
        if facts is None:
            continue
        taken = [table for table in facts.tables if flow.takes(table.schema, table.name)]
        if not taken and facts.tables:  # of a source without tables it is said already
            what = f"the flow {flow.name} ({flow.source_pattern}) takes no captured table"
            findings.fail("flows", what, f"correct flows.{flow.name}.from, or sources.{flow.source}.tables")
        yield flow, facts, taken


async def check_source(findings: Findings, source: PostgresSource) -> SourceFacts | None:
    """All that can be tried of one source; None when it cannot be reached."""
    for unbuilt in unbuilt_source(source):
        findings.fail("config", f"{unbuilt.path}: {unbuilt.what}", unbuilt.fix)
    async with connected(findings, source.url) as found:
        if found is None:
            return None
        connection, server = found
        if server.in_recovery:
            fix = "give the primary's URL: a standby cannot be captured yet"
            findings.fail("primary", "the server is a standby", fix)
        await _settings(findings, connection, source)
        await _replication(findings, source, server)
        await _slot(findings, connection, source, server)
        tables = await _tables(findings, connection, source)
        if tables:
            await _privileges(findings, connection, tables)
            await _publication(findings, connection, source, server, tables)
        return SourceFacts(server, tuple(tables), await _columns(connection, tables))


async def _settings(findings: Findings, connection: Connection, source: PostgresSource) -> None:
    settings = {
        name: (value, unit)
        for name, value, unit in await rows(
            connection,
            "SELECT name, setting, coalesce(unit, '') FROM pg_settings WHERE name = ANY (%s)",
            (["wal_level", "max_slot_wal_keep_size", "idle_replication_slot_timeout"],),
        )
    }
    level = settings["wal_level"][0]
    if level == "logical":
        findings.ok("wal_level", "wal_level is logical")
    else:
        fix = "set it and restart the server (a managed server: its parameter group)"
        sql = ["ALTER SYSTEM SET wal_level = 'logical';"]
        findings.fail("wal_level", f"wal_level is {level}, logical replication needs logical", fix, sql)
    keep_mb = int(settings.get("max_slot_wal_keep_size", ("-1", "MB"))[0])
    warn_mb = source.slot.wal_warn_bytes // 2**20
    if keep_mb < 0:
        what = "max_slot_wal_keep_size is unlimited: while capture is stopped, WAL may fill the server's disk"
        findings.note(
            "WAL kept",
            what,
            "watch the disk, or limit it (then a slot left too long is lost and needs a reset)",
        )
    elif keep_mb < warn_mb:
        what = f"max_slot_wal_keep_size ({keep_mb} MB) is below slot.wal_warn: no warning before the loss"
        sql = [f"ALTER SYSTEM SET max_slot_wal_keep_size = '{4 * warn_mb}MB';", "SELECT pg_reload_conf();"]
        findings.warn("WAL kept", what, "lower slot.wal_warn, or raise the setting", sql)
    else:
        findings.ok("WAL kept", f"max_slot_wal_keep_size is {keep_mb} MB")
    idle = settings.get("idle_replication_slot_timeout", ("0", "s"))[0]
    if idle != "0":
        what = f"idle_replication_slot_timeout is {idle} s: a capture stopped for longer loses its slot"
        sql = ["ALTER SYSTEM SET idle_replication_slot_timeout = 0;", "SELECT pg_reload_conf();"]
        findings.warn("idle slots", what, "switch it off", sql)


async def _replication(findings: Findings, source: PostgresSource, server: Server) -> None:
    """A replication connection is tried, since attributes, memberships and pg_hba.conf all have a say."""
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            async with connect(
                source.url.get_secret_value(), replication=True, application="tailrace doctor"
            ) as line:
                await identify_system(line)
    except TimeoutError:
        findings.fail("replication", "a replication connection does not answer", "look into the server's log")
    except TailraceError as error:
        low = error.what.lower()
        if "max_wal_senders" in low or (
            "walsender" in low and "permission" not in low and "replication role" not in low
        ):
            what = "the server has no free WAL sender"
            fix = "raise max_wal_senders and restart the server, or stop what no longer needs one"
            findings.fail("WAL senders", what, fix, ["ALTER SYSTEM SET max_wal_senders = 20;"])
        elif "pg_hba.conf" in low:
            fix = "add to pg_hba.conf a line for this user, database and address, then reload"
            what = "pg_hba.conf has no line for replication connections of this user to this database"
            findings.fail("replication", what, fix, ["SELECT pg_reload_conf();"])
        else:
            what = f"the role {server.role} may not replicate: it has no REPLICATION attribute"
            fix = "give it the attribute (Amazon RDS: GRANT rds_replication TO the role)"
            findings.fail("replication", what, fix, [f"ALTER ROLE {identifier(server.role)} REPLICATION;"])
    else:
        findings.ok("replication", f"the role {server.role} may replicate")


async def _slot(findings: Findings, connection: Connection, source: PostgresSource, server: Server) -> None:
    slot = await read_slot(connection, source.slot.name)
    if slot is None:
        used, most, idle = await one(
            connection,
            """SELECT count(*), current_setting('max_replication_slots')::int,
                      coalesce(array_agg(slot_name::text ORDER BY slot_name) FILTER (WHERE NOT active), '{}')
               FROM pg_replication_slots""",
        )
        if used < most:
            findings.ok(
                "slot", f"the slot {source.slot.name} can be made: {most - used} of {most} slots are free"
            )
            return
        fix = "raise max_replication_slots and restart the server"
        if idle:
            fix += f"; or drop with pg_drop_replication_slot() what nobody needs (idle now: {listed(idle)})"
        sql = [f"ALTER SYSTEM SET max_replication_slots = {max(10, 2 * most)};"]
        findings.fail("slot", f"no free slot: all {most} replication slots are taken", fix, sql)
        return
    reset = reset_fix(source.name)
    if slot.plugin != PLUGIN or slot.database != server.database:
        kind = f"{slot.plugin or 'physical'}, database {slot.database or '-'}"
        what = f"the slot {slot.name} belongs to something else ({kind})"
        findings.fail("slot", what, f"give sources.{source.name}.slot.name another name")
    elif slot.wal_status == "lost":
        findings.fail("slot", f"the server has removed WAL that the slot {slot.name} needs", reset)
    elif slot.wal_status == "unreserved":
        what = f"the slot {slot.name} is about to lose WAL that it needs"
        findings.warn("slot", what, "run capture now, and raise max_slot_wal_keep_size")
    elif slot.active_pid is not None:
        findings.ok("slot", f"the slot {slot.name} is there and in use (server process {slot.active_pid})")
    else:
        findings.ok("slot", f"the slot {slot.name} is there")


async def _tables(findings: Findings, connection: Connection, source: PostgresSource) -> list[Table]:
    try:
        tables = await list_tables(connection, source)
    except ConfigError as error:
        findings.fail("tables", error.what, error.fix)
        return []
    names = [(t.schema, t.name) for t in tables]
    skipped: list[tuple[str, str]] = []
    for pattern, rule in source.tables.items():
        if not isinstance(rule, TableRule):
            continue
        fitting = [n for n in names if source.pattern_for(*n) == pattern]
        unbuilt = unbuilt_table_rule(source, pattern)
        for one_of in unbuilt:
            findings.warn("tables", f"{one_of.path}: {one_of.what}; its tables are left out", one_of.fix)
        if unbuilt:
            skipped += fitting
        elif fitting:
            shown = listed([spelt(*n) for n in fitting])
            findings.ok("tables", f'"{pattern}" fits {len(fitting)}: {shown}')
        elif any(fits_parts(pattern, n) for n in names):
            what = f'"{pattern}" fits only tables that a pattern above it takes'
            findings.warn("tables", what, "the first pattern that fits counts: move it up, or remove it")
        else:
            fix = "correct the pattern (schema.table, with * and ?), or make the table"
            findings.fail("tables", f'"{pattern}" fits no table of the source', fix)
    for odd in await unlogged_tables(connection, source):
        findings.warn(odd.kind, odd.what, odd.doing, odd.statements)
    captured = [t for t in tables if (t.schema, t.name) not in skipped]
    try:
        check_topics((source.name, t.schema, t.name) for t in captured)
    except ConfigError as error:
        findings.fail("topics", error.what, error.fix)
    await _identities(findings, connection, captured)
    return captured


async def _identities(findings: Findings, connection: Connection, captured: list[Table]) -> None:
    alike: dict[tuple[str, str], list[Unidentified]] = defaultdict(list)
    for bare in await unidentified(connection, captured):
        alike[bare.why, bare.fix].append(bare)
    for (why, fix), bares in alike.items():
        what = (
            f"{listed([bare.table.qualified for bare in bares])}: only inserts and truncates are captured, "
            f"updates and deletes are not: {why}"
        )
        statements = [statement for bare in bares for statement in bare.statements]
        whose = "the table's owner" if len(bares) == 1 else "the tables' owners"
        findings.warn("replica identity", what, f"{fix}: as {whose} run" if statements else fix, statements)


async def _privileges(findings: Findings, connection: Connection, tables: list[Table]) -> None:
    lacks = await rights.reading(connection, [(t.schema, t.name) for t in tables])
    for lack in lacks:
        findings.fail(lack.kind, lack.what, lack.fix, lack.statements)
    kinds = {lack.kind for lack in lacks}
    if "schemas" not in kinds:
        findings.ok("schemas", f"USAGE on {listed(sorted({t.schema for t in tables}))}")
    if "SELECT" not in kinds:
        findings.ok("SELECT", f"SELECT on {len(tables)} table{'s' if len(tables) != 1 else ''}")


async def _publication(
    findings: Findings, connection: Connection, source: PostgresSource, server: Server, tables: list[Table]
) -> None:
    wanted = Publications(source.publication.name, tuple(tables))
    present = await publication_tables(connection, wanted.name, wanted.inserts_name)
    statements = wanted.statements(present, both=source.publication.manage)
    names = [wanted.name, *([wanted.inserts_name] if wanted.insert_only or source.publication.manage else [])]
    shown = " and ".join(names)
    for omission in await omissions(connection, wanted):
        findings.fail(omission.kind, omission.what, omission.doing, omission.statements)
    for harmed in await harmed_tables(connection, wanted.name, wanted.inserts_name):
        findings.fail("publication", harmed.what, f"as {harmed.runner} run", harmed.statements)
    for odd in await odd_partitions(connection, wanted.name, wanted.inserts_name, tables=tables):
        fix = "as the partitions' owner run (and for each that is made later)"
        findings.fail("replica identity", odd.what, fix, odd.statements)
    if not statements:
        carry = "carry" if len(names) > 1 else "carries"
        findings.ok("publication", f"{shown} {carry} {len(tables)} table{'s' if len(tables) != 1 else ''}")
        return
    sql = [s.as_string(connection) + ";" for s in statements]
    absent = [name for name in names if name not in present]
    if absent:
        missing = f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not there"
    else:
        missing = f"{shown} {'do' if len(names) > 1 else 'does'} not carry every table"
    changed = [t for t in tables if t.qualified not in present.get(wanted.home(t), ())]
    may = await hands(connection, changed, present, makes=bool(absent))
    manage = source.publication.manage
    if manage and may.own and not may.grant:
        findings.ok("publication", f"{missing}; capture will see to it")
        return
    if may.grant:
        what = f"{missing}, and {may.owners[0]} may not make one in this database"
        then = "; capture then makes it" if manage and may.own else ""
        fix = f"as {may.granter}, the database's owner, run{then}"
        findings.fail("publication", what, fix, [may.grant])
    if not manage:
        fix = f"sources.{source.name}.publication.manage is false: {may.who} run"
        findings.fail("publication", missing, fix, sql)
    elif not may.own:
        what = f"{missing}, and {server.role} may not change that"
        findings.fail("publication", what, f"{may.who} run; {by_hand(source)}", sql)


async def _columns(
    connection: Connection, tables: list[Table]
) -> dict[tuple[str, str], list[tuple[str, str, bool]]]:
    found: dict[tuple[str, str], list[tuple[str, str, bool]]] = defaultdict(list)
    for schema, table, name, type_, key in await rows(
        connection,
        """SELECT n.nspname::text, c.relname::text, a.attname::text,
                  CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod)
                                 ELSE format_type(a.atttypid, a.atttypmod) END,
                  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
                          AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false
                                                  ELSE i.indisprimary AND i.indimmediate END)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
           WHERE c.oid = ANY (%s::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
             AND a.attgenerated = ''
           ORDER BY c.oid, a.attnum""",
        ([t.oid for t in tables],),
    ):
        found[schema, table].append((name, type_, key))
    return dict(found)
