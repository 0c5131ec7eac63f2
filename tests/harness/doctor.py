"""What the tests of the doctor share: a database with its roles, and what a report says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from streamer.doctor import Check, Level, Report

PASSWORD = "s3cret of the role @:/"


@dataclass
class Place:
    """A database, as superuser and as a role that may do nothing but log in."""

    admin: str
    role: str
    url: str

    def run(self, *statements: str) -> None:
        """As superuser."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def mend(self, checks: list[Check]) -> None:
        self.run(*(statement for check in checks for statement in check.sql))


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def place_with_role(admin: str, name: str) -> Iterator[Place]:
    with psycopg.connect(admin, autocommit=True) as connection:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create.format(sql.Identifier(name), sql.Literal(PASSWORD)))
    yield Place(admin, name, with_login(admin, name, PASSWORD))
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def failed(report: Report) -> list[Check]:
    return [c for c in report.checks if c.level is Level.FAIL]


def told(report: Report, check: str, level: Level = Level.FAIL) -> Check:
    found = [c for c in report.checks if c.check == check and c.level is level]
    assert found, f"no {level} of {check!r} in {[(c.check, c.level.value, c.what) for c in report.checks]}"
    return found[0]
