"""The checks of a sql target: what apply will need of its file, without making or changing anything."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from streamer.changes.marked import holds_marked
from streamer.config import ColumnRule, Config, Flow, SqlTarget, built_flows, sqlite_path, unbuilt_target
from streamer.doctor.bound import is_own
from streamer.doctor.check import Findings
from streamer.doctor.postgres import listed
from streamer.doctor.source import SourceFacts, taken_tables

_WHERE = re.compile(r"\)\s*where\b", re.IGNORECASE)  # in the statement of a partial index
BUSY_TIMEOUT_S = 3.0  # for the transaction of a program that writes


class Wanted(NamedTuple):
    """A table that a flow will write: columns of the key as they are there; in lower case all that are sent,
    and constants; the column where a delete writes its time; whether every change is a row (a history)."""

    flow: str
    key: list[str]
    sent: set[str]
    constants: set[str]
    soft: str | None
    history: bool


async def check_sql(
    findings: Findings,
    config: Config,
    target: SqlTarget,
    sources: Mapping[str, SourceFacts],
    bound: str | None = None,
) -> None:
    """All that can be tried of one target; tables of sources that did not answer are left out. `bound`: the
    id of the store that its group belongs to."""
    if unbuilt_target(target):
        return  # said of the config
    flows, stopped = built_flows(config, target.name)
    for reasons in stopped.values():
        for unbuilt in reasons:
            findings.warn("flows", f"{unbuilt.path}: {unbuilt.what}; the flow does not run", unbuilt.fix)
    if not flows:
        findings.warn("flows", "no flow that can run leads here", f"add one with `to: {target.name}`")
    wanted = _wanted(findings, flows, sources)
    path = sqlite_path(target.url)
    group = f"{config.name}.{target.name}"
    if not path.exists():
        _check_folder(findings, path)
        is_own(findings, group, bound, None)
        return
    there = path.stat()
    findings.store = "file", there.st_dev, there.st_ino
    await asyncio.to_thread(_check_file, findings, path, group, bound, wanted)


def _wanted(findings: Findings, flows: list[Flow], sources: Mapping[str, SourceFacts]) -> dict[str, Wanted]:
    """The target's tables, as they are named there."""
    found: dict[str, Wanted] = {}
    origins: dict[str, str] = {}
    for flow, facts, taken in taken_tables(findings, flows, sources):
        for table in taken:
            name = flow.place(table.schema, table.name)[1].lower()
            origin = f"{flow.source}.{table.qualified}"
            other = origins.setdefault(name, origin)
            if other != origin:
                what = f"{other} and {origin} would both be written to {name}: there are no schemas here"
                fix = f"give one of them a flow and a name of its own: `to: {flow.target}.main.NAME`"
                findings.fail("flows", what, fix)
                continue
            columns = facts.columns.get((table.schema, table.name), [])
            sent = {_renamed(flow, column).lower() for column, _, _ in columns}
            key = [_renamed(flow, column) for column, _, in_key in columns if in_key]
            soft = flow.delete[len("soft(") : -1].strip() if flow.delete.startswith("soft(") else None
            found[name] = Wanted(flow.name, key, sent, _constants(flow), soft, flow.write == "append")
    return found


def _constants(flow: Flow) -> set[str]:
    return {
        name.lower()
        for name, rule in flow.columns.items()
        if isinstance(rule, ColumnRule) and "value" in rule.model_fields_set
    }


def _renamed(flow: Flow, column: str) -> str:
    rule = flow.columns.get(column)
    if isinstance(rule, ColumnRule):
        return rule.to or column
    return rule or column


