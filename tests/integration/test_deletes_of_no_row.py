"""A delete of a key that the target's types do not hold is of no row: passed over, and no dead letter.

A repair by another flow of the topic deletes what only that flow's target had.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.targets.base import RowsRefused
from tests.harness import sql_file
from tests.harness.given import given
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import proved, reconcile

WORDS = {"code": "text", "v": "text"}
ROWS = "SELECT code, v FROM own.words ORDER BY 1"
HELD = 40  # more than a handful: they are told apart by halves


def word(code: str) -> dict[str, str]:
    return {"code": code, "v": "x"}


async def test_it_is_passed_over_beside_what_is_deleted_and_what_is_refused(target_database: str) -> None:
    """An error of a trigger that a delete fires is no fault of its key; a row of such a key is refused."""
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.words (code int PRIMARY KEY, v text)",
        "CREATE FUNCTION own.odd() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF old.code = 7 THEN RAISE SQLSTATE '22012'; END IF; RETURN old; END $$",
        "CREATE TRIGGER odd BEFORE DELETE ON own.words FOR EACH ROW EXECUTE FUNCTION own.odd()",
        "ALTER TABLE own.words ENABLE ALWAYS TRIGGER odd",
    )
    async with given(target_database, {"columns": {"code": {"to": "code", "cast": "integer"}}}) as at:
        table = at.log.table("words", WORDS, key=("code",))
        for number in range(HELD):
            table.create(word(str(number)))
        await at.apply()
        for number in range(1, HELD):
            if number != 7:
                table.delete(word(str(number)))
        for code in ("one", "", "1e3", "9" * 30):
            table.delete(word(code))
        outcome = await at.apply()
        assert sum(outcome.applied.values()) == HELD + 2
        assert await at.rows(ROWS) == [(0, "x"), (7, "x")]
        assert await at.rows("SELECT count(*) FROM _tailrace.parked") == [(0,)]
        table.delete(word("two"))
        table.delete(word("7"))
        table.create(word("three"))
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        assert {(row.write.row["code"], row.code) for row in caught.value.rows} == {
            ("7", "22012"),
            ("three", "22P02"),
        }


async def test_it_is_passed_over_in_sqlite(file: Path) -> None:
    flow = {"from": "shop.public.words", "columns": {"code": {"to": "code", "cast": "integer"}}}
    async with sql_file.lite(file, flow) as at:
        table = at.log.table("words", WORDS, key=("code",))
        table.create(word("1"))
        table.create(word("2"))
        await at.apply()
        table.delete(word("1"))
        table.delete(word("one"))
        table.delete(word("9" * 30))
        assert (await at.apply()).applied == {"flow0": 3}
        assert at.rows("SELECT code FROM words") == [(2,)]
        table.delete(word("two"))
        table.create(word("three"))
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        assert [row.write.row["code"] for row in caught.value.rows] == ["three"]


@pytest.mark.thorough
async def test_a_repair_parks_nothing_in_another_flow(pipeline: Pipeline) -> None:
    source = f"{pipeline.source}.public.words"
    pipeline.config["flows"] = {
        "wide": {"from": source, "to": "copy.wide"},
        "narrow": {
            "from": source,
            "to": "copy.narrow.words",
            "columns": {"code": {"to": "code", "cast": "integer"}},
        },
    }
    pipeline.write_config()
    await execute(
        pipeline.source_url,
        "CREATE TABLE words (code text PRIMARY KEY, v text)",
        "INSERT INTO words SELECT n::text, 'x' FROM generate_series(1, 20) n",
    )
    pipeline.start("capture")
    pipeline.start("apply")
    await proved(pipeline)
    await execute(
        pipeline.target_url,
        "INSERT INTO wide.words (code, v) VALUES ('abc', 'mine')",
        "DELETE FROM narrow.words WHERE code = 3",
    )
    code, report = await reconcile(pipeline, "wide", "--repair", "--delete-extra")
    assert (code, report["verdict"]) == (4, "repaired"), report
    code, report = await reconcile(pipeline, "narrow", "--repair", "--delete-extra", "--wait", "10s")
    assert (code, report["verdict"]) == (4, "repaired"), report
    await proved(pipeline)
    assert await pipeline.target_value("SELECT count(*) FROM _tailrace.parked") == 0
