"""A flow into a vector target: each row beside its chunks; what differs is named, and an event heals it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from consumers.reconcile.chunks import ADDED
from consumers.reconcile.compare import compare
from consumers.reconcile.groups import Grouping
from consumers.reconcile.origins.base import Refused
from consumers.reconcile.origins.postgres import PostgresOrigin
from consumers.reconcile.origins.query import QueryOrigin
from consumers.reconcile.sides.base import Part, buckets
from consumers.reconcile.stores.vectors import VectorStore
from consumers.reconcile.tables import Sides, make_sides
from consumers.testing import LogTable
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import PostgresSource, QuerySource
from streamer.config.base import NAME_KEY
from tests.harness import kinds
from tests.harness.given import execute
from tests.harness.pipeline import Pipeline
from tests.harness.reconcile import proved, reconcile, samples
from tests.harness.recorder import Recorder
from tests.harness.vectors import Notes, config_for, opened
from tests.integration.test_reconcile_busy import DDL, no_false_alarm

CUT: dict[str, Any] = {"chunk": {"tokens": 4}}
COLUMNS = {
    "id": "numeric",
    "title": "text",
    "body": "text",
    "price": "double precision",
    "tag": "text",
    "words": ("text[]", "array:text"),
}
SOURCE = (
    "CREATE TABLE notes (id numeric PRIMARY KEY, title text, body text, price double precision, tag text,"
    " words text[])"
)


def note(number: int) -> dict[str, Any]:
    """Three chunks; of every fourth row one, which is empty."""
    empty = number % 4 == 0
    return {
        "id": str(number),
        "title": None if empty else f"title {number} ü",
        "body": None if empty else f'\\a, "b{number}" (c{number})',
        "price": number / 7,
        "tag": None if number % 5 == 0 else f"tag {number}",
        "words": [f"w{number}", None],
    }


@asynccontextmanager
async def filled(
    source: str, target: str, count: int, flow: dict[str, Any]
) -> AsyncIterator[tuple[Notes, LogTable]]:
    await execute(source, SOURCE)
    async with opened(target, {**CUT, **flow}) as notes:
        table = notes.log.table("notes", COLUMNS)
        async with await psycopg.AsyncConnection.connect(source, autocommit=True) as connection:
            for number in range(1, count + 1):
                row = note(number)
                table.create(row)
                await connection.execute(
                    "INSERT INTO notes VALUES (%s, %s, %s, %s, %s, %s)", list(row.values())
                )
        await notes.apply()
        yield notes, table


@asynccontextmanager
async def compared(notes: Notes, source: str, *only: str, where: str = "") -> AsyncIterator[Sides]:
    settings = config_for(source).sources["shop"]
    assert isinstance(settings, PostgresSource)
    origin, store = PostgresOrigin(settings), VectorStore(notes.url)
    try:
        await origin.open()
        await store.open()
        (captured,) = [each async for each in origin.tables(notes.flows[0])]
        sides = await make_sides(captured, store, notes.flows[0], where=where, only=only)
        yield sides
    finally:
        await origin.close()
        await store.close()


async def faults(sides: Sides, *parts: Part) -> dict[str, list[str]]:
    """Key -> the columns that differ, or where the row is missing."""
    found = await compare(sides.source, sides.target, parts or (await sides.source.plan(100)).parts())
    assert found.source_rows
    keys = sorted(found.suspects)
    ours, theirs = await sides.source.rows(keys), await sides.target.rows(keys)
    names = [pair.name for pair in sides.compared.pairs]
    named = {}
    for key in keys:
        one, other = ours.get(key), theirs.get(key)
        if one is None or other is None:
            named[key[0]] = ["source" if one is None else "target"]
        else:
            named[key[0]] = [n for n, a, b in zip(names, one.texts, other.texts, strict=True) if a != b]
    return named


NUMBERS, HASH, TEXT, VECTOR = "_tailrace_chunk", "_tailrace_hash", "_tailrace_text", "_tailrace_embedding"
EACH = [NUMBERS, HASH, TEXT, VECTOR]
SOURCE_JSON, METADATA = "_tailrace_source", "_tailrace_metadata"
FAULTS = {
    "1": ("DELETE FROM search.notes WHERE id = 1", ["target"]),
    "2": (
        "UPDATE search.notes SET _tailrace_hash = gen_random_uuid() WHERE id = 2 AND _tailrace_chunk = 1",
        [HASH],
    ),
    "3": ("UPDATE search.notes SET text = text || ' ' WHERE id = 3 AND _tailrace_chunk = 0", [TEXT]),
    "5": ("UPDATE search.notes SET tag = '' WHERE id = 5", ["tag"]),
    "6": ("UPDATE search.notes SET words = NULL WHERE id = 6", ["words"]),
    "7": ("DELETE FROM search.notes WHERE id = 7 AND _tailrace_chunk = 1", EACH),
    "8": ("UPDATE search.notes SET text = 'x', embedding = '[1,1,1]' WHERE id = 8", [TEXT, VECTOR]),
    "9": ("DELETE FROM search.notes WHERE id = 9 AND _tailrace_chunk > 1", EACH),
    "10": ("UPDATE search.notes SET tag = 'z' WHERE id = 10 AND _tailrace_chunk = 1", [METADATA]),
    "11": (
        "INSERT INTO search.notes (id, _tailrace_chunk, text, _tailrace_hash, embedding, price, tag, words)"
        " SELECT id, 9, text, _tailrace_hash, embedding, price, tag, words FROM search.notes"
        " WHERE id = 11 AND _tailrace_chunk = 2",
        EACH,
    ),
    "12": ("UPDATE search.notes SET price = price + 2e-16 WHERE id = 12", ["price"]),
    "13": (
        "UPDATE search.notes SET _tailrace_source = '{}' WHERE id = 13 AND _tailrace_chunk = 0",
        [SOURCE_JSON],
    ),
    "14": ("UPDATE search.notes SET embedding = NULL WHERE id = 14 AND _tailrace_chunk = 0", [VECTOR]),
    "15": ("DELETE FROM search.notes WHERE id = 15 AND _tailrace_chunk = 0", [*EACH, SOURCE_JSON]),
    "16": ("UPDATE search.notes SET id = 16.0 WHERE id = 16", ["target"]),
    "16.0": ("SELECT", ["source"]),
    "99": ("UPDATE search.notes SET id = 99 WHERE id = 17", ["source"]),
    "17": ("SELECT", ["target"]),
}
REST = 40


async def test_each_fault_is_named_and_an_event_of_the_row_heals_it(
    recorder: Recorder, database: str, target_database: str
) -> None:
    async with filled(database, target_database, REST, {}) as (notes, table):
        async with compared(notes, database) as sides:
            assert await faults(sides) == {}
            assert await faults(sides, *buckets(3)) == {}
            assert any("not computed again" in note for note in sides.compared.notes)
        await execute(
            target_database,
            "ALTER TABLE search.notes DROP CONSTRAINT _tailrace_embedded",
            *[statement for statement, _ in FAULTS.values() if statement != "SELECT"],
        )
        wanted = {key: columns for key, (_, columns) in FAULTS.items()}
        async with compared(notes, database) as sides:
            assert await faults(sides) == wanted
            assert await faults(sides, *buckets(3)) == wanted
        before = len(recorder.texts)
        for key in wanted:
            if key == "99":
                table.delete({"id": key})
            elif key != "16.0":  # which the source has, as 16
                table.read(note(int(key)))
        await notes.apply()
        async with compared(notes, database) as sides:
            assert await faults(sides) == {}
        # Two rows that were gone, of three chunks each; one chunk each of 2, 7, 9, 14 and 15.
        assert len(recorder.texts) - before == 2 * 3 + 5


async def test_an_update_without_a_large_column_keeps_what_it_knows_of_the_text(
    recorder: Recorder, database: str, target_database: str
) -> None:
    """NULL and an empty text are the same in the template, and not in what the next update takes from it."""
    async with filled(database, target_database, 2, {}) as (notes, table):
        for title in (None, ""):
            table.update({**note(1), "title": title, "body": UNAVAILABLE if title == "" else note(1)["body"]})
            await notes.apply()
        await execute(database, "UPDATE notes SET title = '' WHERE id = 1")
        embedded = len(recorder.texts)
        async with compared(notes, database) as sides:
            assert await faults(sides) == {}
        table.update({**note(1), "title": "t", "body": UNAVAILABLE})
        await notes.apply()
        await execute(database, "UPDATE notes SET title = 't' WHERE id = 1")
        async with compared(notes, database) as sides:
            assert await faults(sides) == {}
        assert len(recorder.texts) > embedded


async def test_columns_conditions_and_modes_mean_what_they_say(
    recorder: Recorder, database: str, target_database: str
) -> None:
    flow = {
        "columns": {"id": "number", "tag": {"to": "label"}, "kind": {"value": "note"}},
        "delete": "soft(gone)",
    }
    async with filled(database, target_database, 12, flow) as (notes, _):
        async with compared(notes, database) as sides:
            assert await faults(sides) == {}
            by_tag = Grouping(("tag",), "", (), 0)
            assert await sides.source.groups(by_tag) == await sides.target.groups(by_tag)
            assert (await sides.target.groups(by_tag))[None,] == [2]  # rows, and not chunks
            metadata = ["id", "price", "tag", "words", "kind"]
            assert [pair.name for pair in sides.compared.pairs] == [*metadata, *ADDED]
        await execute(
            target_database,
            "UPDATE search.notes SET label = 'x' WHERE number = 1",
            "UPDATE search.notes SET text = 'x' WHERE number = 2 AND _tailrace_chunk = 0",
            "UPDATE search.notes SET gone = now() WHERE number = 3",
            "UPDATE search.notes SET kind = 'x' WHERE number = 5 AND _tailrace_chunk = 0",
            "ALTER TABLE search.notes ALTER label TYPE varchar(9), DROP COLUMN words",
        )
        async with compared(notes, database) as sides:
            assert await faults(sides) == {
                "1": ["tag"],
                "2": [TEXT],
                "3": ["target"],
                "5": ["kind", METADATA],
            }
        async with compared(notes, database, "tag") as sides:
            assert await faults(sides) == {"1": ["tag"], "3": ["target"]}
        async with compared(notes, database, "body") as sides:
            assert await faults(sides) == {"2": [TEXT], "3": ["target"]}
        async with compared(notes, database, where="id = 3") as sides:
            assert await faults(sides) == {"3": ["target"]}
        async with compared(notes, database, "body", where="price IS NULL AND id > 2 OR id = 2") as sides:
            assert await faults(sides) == {"2": [TEXT]}  # of a column that is not compared


async def test_rows_of_a_query_are_rendered_as_those_of_a_table(
    recorder: Recorder, database: str, target_database: str
) -> None:
    """As a processor may derive them: there is no index, and so they are cut by buckets."""
    query = "SELECT id, title, body, price, tag, words FROM notes WHERE id > 1"
    links = {NAME_KEY: "notes", "kind": "query", "on": "shop", "sql": query, "key": ["id"]}
    settings = QuerySource.model_validate({**links, "dirty": {"public.notes": "id"}})
    async with filled(database, target_database, 12, {}) as (notes, _):
        shop = config_for(database).sources["shop"]
        assert isinstance(shop, PostgresSource)
        origin, store = QueryOrigin(settings, shop), VectorStore(notes.url)
        await execute(
            target_database,
            "UPDATE search.notes SET text = 'x' WHERE id = 2 AND _tailrace_chunk = 0",
            "UPDATE search.notes SET tag = 'x' WHERE id = 3",
        )
        try:
            await origin.open()
            await store.open()
            (captured,) = [each async for each in origin.tables(notes.flows[0])]
            assert not isinstance(captured, Refused)
            flow = notes.flows[0]
            gone: dict[str, list[str]] = {"1": ["source"]}
            for where, more in (("", gone), ("id > 1", {})):
                sides = await make_sides(captured, store, flow, where=where, only=())
                assert await faults(sides, *buckets(3)) == {"2": [TEXT], "3": ["tag"], **more}
        finally:
            await origin.close()
            await store.close()


EMBEDDER = """
from pathlib import Path


