"""The fast path is chosen only when both servers prove that they hash alike, and says why it is not."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.fast import (
    COLLATION_FACTS,
    OLDEST_MAJOR,
    SERVER_FACTS,
    Collation,
    Pair,
    Server,
    why_not,
)
from consumers.reconcile.forms import Held, forms
from streamer.postgres.connection import SESSION_SETTINGS

PLAIN = Collation("en_US.UTF-8", "2.36", True)
SERVER = Server(18, "UTF8", 42, {"name": PLAIN})


def pair(source: Held, target: Held | None = None) -> Pair:
    one, other = forms(source, target or source)
    return Pair("name", SqlColumn("name", source, one), SqlColumn("name", target or source, other), "name")


TEXT = pair(Held("text", "text"))
NUMBER = pair(Held("number", "bigint"))


def test_equal_servers_and_types_are_hashed_by_the_server() -> None:
    assert why_not(SERVER, SERVER, [TEXT]) is None
    bare = replace(SERVER, collations={})
    assert (
        why_not(bare, bare, [NUMBER, pair(Held("numeric", "numeric(12,2)"), Held("numeric", "numeric"))])
        is None
    )
    assert why_not(SERVER, SERVER, [pair(Held("text", "character varying(9)"), Held("text", "text"))]) is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (replace(SERVER, major=17), "PostgreSQL 18 and 17"),
        (replace(SERVER, encoding="LATIN1"), "UTF8 and LATIN1"),
        (replace(SERVER, probe=43), "hash the same row differently"),
        (replace(SERVER, collations={"name": replace(PLAIN, version="2.40")}), "en_US.UTF-8 2.40"),
        (replace(SERVER, collations={"name": replace(PLAIN, version=None)}), "without a version"),
        (replace(SERVER, collations={"name": replace(PLAIN, deterministic=False)}), "nondeterministic"),
        (replace(SERVER, collations={}), "on one side only"),
    ],
)
def test_servers_that_differ_are_not(target: Server, reason: str) -> None:
    assert reason in (why_not(SERVER, target, [TEXT]) or "")
    assert reason in (why_not(target, SERVER, [TEXT]) or "") or "18" in reason or "UTF8" in reason


def test_old_servers_are_not() -> None:
    old = replace(SERVER, major=OLDEST_MAJOR - 1)
    assert f"PostgreSQL {OLDEST_MAJOR - 1}" in (why_not(old, old, [TEXT]) or "")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Held("number", "integer"), Held("number", "bigint")),
        (Held("float", "real"), Held("float", "double precision")),
        (Held("numeric", "numeric(10,2)"), Held("numeric", "numeric(12,4)")),
        (Held("text", "character(5)"), Held("text", "character(8)")),
        (Held("json", "json"), Held("json", "jsonb")),
        (Held("text", "uuid"), Held("text", "text")),
        (Held("float", "real"), Held("text", "text")),
    ],
)
def test_types_that_differ_are_not(source: Held, target: Held) -> None:
    bare = replace(SERVER, collations={})
    reason = why_not(bare, bare, [pair(source, target)]) or ""
    assert source.type in reason
    assert target.type in reason


def facts(url: str, table: str) -> Server:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        cursor = psycopg.RawCursor(connection)
        row = cursor.execute(SERVER_FACTS).fetchone()
        assert row is not None
        found = cursor.execute(COLLATION_FACTS, (table,)).fetchall()
        return Server(*row, {name: Collation(*rest) for name, *rest in found})


def test_two_servers_prove_it(database: str, target_database: str) -> None:
    for url in (database, target_database):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('CREATE TABLE t (id bigint, name text, code text COLLATE "C", "n o" numeric)')
    source, target = facts(database, "t"), facts(target_database, "t")
    assert set(source.collations) == {"name", "code"}
    assert source.collations["code"] == Collation("C", None, True)
    assert source == target
    assert why_not(source, target, [TEXT, NUMBER]) is None
