"""What a run is asked for: conditions and columns. Without Kafka, as what is equal needs no fence."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import psycopg
import pytest

from consumers.commands.reconcile import Wish, reconcile
from streamer.errors import ConfigError
from tests.harness.reconcile import SCHEMA

ROWS = "(1, 'a', 1.50, 'x'), (2, 'b', 2, NULL), (3, NULL, NULL, '')"
SOURCE = (
    'CREATE TABLE item (id int PRIMARY KEY, "Full Name" text, price numeric, note text)',
    f"INSERT INTO item VALUES {ROWS}",
)
COLUMNS = (
    '{"Full Name": title, tenant: {value: acme}, price: {to: amount, cast: numeric}, id: id, note: note}'
)


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Asked:
    def asked(source: str, target: str, flow: str, **wish: Any) -> Any:
        """The report of a run."""
        path = tmp_path / "tailrace.yaml"
        path.write_text(f"""
name: acme
sources: {{shop: {{kind: postgres, url: "{source}", tables: {{"public.*": {{}}}}}}}}
targets: {{copy: {target}}}
flows: {{given: {{from: shop.public.item, to: copy.own.item{flow}}}}}
""")
        path.chmod(0o600)
        code = reconcile(path, Wish(["given"], **wish), as_json=True)
        report = orjson.loads(capsys.readouterr().out)
        jsonschema.validate(report, orjson.loads(SCHEMA.read_bytes()))
        assert report["exit_code"] == code
        return report

    return asked


def postgres(url: str) -> str:
    columns = "id int PRIMARY KEY, title text, amount numeric, note text, tenant text DEFAULT 'acme'"
    run(url, "CREATE SCHEMA own", f"CREATE TABLE own.item ({columns})", f"INSERT INTO own.item VALUES {ROWS}")
    return f'{{kind: postgres, url: "{url}"}}'


def sqlite(file: Path) -> str:
    with closing(sqlite3.connect(file)) as line, line:
        line.execute(
            "CREATE TABLE item (id INTEGER PRIMARY KEY, title TEXT, amount TEXT, note TEXT,"
            " tenant TEXT DEFAULT 'acme')"
        )
        line.execute(f"INSERT INTO item (id, title, amount, note) VALUES {ROWS}")
        line.execute("UPDATE item SET amount = '1.50' WHERE id = 1")
    return f'{{kind: sql, url: "sqlite:///{file}"}}'


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
def test_a_condition_names_what_is_not_compared(
    store: str, database: str, target_database: str, tmp_path: Path, asked: Asked
) -> None:
    run(database, *SOURCE)
    target = postgres(target_database) if store == "postgres" else sqlite(tmp_path / "copy.db")
    columns = COLUMNS if store == "postgres" else COLUMNS.replace("cast: numeric", "cast: text")
    flow = f", columns: {columns}"
    for where, rows in {
        "\"Full Name\" = 'a' -- the first": 1,
        '"Full Name" IS NULL OR note IS NULL': 2,
        "tenant = 'acme' AND price IS NOT NULL": 2,
        "tenant <> 'acme'": 0,
    }.items():
        for more in ({"columns": "note"}, {}):
            report = asked(database, target, flow, where=where, **more)
            (table,) = report["tables"]
            assert (report["verdict"], table["source_rows"], table["target_rows"]) == ("equal", rows, rows)
            assert ("Full Name" in table["columns"]) == (not more)
    report = asked(database, target, f"{flow}, write: insert_only", where="\"Full Name\" = 'a'")
    assert [(t["columns"], t["source_rows"]) for t in report["tables"]] == [(["id"], 1)]
    with pytest.raises(ConfigError, match='column "missing" does not exist'):
        asked(database, target, flow, columns="note", where="missing = 1")
