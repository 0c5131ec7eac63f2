"""What a pgvector target needs beside a Postgres target: the extension, the functions, columns to embed."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from streamer.caller import Caller, Raised, Running
from streamer.config import Flow, VectorTarget
from streamer.config.key_template import split_template
from streamer.doctor.check import Findings
from streamer.doctor.postgres import Server, one, rows
from streamer.doctor.source import SourceFacts
from streamer.embedding import PROBE, vectors_of
from streamer.errors import BadRecordError, ConfigError
from streamer.functions import load_function
from streamer.postgres.connection import Connection

_CREATE = "CREATE EXTENSION vector;"

TableColumns = list[tuple[str, str, bool]]  # name, type, in the key


def chunk_columns(flow: Flow, columns: TableColumns) -> TableColumns:
    """What a source table's rows become: metadata and chunks."""
    assert flow.text is not None
    _, of_text = split_template(flow.text)
    kept = [c for c in columns if c[2] or c[0] not in of_text or c[0] in flow.columns]
    return [
        *kept,
        ("_tailrace_chunk", "integer", True),
        ("text", "text", False),
        ("_tailrace_hash", "uuid", False),
        ("embedding", f"vector({flow.dimensions})", False),
        ("_tailrace_source", "json", False),
    ]


async def check_vectors(
    findings: Findings,
    connection: Connection,
    server: Server,
    target: VectorTarget,
    flows: list[Flow],
    sources: Mapping[str, SourceFacts],
) -> None:
    await _extension(findings, connection, server)
    for flow in flows:
        await _function(findings, target, flow)
        facts = sources.get(flow.source)
        for table in facts.tables if facts is not None else ():
            if facts is not None and flow.takes(table.schema, table.name):
                _template(findings, flow, table.qualified, facts.columns.get((table.schema, table.name), []))


async def _extension(findings: Findings, connection: Connection, server: Server) -> None:
    query = """SELECT installed_version, default_version,
        (SELECT v.superuser AND NOT v.trusted FROM pg_available_extension_versions v
         WHERE v.name = a.name AND v.version = a.default_version)
        FROM pg_available_extensions a WHERE a.name = 'vector'"""
    found = await rows(connection, query)
    if not found:
        findings.fail(
            "extension", "the server has no extension vector", "install pgvector on the server", [_CREATE]
        )
        return
    installed, version, superuser = found[0]
    if installed is not None:
        findings.ok("extension", f"pgvector {installed}")
        return
    right = "SELECT has_database_privilege(current_database(), 'CREATE'), rolsuper FROM pg_roles"
    may_create, is_super = await one(connection, f"{right} WHERE rolname = current_user")
    if is_super or (may_create and not superuser):
        findings.ok("extension", f"pgvector {version} can be made")
    else:
        what = f"the extension vector is not there, and {server.role} may not make it"
        findings.fail("extension", what, "make it as a superuser", [_CREATE])


async def _function(findings: Findings, target: VectorTarget, flow: Flow) -> None:
    assert flow.embed is not None
    assert flow.dimensions is not None
    where = f"flow {flow.name!r}, embed: {flow.embed}"
    try:
        vector = await _probed(flow, target, where)
    except ConfigError as error:
        findings.error("embed", error)
    except Running:
        what = f"{where}: for one word it does not answer within {target.embedding.timeout_s:g} s"
        findings.fail("embed", what, "mend the function, or raise the target's embedding.timeout")
    except Raised as raised:
        what = f"{where}: it fails for one word: {type(raised.cause).__name__}: {raised.cause}"
        findings.fail("embed", what, "mend the function; it is called as embed([...]) with a list of texts")
    else:
        if isinstance(vector, BadRecordError):
            findings.fail("embed", f"{where}: {vector.what}", "mend the function")
        else:
            findings.ok("embed", f"{flow.embed} gives vectors of {flow.dimensions} dimensions")


async def _probed(flow: Flow, target: VectorTarget, where: str) -> str | BadRecordError:
    """Raises Running, Raised, ConfigError."""
    assert flow.embed is not None
    dimensions = flow.dimensions
    assert dimensions is not None
    caller = Caller(load_function(flow.embed, target.modules, where=where), f"embed: {flow.embed}")

    def vectors(answer: object) -> list[str | BadRecordError]:
        return vectors_of(answer, [PROBE], dimensions, where=where)

    try:
        (vector,) = await caller.call([PROBE], vectors, timeout_s=target.embedding.timeout_s)
    except Raised as raised:
        if isinstance(raised.cause, ConfigError):
            raise raised.cause from None
        raise
    finally:
        caller.close()
    return vector


def _template(findings: Findings, flow: Flow, table: str, columns: TableColumns) -> None:
    assert flow.text is not None
    known = [name for name, _, _ in columns]
    for name in split_template(flow.text)[1]:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}"
            findings.fail("text", f"flows.{flow.name}.text names {name!r}, which {table} does not have", fix)
    if not any(key for _, _, key in columns):
        what = f"{table} has no key, by which chunks are found"
        findings.fail("text", what, f"give it a primary key, or leave it out of flows.{flow.name}.from")
