"""Whose a Postgres target is, by its own `_tailrace.identity`: what apply would refuse, told before (H30)."""

from __future__ import annotations

import psycopg

from streamer.doctor.bound import is_own
from streamer.doctor.check import Findings
from streamer.doctor.postgres import one, rows
from streamer.postgres.connection import Connection

IDENTITY = "_tailrace.identity"
FORMAT = 1


async def check_identity(
    findings: Findings, connection: Connection, group: str, bound_id: str | None
) -> None:
    """`group`: the consumer group that will apply to it, `bound_id`: the store that it belongs to. A target
    that was never applied to is anybody's, but for a group that has one."""
    found = await rows(
        connection,
        """SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = '_tailrace' AND c.relname = 'identity'""",
    )
    if found and not found[0][0]:  # what the role lacks for it is said of the schema
        return
    wanted = "format, consumer_group, system_identifier, database_oid::bigint, id::text"
    identity = await rows(connection, f"SELECT {wanted} FROM {IDENTITY}") if found else []
    if not identity:
        is_own(findings, group, bound_id, None)
        return
    format_, bound, system, database, id_ = identity[0]
    if format_ > FORMAT:
        what = f"the schema _tailrace has format {format_}, this program knows {FORMAT}"
        findings.fail("identity", what, "run the version of Tailrace that made it, or a newer one")
        return
    before = len(findings.checks)
    here = await _system(connection)
    (oid,) = await one(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    if database != oid or (None not in (system, here) and system != here):
        what = (
            f"this is a copy of another target: its _tailrace was made in another database (system {system}, "
            f"database {database}; here {here}, {oid}), which may still be applied to"
        )
        fix = (
            "when the other one is no longer used, make this one its own (or DROP SCHEMA _tailrace CASCADE;)"
        )
        own = (
            f"UPDATE {IDENTITY} SET id = gen_random_uuid(), "
            f"system_identifier = {'NULL' if here is None else here}, database_oid = {oid};"
        )
        findings.fail("identity", what, fix, [own])
    if bound != group:
        literal = group.replace("'", "''")
        what = f"this target belongs to the consumer group {bound!r}, not to {group!r}"
        fix = "give the target the name that it had in the config (and `name:` too), or hand it over"
        findings.fail("identity", what, fix, [f"UPDATE {IDENTITY} SET consumer_group = '{literal}';"])
    if len(findings.checks) == before and is_own(findings, group, bound_id, id_):
        findings.ok("identity", f"applied to by the consumer group {group}")


async def _system(connection: Connection) -> int | None:
    """The system identifier; None where the role may not read it."""
    try:
        async with connection.transaction():
            row = await one(connection, "SELECT system_identifier FROM pg_control_system()")
    except psycopg.errors.InsufficientPrivilege:
        return None
    return int(row[0])
