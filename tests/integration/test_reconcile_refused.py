"""A table that a server refuses beside others that it does not, and which runs the next one goes on with."""

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

Reconcile = Callable[..., tuple[int, dict[str, Any]]]

TABLES = [f"CREATE TABLE {name} AS SELECT n AS id FROM generate_series(1, 9) n" for name in "abc"]
KEYS = [f"ALTER TABLE {name} ADD PRIMARY KEY (id)" for name in "abc"]


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def write(folder: Path, source: str, target: str, job: str = "{flow: mirror}") -> Path:
    path = folder / "tailrace.yaml"
    path.write_text(f"""
name: acme
sources: {{shop: {{kind: postgres, url: "{source}", tables: {{"public.*": {{}}}}}}}}
targets: {{copy: {{kind: postgres, url: "{target}"}}}}
flows: {{mirror: {{from: shop.public.*, to: copy.public}}}}
reconcile: {{nightly: {job}}}
""")
    return path


@pytest.fixture
def reconciled(capsys: pytest.CaptureFixture[str]) -> Reconcile:
    def reconciled(path: Path, **wish: Any) -> tuple[int, dict[str, Any]]:
        """(exit code, report)."""
        code = reconcile(path, Wish(**{"names": ["nightly"], **wish}), as_json=True)
        report = orjson.loads(capsys.readouterr().out)
        jsonschema.validate(report, orjson.loads(SCHEMA.read_bytes()))
        return code, report

    return reconciled


def test_a_table_that_the_server_refuses_is_named_and_the_others_are_compared(
    database: str, modest_database: str, target_database: str, tmp_path: Path, reconciled: Reconcile
) -> None:
    role = psycopg.conninfo.conninfo_to_dict(modest_database)["user"]
    for url in (database, target_database):
        run(url, *TABLES, *KEYS)
    run(target_database, f"GRANT SELECT ON a, c TO {role}", "ALTER TABLE c ENABLE ROW LEVEL SECURITY")
    path = write(tmp_path, database, modest_database)
    code, report = reconciled(path)
    assert (code, report["verdict"], report["complete"]) == (2, "error", False)
    tables = {table["source"]: table for table in report["tables"]}
    verdicts = {name: (table["verdict"], table["source_rows"]) for name, table in tables.items()}
    assert verdicts == {"public.a": ("equal", 9), "public.b": ("error", 0), "public.c": ("error", 0)}
    assert "permission denied for table b" in tables["public.b"]["reason"]
    assert "a condition" not in tables["public.b"]["reason"]
    cure = f'ALTER ROLE "{role}" BYPASSRLS;'
    assert f"\n  -> as an administrator run {cure}" in tables["public.c"]["reason"]
    run(target_database, f"GRANT SELECT ON b TO {role}", cure)
    code, report = reconciled(path)
    assert (code, report["resumed"], report["verdict"]) == (0, False, "equal")


def test_only_a_run_that_was_killed_and_was_asked_the_same_is_gone_on_with(
    database: str, target_database: str, tmp_path: Path, reconciled: Reconcile
) -> None:
    for url in (database, target_database):
        run(url, *TABLES, *KEYS)
    path = write(tmp_path, database, target_database)
    with pytest.raises(ConfigError, match=r'for public\.a: .*column "z" does not exist') as refused:
        reconciled(path, where="z > 0")
    assert "a condition takes the source's names" in refused.value.fix
    for url in (database, target_database):
        run(url, *[f"ALTER TABLE {name} ADD z int DEFAULT 1" for name in "abc"])
    code, report = reconciled(path, where="z > 0")
    assert (code, report["resumed"]) == (0, False)

    def killed() -> None:
        """The last run has no end, as if its process had been killed just before it."""
        last = "SELECT run FROM reconcile_runs ORDER BY began_us DESC LIMIT 1"
        ended = "ended_us = NULL, verdict = NULL, report = NULL"
        with closing(sqlite3.connect(tmp_path / ".tailrace" / "control.db")) as line, line:
            line.execute(f"UPDATE reconcile_runs SET {ended} WHERE run = ({last})")

    names = []
    for job, resumed in (
        ("{flow: mirror}", False),
        ("{flow: mirror}", True),
        ("{flow: mirror, limits: {rate: 50000/s}}", False),
        ("{flow: mirror, limits: {rate: 50000/s}, repair: {mode: plan}}", False),
    ):
        path = write(tmp_path, database, target_database, job)
        code, report = reconciled(path)
        assert (code, report["resumed"]) == (0, resumed)
        names.append(report["run"])
        killed()
    assert names[0] == names[1]
    run(target_database, "ALTER TABLE a ALTER z TYPE bigint")  # another table: its parts are read anew
    run(database, "UPDATE a SET z = 1")
    code, report = reconciled(path)
    assert (code, report["resumed"], report["run"]) == (0, True, names[-1])


def test_each_of_two_jobs_of_a_flow_goes_on_where_it_was(
    database: str, target_database: str, tmp_path: Path, reconciled: Reconcile
) -> None:
    for url in (database, target_database):
        run(url, *TABLES, *KEYS)
    path = write(tmp_path, database, target_database, "{flow: mirror}, weekly: {flow: mirror}")
    both = {"names": ["nightly", "weekly"]}
    control = tmp_path / ".tailrace" / "control.db"
    reconciled(path, **both)
    with closing(sqlite3.connect(control)) as line, line:  # a run's end keeps its progress, as a kill does
        keep = "CREATE TRIGGER keep BEFORE DELETE ON reconcile_tables BEGIN SELECT RAISE(IGNORE); END"
        line.execute(keep)
    code, first = reconciled(path, **both)
    assert (code, len(first["tables"])) == (0, 6)
    with closing(sqlite3.connect(control)) as line, line:  # the second job has but one table behind it
        line.execute("DROP TRIGGER keep")
        line.execute(
            "UPDATE reconcile_runs SET ended_us = NULL, verdict = NULL WHERE run = ?", [first["run"]]
        )
        line.execute("DELETE FROM reconcile_tables WHERE flow LIKE '%weekly%' AND source_table <> 'public.a'")
    code, again = reconciled(path, **both)
    assert (code, again["run"], again["verdict"]) == (0, first["run"], "equal")
    resumed = {(table["job"], table["source"]) for table in again["tables"] if table["resumed"]}
    assert resumed == {*[("nightly", f"public.{name}") for name in "abc"], ("weekly", "public.a")}


@pytest.mark.thorough
def test_the_json_of_a_query_with_groups_and_a_refused_repair_is_as_documented(
    database: str, target_database: str, tmp_path: Path, reconciled: Reconcile
) -> None:
    run(database, *TABLES)
    run(target_database, TABLES[0], "DELETE FROM a WHERE id = 3")
    path = tmp_path / "tailrace.yaml"
    path.write_text(f"""
name: acme
sources:
  shop: {{kind: postgres, url: "{database}", tables: {{"public.*": {{}}}}}}
  ids: {{kind: query, on: shop, key: [id], sql: SELECT id FROM a, dirty: {{public.a: id}}}}
targets: {{copy: {{kind: postgres, url: "{target_database}"}}}}
reconcile: {{nightly: {{flow: {{from: ids, to: copy.public.a}}, group_by: [id], repair: {{mode: auto}}}}}}
""")
    code, report = reconciled(path, values=True)
    (table,) = report["tables"]
    assert (code, table["missing"], table["repair"]["left"]) == (1, 1, 1)
    assert "nothing publishes its rows" in table["repair"]["refused"]
    assert [cell["group"] for cell in table["groups"]["cells"] if cell["drift"]] == [["3"]]
