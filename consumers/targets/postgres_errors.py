"""What an error of the target means: wait, try again at once, look at the rows, or stop.

By SQLSTATE (PostgreSQL manual, appendix A). Passwords are never in these messages: libpq does not
repeat them, and the place is named without.
"""

from __future__ import annotations

import re
from enum import Enum

import psycopg

from streamer.errors import ConfigError, TargetUnavailable
from streamer.postgres.connection import connect_grant


class Reaction(Enum):
    AGAIN = "again"  # the same transaction may go through now (H23)
    LOOK_AGAIN = "look again"  # the tables are not as they were read
    SINGLY = "singly"  # two rows of one statement are one row to the target
    REFUSED = "refused"  # some row's data
    WAIT = "wait"


_AGAIN = {"40001", "40P01", "55P03"}
_LOOK_AGAIN = {"42P01", "42703", "3F000", "42P10", "0A000", "42804", "26000"}
_REFUSED_CLASSES = ("22", "23", "44", "P0")
_REFUSED = {"54000", "38000", "39000"}  # index row too large; a trigger's own errors
# Classes of what is the server's also where one of its functions meets it: connections, transactions, rights,
# resources, an operator at work.
_SERVERS_CLASSES = ("08", "25", "28", "40", "53", "57", "58", "XX")
_SERVERS = {"42501", "55P03", "55006"}  # a missing privilege; what others have locked or in use
# Where the server's source raises it: a policy that refuses a row shares its SQLSTATE with a missing
# privilege, and so may what a function raises on purpose. Its words are in the server's language.
_POLICY, _RAISE = "ExecWithCheckOptions", "exec_stmt_raise"  # libpq's source_function
_FUNCTION = re.compile(r"\bPL/\w+|\bSQL function\b")

_FIXES = {
    "28P01": "correct the password in the target's url",
    "28000": "let the role in: pg_hba.conf of the target",
    "3D000": "create the database, or correct the target's url",
    "23503": "it goes on when the rows that refer to it are gone; or let the role switch foreign keys off:"
    " GRANT SET ON PARAMETER session_replication_role TO it",
    "25006": "point the url at the primary; it goes on by itself when the server takes writes",
    "53100": "free disk space in the target; it goes on by itself",
    "53300": "raise max_connections in the target, or end other sessions; it goes on by itself",
    "42501": "grant the role what it lacks (`tailrace doctor` prints the SQL); it goes on by itself",
    "57P03": "it goes on by itself when the server is up",
}


# What the input functions of regclass, regproc, regtype, regnamespace and their kin say of a name that this
# database does not have, or does not take.
_NAMES = {"42P01", "42883", "42704", "42725", "42601", "42602", "3F000"}


def _of_a_value(error: psycopg.Error) -> bool:
    """Whether it is a name in a row's value that is missed, and not one of a statement: that has a position
    in its text, and what a trigger's function runs has the function as its context."""
    diag = error.diag
    return error.sqlstate in _NAMES and diag.statement_position is None and diag.context is None


def reaction_to(error: psycopg.Error) -> Reaction:
    state = error.sqlstate or ""
    if _of_a_value(error):
        return Reaction.REFUSED
    if state in _AGAIN:
        return Reaction.AGAIN
    if error.diag.source_function == _POLICY or _is_functions_own(error):
        return Reaction.REFUSED
    if state in _LOOK_AGAIN:
        return Reaction.LOOK_AGAIN
    if state == "21000":
        return Reaction.SINGLY
    if state in _REFUSED or state[:2] in _REFUSED_CLASSES:
        return Reaction.REFUSED
    return Reaction.WAIT


def function_of(error: psycopg.Error) -> str:
    """Which function that the statement has called raised it, and where in it; empty: none."""
    context = error.diag.context or ""
    lines = [line.strip() for line in context.splitlines()]
    named = [line for line in lines if _FUNCTION.search(line)]
    if named:
        return named[-1]
    return " ".join(lines[-1:]) if error.diag.internal_query else ""


def _is_functions_own(error: psycopg.Error) -> bool:
    """What would be the table's or the statement's, had it not come out of a function."""
    state = error.sqlstate or ""
    if not state or state[:2] in _SERVERS_CLASSES:
        return False
    if error.diag.source_function == _RAISE:
        return True
    return state not in _SERVERS and bool(function_of(error))


# A refused connection comes without its SQLSTATE; these are the server's (and libpq's) words for it.
_REFUSED_WORDS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'database "',
    'role "',
)


def not_let_in(error: psycopg.Error, place: str) -> ConfigError | None:
    """A connection that a person must mend: wrong user, password or database."""
    grant = connect_grant(error)
    if grant:
        return ConfigError(
            "the role may not connect to the database",
            where=place,
            fix=f"as the database's owner run {grant}",
        )
    text = " ".join(str(error).split())
    if error.sqlstate is not None or not any(words in text for words in _REFUSED_WORDS):
        return None
    return ConfigError(
        text.rpartition("FATAL: ")[2].strip(),
        where=place,
        fix="correct user, password and database of the target's url; `tailrace doctor` tries them",
    )


def unavailable(error: psycopg.Error | OSError, place: str) -> TargetUnavailable:
    state = getattr(error, "sqlstate", None)
    diag = getattr(error, "diag", None)
    text = (diag.message_primary if diag is not None else None) or str(error).strip() or type(error).__name__
    what = f"the target does not take writes: {' '.join(text.split())}" + (f" [{state}]" if state else "")
    return TargetUnavailable(
        what, where=place, fix=_FIXES.get(state or "", "it goes on by itself when the target is back")
    )
