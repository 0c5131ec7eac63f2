"""The SQL of docs/operations.md makes two roles with which nothing is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from streamer.config import parse
from streamer.doctor import Level, examine

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
PASSWORD = "choose one"


def statements(kind: str, names: dict[str, str]) -> list[str]:
    """The statements of the block that is marked `kind`, with this test's names."""
    block = re.search(rf"^```sql {kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert block is not None, kind
    text = re.sub(r"\b(tailrace|tailrace_shop|warehouse)\b", lambda found: names[found[0]], block[1])
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@contextmanager
def role_made(admin: str, role: str, block: list[str]) -> Iterator[str]:
    """URL of the database for the role that the block makes."""
    parts = urlsplit(admin)
    with psycopg.connect(admin, autocommit=True) as connection:
        for statement in block:
            connection.execute(statement.encode())
        host = parts.netloc.rpartition("@")[2]
        yield urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD.replace(' ', '%20')}@{host}"))
        connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def test_the_roles_of_the_page_lack_nothing(
    database: str, target_database: str, kafka: str, kafka_name: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (id int PRIMARY KEY, name text)")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, total numeric)")
    names = {
        "tailrace": f"{kafka_name}_role",
        "tailrace_shop": f"{kafka_name}_shop",
        "warehouse": urlsplit(target_database).path[1:],
    }
    with ExitStack() as stack:
        source = stack.enter_context(role_made(database, names["tailrace"], statements("source", names)))
        target_names = {**names, "tailrace": f"{kafka_name}_writer"}
        target = stack.enter_context(
            role_made(target_database, target_names["tailrace"], statements("target", target_names))
        )
        text = f"""\
name: {kafka_name}
kafka: {{brokers: "{kafka}"}}
sources:
  shop:
    kind: postgres
    url: "{source}"
    tables: {{"public.*": {{}}}}
    publication: {{name: {names["tailrace_shop"]}, manage: false}}
targets: {{warehouse: {{kind: postgres, url: "{target}"}}}}
flows: {{mirror: {{from: "shop.public.*", to: warehouse.public}}}}
"""
        report = await examine(parse(text, environ={}))
    assert [c for c in report.checks if c.level in (Level.FAIL, Level.WARN)] == []
