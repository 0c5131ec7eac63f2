"""Sessions of the server that a command of ours waits for, and those that wait for ours.

Owns the queries on pg_locks and pg_stat_activity, and the words that name a session. Ends nobody and takes
no lock that waits: the answers are of use where nothing else moves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from streamer.postgres.catalog import Table
from streamer.postgres.connection import Connection

QUERY_LIMIT = 120  # characters of a query: what it does, and to which table
NAMED_LIMIT = 3  # sessions in a sentence

READERS = ("AccessExclusiveLock",)  # what keeps even readers of a table out
DEFINERS = (  # what keeps a change of its definition out, and its place in a publication
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)

# Tokens of the manual's "Lexical Structure", the last of which may be cut. Whether a backslash keeps a plain
# string open is the session's setting (standard_conforming_strings), and a comment may be in a comment: then
# all that follows is taken for part of it.
_TOKENS = re.compile(
    r"""(?P<kept>"(?:[^"]|"")*"?)  # a quoted name
      | (?P<comment>--[^\n]*|/\*(?:(?!/\*|\*/).)*(?:\*/|/\*.*|\Z))
      | (?P<text>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z)
               | '(?:[^'\\]|''|\\(?!'))*(?:'|\\'.*|\Z)
               | (?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z))
      | (?P<number>(?<![\w$])(?:0[xXoObB][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?))""",
    re.DOTALL | re.VERBOSE,
)
_HIDDEN = "<insufficient privilege>"


@dataclass(frozen=True, slots=True)
class Holder:
    """A session as the server shows it to us. `pid` 0: a prepared transaction, which no process has."""

    pid: int
    user: str
    since: str  # its transaction, UTC; '' when it is not shown
    query: str

    @property
    def text(self) -> str:
        if not self.pid:
            return "a prepared transaction (pg_prepared_xacts; COMMIT PREPARED or ROLLBACK PREPARED ends it)"
        known = [f"user {self.user}"] if self.user else []
        known += [f"since {self.since}"] if self.since else []
        known += [f"query: {self.query}"] if self.query else []
        return f"pid {self.pid}" + (f" ({', '.join(known)})" if known else "")


def named(holders: Iterable[Holder]) -> str:
    """'pid 7 (...), pid 8 (...) and 2 more'."""
    texts = [holder.text for holder in holders]
    more = len(texts) - NAMED_LIMIT
    return ", ".join(texts[:NAMED_LIMIT]) + (f" and {more} more" if more > 0 else "")


async def blocking(connection: Connection, pid: int) -> list[Holder]:
    """Those whose locks, or whose end, the session `pid` waits for."""
    cursor = await connection.execute("SELECT pg_blocking_pids(%s)", (pid,))
    row = await cursor.fetchone()
    assert row is not None
    return await _shown(connection, row[0])


async def waiting_for(connection: Connection, pid: int) -> list[Holder]:
    """Those that wait for a lock of the session `pid`, in any database of the server."""
    cursor = await connection.execute(
        """SELECT coalesce(array_agg(DISTINCT w.pid), '{}') FROM pg_locks w
           WHERE NOT w.granted AND %s = ANY (pg_blocking_pids(w.pid))""",
        (pid,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return await _shown(connection, row[0])


async def holding(connection: Connection, tables: Iterable[Table], modes: Iterable[str]) -> list[Holder]:
    """Those that have, or wait for, a lock of these modes on one of the tables or a partition of it."""
    cursor = await connection.execute(
        """WITH RECURSIVE tree (oid) AS (
             SELECT unnest(%s::bigint[]::oid[])
             UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
           SELECT coalesce(array_agg(DISTINCT coalesce(l.pid, 0)), '{}')
           FROM pg_locks l JOIN tree ON tree.oid = l.relation
           WHERE l.locktype = 'relation' AND l.mode = ANY (%s)
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND l.pid IS DISTINCT FROM pg_backend_pid()""",
        ([table.oid for table in tables], list(modes)),
    )
    row = await cursor.fetchone()
    assert row is not None
    return await _shown(connection, row[0])


async def _shown(connection: Connection, pids: list[int]) -> list[Holder]:
    """The longest first; another role's query and times are shown to members of pg_read_all_stats only."""
    if not pids:
        return []
    cursor = await connection.execute(
        """SELECT p.pid, coalesce(a.usename::text, ''),
                  coalesce(to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ''),
                  coalesce(a.query, '')
           FROM (SELECT DISTINCT unnest(%s::int[]) AS pid) p LEFT JOIN pg_stat_activity a USING (pid)
           ORDER BY a.xact_start NULLS LAST, p.pid""",
        (list(pids),),
    )
    return [Holder(pid, user, since, shortened(query)) for pid, user, since, query in await cursor.fetchall()]


def shortened(query: str) -> str:
    """One line without the application's values."""
    if query == _HIDDEN:
        return ""
    text = " ".join(_TOKENS.sub(_hidden, query).split())
    return text if len(text) <= QUERY_LIMIT else f"{text[:QUERY_LIMIT]}..."


def _hidden(token: re.Match[str]) -> str:
    if token["kept"] is not None:
        return token["kept"]
    if token["comment"] is not None:
        return " "
    return "'...'" if token["text"] is not None else "..."