def _check_folder(findings: Findings, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        findings.fail("file", f"there is no folder {folder} for {path.name}", f"mkdir -p {folder}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        findings.fail("file", f"this user may not write the folder {folder}", "let it, or name another file")
    else:
        findings.ok("file", f"{path} will be made")


def _check_file(
    findings: Findings,
    path: Path,
    group: str,
    bound: str | None,
    wanted: Mapping[str, Wanted],
) -> None:
    if path.is_dir():
        findings.fail("file", f"{path} is a folder", f"name a file: {path / 'copy.db'}")
        return
    for needed in (path, path.parent):  # the write-ahead log lies beside the file
        if not os.access(needed, os.W_OK):
            findings.fail("file", f"this user may not write {needed}", "let it, or name another file")
            return
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                _check_identity(findings, connection, group, bound)
                for name, table in sorted(wanted.items()):
                    _check_key(findings, connection, name, table)
                    if table.soft is not None and not table.history:
                        _check_live(findings, connection, name, table, table.soft)
            finally:
                connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            what = f"{path} is locked by another program for longer than {BUSY_TIMEOUT_S:.0f} s"
            findings.fail("file", what, "end its transaction")
        else:
            findings.fail("file", f"{path}: {error}", "restore it from a backup, or name another file")
        return
    findings.ok("file", f"{path} can be written (SQLite {sqlite3.sqlite_version})")


def _check_identity(
    findings: Findings, connection: sqlite3.Connection, group: str, bound: str | None
) -> None:
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_tailrace_identity'").fetchone()
    row = there and connection.execute("SELECT consumer_group, id FROM _tailrace_identity").fetchone()
    if row and row[0] != group:
        what = f"the target belongs to the consumer group {row[0]}, not to {group}"
        sql = [f"UPDATE _tailrace_identity SET consumer_group = '{group}';"]
        findings.fail("identity", what, "give the target the name it had, or hand it over", sql)
    elif is_own(findings, group, bound, row[1] if row else None) and row:
        findings.ok("identity", f"it belongs to {group}")


def _check_live(
    findings: Findings, connection: sqlite3.Connection, name: str, table: Wanted, soft: str
) -> None:
    """Unique indexes on columns in which a deleted row stands in another one's way."""
    key = {column.lower() for column in table.key}
    for _, index, is_unique, _, partial in connection.execute(
        f"PRAGMA index_list({_quoted(name)})"
    ).fetchall():
        if not is_unique:
            continue
        parts = connection.execute(f"PRAGMA index_info({_quoted(str(index))})").fetchall()
        columns = {str(part[2]).lower() for part in parts}
        source = "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?"
        (made,) = connection.execute(source, (index,)).fetchone()
        predicate = _WHERE.split(made, maxsplit=1)[-1] if partial else ""
        if not holds_marked(columns, table.sent, key, predicate, soft):
            continue
        live = f"{_quoted(soft)} IS NULL"
        what = f"{name}: its unique index {index} holds rows that are deleted, which keep their values"
        if made:
            more = "AND" if partial else "WHERE"
            sql = [f"DROP INDEX {_quoted(str(index))};", f"{made} {more} {live};"]
            findings.fail("constraints", what, "make it one of rows that are there", sql)
        else:
            fix = (
                f"make the table without this UNIQUE, and an index on it WHERE {live}; or write delete: apply"
            )
            findings.fail("constraints", what, fix)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _check_key(findings: Findings, connection: sqlite3.Connection, name: str, table: Wanted) -> None:
    """A table that is there already needs a unique index on the key, which a history may not have."""
    columns = connection.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()
    if not columns or not table.key:
        return
    unique = [{str(row[1]).lower() for row in columns if row[5]}]
    for _, index, is_unique, _, partial in connection.execute(
        f"PRAGMA index_list({_quoted(name)})"
    ).fetchall():
        if is_unique and not partial:
            found = connection.execute(f"PRAGMA index_info({_quoted(str(index))})").fetchall()
            unique.append({str(row[2]).lower() for row in found})
    key = {column.lower() for column in table.key}
    if table.history:
        if any(index and index <= key | table.constants for index in unique):
            what = f"{name} takes one row a key, and the flow {table.flow} keeps every change as a row"
            findings.fail("constraints", what, "send the history to a table of its own")
        return
    if any(key <= index <= key | table.constants for index in unique):
        findings.ok("tables", f"{name} is there already, with its key")
        return
    what = f"{name} has no unique key on {listed(sorted(key))}, which the flow {table.flow} needs"
    made = ", ".join(_quoted(column) for column in table.key)
    sql = [f"CREATE UNIQUE INDEX {_quoted(f'{name}_key')} ON {_quoted(name)} ({made});"]
    findings.fail("constraints", what, "add it", sql)