def embed(texts):
    with (Path(__file__).parent / "embedded.txt").open("a") as file:
        file.writelines(text + "\\n" for text in texts)
    return [[float(len(text)), 1.0, 0.0] for text in texts]
"""


@pytest.mark.thorough
async def test_a_repair_goes_through_the_log_and_embeds_what_is_gone(pipeline: Pipeline) -> None:
    (pipeline.folder / "embedder.py").write_text(EMBEDDER)
    pipeline.config["targets"]["copy"]["kind"] = "pgvector"
    flow = {"text": "{title} {body}", "embed": "embedder:embed", "dimensions": 3, "chunk": {"tokens": 2}}
    pipeline.config["flows"]["mirror"] |= flow
    pipeline.write_config()
    await execute(
        pipeline.source_url,
        "CREATE TABLE notes (id int PRIMARY KEY, title text, body text, tag text)",
        "INSERT INTO notes SELECT n, 'a' || n, 'b' || n || ' c' || n, 'x' FROM generate_series(1, 60) n",
    )
    pipeline.start("capture"), pipeline.start("apply")
    report = await proved(pipeline)
    (table,) = report["tables"]
    assert (table["source_rows"], table["target_rows"]) == (60, 60)
    assert table["why_not_fast"] == "the target keeps chunks of texts"
    embedded = pipeline.folder / "embedded.txt"
    embedded.unlink()
    await execute(
        pipeline.target_url,
        "DELETE FROM mirror.notes WHERE id = 1 AND _tailrace_chunk = 1",
        "UPDATE mirror.notes SET tag = 'y' WHERE id = 2",
        "UPDATE mirror.notes SET _tailrace_hash = gen_random_uuid() WHERE id = 3 AND _tailrace_chunk = 0",
        "DELETE FROM mirror.notes WHERE id = 4",
        "UPDATE mirror.notes SET id = 99 WHERE id = 5",
    )
    code, report = await reconcile(pipeline)
    assert code == 1
    assert samples(report) == {
        *[("different", key) for key in "123"],
        *[("missing", key) for key in "45"],
        ("extra", "99"),
    }
    code, report = await reconcile(pipeline, "--repair", "--delete-extra")
    (table,) = report["tables"]
    assert (code, table["repair"]["verified"], table["repair"]["left"]) == (4, 6, 0)
    assert sorted(embedded.read_text().splitlines()) == ["a3 b3", "a4 b4", "a5 b5", "c1", "c4", "c5"]
    assert (await reconcile(pipeline))[0] == 0


@pytest.mark.thorough
async def test_a_text_of_every_type_is_rendered_as_apply_does(pipeline: Pipeline) -> None:
    """In the text of one flow, and as metadata of the other."""
    (pipeline.folder / "embedder.py").write_text(EMBEDDER)
    pipeline.config["targets"]["copy"]["kind"] = "pgvector"
    flow = {"from": f"{pipeline.source}.public.odd", "embed": "embedder:embed", "dimensions": 3}
    every = " ".join(f"{{{name}}}" for name in kinds.COLUMNS)
    pipeline.config["flows"] = {
        "texts": {**flow, "to": "copy.texts.odd", "text": every, "chunk": {"tokens": 50, "overlap": 5}},
        "metadata": {**flow, "to": "copy.metadata.odd", "text": "{id}"},
    }
    pipeline.write_config()
    changed = [(column, value) for column, value in kinds.FAULTS if value != "-nan"]
    await execute(
        pipeline.source_url,
        *kinds.ddl("odd", len(changed) + 3),
        *[
            f"UPDATE odd SET {column} = {value} WHERE id = {n}"
            for n, (column, value) in enumerate(changed, 1)
        ],
    )
    pipeline.start("capture"), pipeline.start("apply")
    report = await proved(pipeline)
    assert {(table["flow"], table["source_rows"]) for table in report["tables"]} == {
        ("texts", len(changed) + 3),
        ("metadata", len(changed) + 3),
    }


@pytest.mark.slow
async def test_h18_no_false_alarm_in_vectors(pipeline: Pipeline) -> None:
    (pipeline.folder / "embedder.py").write_text(EMBEDDER)
    pipeline.config["targets"]["copy"]["kind"] = "pgvector"
    flow = {"text": "{name} {n}", "embed": "embedder:embed", "dimensions": 3, "chunk": {"tokens": 2}}
    pipeline.config["flows"]["mirror"] |= flow
    pipeline.write_config()
    await execute(pipeline.source_url, *DDL)
    pipeline.start("capture"), pipeline.start("apply")
    await proved(pipeline)
    await no_false_alarm(pipeline, 300, 20, stall=True)
