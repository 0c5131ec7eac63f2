"""The pgvector target: what is embedded and when, whose fault a failure is, and what a search finds."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

from consumers.cli import app
from consumers.targets.base import FlowError, Outcome, RowsRefused
from consumers.targets.vectors import VectorTarget
from consumers.testing import Log, LogTable
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Config, Flow, load, parse
from streamer.config import VectorTarget as Settings
from streamer.doctor import examine
from streamer.errors import ConfigError, TargetUnavailable
from tests.harness.capture import until
from tests.harness.feeder import Feeder, applying
from tests.harness.given import execute, rows
from tests.integration.test_dead_letters import letters

EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / "search"
COLUMNS = {"id": "integer", "title": "text", "body": "text", "tag": "text"}
DIMENSIONS = 3


@dataclass
class Recorder:
    """The functions of a module that a config names; they say what they were asked."""

    texts: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    down: Exception | None = None
    dimensions: int = DIMENSIONS
    missing: int = 0

    def embed(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        if self.down is not None:
            raise self.down
        if any("poison" in text for text in texts):
            raise ValueError("I do not read that")
        self.texts += texts
        return [[float(len(text))] * self.dimensions for text in texts][self.missing :]

    async def slowly(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return self.embed(texts)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    module = ModuleType("recorded")
    module.__dict__.update(embed=made.embed, slowly=made.slowly, number=7)
    sys.modules["recorded"] = module
    yield made
    del sys.modules["recorded"]


def note(number: int, title: str = "t", body: str | None = "b", tag: str | None = "x") -> dict[str, Any]:
    return {"id": number, "title": title, "body": body, "tag": tag}


def config_for(url: str, flow: dict[str, Any] | None = None, target: dict[str, Any] | None = None) -> Config:
    wanted = {
        "from": "shop.public.*",
        "to": "vectors.search",
        "text": "{title}\n\n{body}",
        "embed": "recorded:embed",
        "dimensions": DIMENSIONS,
        **(flow or {}),
    }
    text = yaml.safe_dump(
        {
            "name": "acme",
            "sources": {"shop": {"kind": "postgres", "url": url, "tables": {"public.*": {}}}},
            "targets": {"vectors": {"kind": "pgvector", "url": url, **(target or {})}},
            "flows": {"notes": {k: v for k, v in wanted.items() if v is not None}},
        }
    )
    return parse(text, Path("tailrace.yaml"), environ={})


@dataclass
class Notes:
    url: str
    target: VectorTarget
    flows: list[Flow]
    log: Log
    table: LogTable

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def stops(self) -> str:
        with pytest.raises(FlowError) as caught:
            await self.apply()
        assert isinstance(caught.value.cause, ConfigError)
        return str(caught.value.cause)

    async def chunks(self, columns: str = "id, _tailrace_chunk, text, tag") -> list[tuple[Any, ...]]:
        return await rows(self.url, f"SELECT {columns} FROM search.notes ORDER BY id, _tailrace_chunk")


@asynccontextmanager
async def opened(
    url: str,
    flow: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    log: Log | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Notes]:
    config = config_for(url, flow, target)
    settings = config.targets["vectors"]
    assert isinstance(settings, Settings)
    flows = list(config.flows.values())
    session = VectorTarget(settings, "acme.vectors", flows, clock=clock)
    await session.open()
    log = log or Log("shop")
    try:
        yield Notes(url, session, flows, log, log.table("notes", COLUMNS))
    finally:
        await session.close()


# What is embedded, and when


async def test_only_a_changed_text_is_embedded_again(recorder: Recorder, target_database: str) -> None:
    async with opened(target_database) as s:
        s.table.create(note(1, "one", "body"))
        s.table.create(note(2, "two", None))
        s.table.create(note(3, "", None))
        await s.apply()
        assert sorted(recorder.texts) == ["one\n\nbody", "two\n\n"]
        assert await s.chunks("id, text, embedding::text, tag") == [
            (1, "one\n\nbody", "[9,9,9]", "x"),
            (2, "two\n\n", "[5,5,5]", "x"),
            (3, "", None, "x"),
        ]
        recorder.texts.clear()
        s.table.update(note(1, "one", "body", "other"))
        s.table.update(note(2, "two!", None))
        await s.apply()
        assert recorder.texts == ["two!\n\n"]
        assert await s.chunks("id, text, embedding::text, tag") == [
            (1, "one\n\nbody", "[9,9,9]", "other"),
            (2, "two!\n\n", "[6,6,6]", "x"),
            (3, "", None, "x"),
        ]
        assert s.target.details()["texts_embedded"] == 3
        assert s.target.details()["texts_reused"] == 1


async def test_a_restart_and_a_replay_embed_nothing(recorder: Recorder, target_database: str) -> None:
    async with opened(target_database) as s:
        for number in range(5):
            s.table.create(note(number, "older"))
            s.table.update(note(number, f"title {number}"))
        await s.apply()
        before = await s.chunks("*")
        log = s.log
    recorder.texts.clear()
    await execute(target_database, "UPDATE _tailrace.checkpoints SET next_offset = 0")
    async with opened(target_database, log=log) as s:
        stands = dict.fromkeys(s.log.places(s.flows), 0)
        halves = {at: len(found) // 2 for at, found in log.records.items()}
        outcome = await s.target.apply(await s.log.batch(s.flows, stands, halves))
        assert sum(outcome.guarded.values()) > 0
        await s.apply()
        assert recorder.texts == []
        assert await s.chunks("*") == before


async def test_another_function_or_its_name_makes_every_hash_new(
    recorder: Recorder, target_database: str
) -> None:
    async with opened(target_database) as s:
        s.table.create(note(1))
        await s.apply()
        log = s.log
    async with opened(target_database, {"embed": "recorded:slowly"}, log=log) as s:
        s.table.update(note(1, tag="only the tag"))
        await s.apply()
    assert recorder.texts == ["t\n\nb", "t\n\nb"]


async def test_chunks_come_and_go_with_the_text(recorder: Recorder, target_database: str) -> None:
    chunk = {"tokens": 3, "overlap": 1}
    async with opened(target_database, {"chunk": chunk, "text": "{body}"}) as s:
        s.table.create(note(1, body="a b c d e f g"))
        s.table.create(note(2, body="short"))
        await s.apply()
        assert await s.chunks() == [
            (1, 0, "a b c", "x"),
            (1, 1, "c d e", "x"),
            (1, 2, "e f g", "x"),
            (2, 0, "short", "x"),
        ]
        recorder.texts.clear()
        s.table.update(note(1, body="new a b c d e, f"))
        await s.apply()
        assert recorder.texts == ["new a b", "b c d", "d e,", ", f"]
        recorder.texts.clear()
        s.table.update(note(1, body="b c d", tag="y"))  # a vector that another chunk of the row has
        await s.apply()
        assert recorder.texts == []
        assert await s.chunks("id, text, embedding::text, tag") == [
            (1, "b c d", "[5,5,5]", "y"),
            (2, "short", "[5,5,5]", "x"),
        ]
        assert await s.target.count_rows("notes", "search", "notes") == 2
        s.table.update(note(1, body="a b c d e f g"))
        s.table.delete(note(2))
        await s.apply()
        assert await s.target.count_rows("notes", "search", "notes") == 1
        s.table.delete(note(1))
        await s.apply()
        assert await s.chunks() == []


async def test_an_older_row_of_more_chunks_adds_none(recorder: Recorder, target_database: str) -> None:
    async with opened(target_database, {"chunk": {"tokens": 1}, "text": "{body}"}) as s:
        s.table.update(note(1, body="new"), 200)
        await s.apply()
        s.table.update(note(1, body="old and long"), 100)
        outcome = await s.apply()
        assert outcome.guarded == {"notes": 1}
        assert await s.chunks() == [(1, 0, "new", "x")]
        assert recorder.texts == ["new"]


async def test_h07_a_text_is_made_of_what_is_stored_where_the_event_lacks_it(
    recorder: Recorder, target_database: str
) -> None:
    async with opened(target_database) as s:
        s.table.create(note(1, "one", "large"))
        await s.apply()
        recorder.texts.clear()
        s.table.update(note(1, "one", UNAVAILABLE, "metadata"))
        await s.apply()
        assert recorder.texts == []
        s.table.update(note(1, "two", UNAVAILABLE, UNAVAILABLE))
        outcome = await s.apply()
        assert recorder.texts == ["two\n\nlarge"]
        assert await s.chunks() == [(1, 0, "two\n\nlarge", "metadata")]
        assert outcome.rereads == {}
        s.table.update(note(9, "nobody", UNAVAILABLE))
        assert (await s.apply()).rereads == {"notes": 1}
        assert len(await s.chunks()) == 1


async def test_a_truncate_leaves_no_vector_to_take(recorder: Recorder, target_database: str) -> None:
    """The same text again in the batch that empties the table."""
    async with opened(target_database) as s:
        s.table.create(note(1))
        s.table.create(note(2))
        await s.apply()
        s.table.truncate()
        s.table.create(note(1))
        await s.apply()
        assert await s.chunks("id, embedding::text") == [(1, "[4,4,4]")]
        assert len(recorder.texts) == 2  # equal texts of one batch are one; and once more


async def test_a_vector_that_goes_right_before_its_row_is_made_again(
    recorder: Recorder, target_database: str
) -> None:
    """The table is emptied after apply has seen that the vector is stored, before its transaction."""
    async with opened(target_database) as s:
        s.table.create(note(1))
        await s.apply()
        s.table.update(note(1, tag="y"))
        blocked = "SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        blocked += " AND application_name LIKE 'tailrace apply%' AND datname = current_database()"
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("SELECT FROM _tailrace.checkpoints FOR UPDATE")
            starts = dict.fromkeys(s.log.places(s.flows), 1)
            applying_it = asyncio.create_task(s.target.apply(await s.log.batch(s.flows, starts)))

            async def waits() -> bool:
                return await rows(s.url, blocked) != []

            await until(waits)
            await execute(s.url, "TRUNCATE search.notes")
        await applying_it
        assert await s.chunks("id, embedding::text, tag") == [(1, "[4,4,4]", "y")]
        assert recorder.texts == ["t\n\nb", "t\n\nb"]


async def test_a_prepared_batch_asks_the_model_ahead(recorder: Recorder, target_database: str) -> None:
    async with opened(target_database, target={"embedding": {"texts": 10}}) as s:
        s.table.create(note(0))
        await s.apply()
        for number in range(1, 26):
            s.table.create(note(number, f"n{number}"))
        starts = {p: c.next_offset for p, c in (await s.target.checkpoints(s.log.places(s.flows))).items()}
        batch = await s.log.batch(s.flows, starts)
        recorder.calls.clear()
        await s.target.prepare(batch)
        assert recorder.calls == [10, 10, 5]
        await s.target.apply(batch)
        assert recorder.calls == [10, 10, 5]
        assert len(await s.chunks()) == 26


async def test_a_slow_model_is_asked_ahead_for_a_while_and_never_twice(
    recorder: Recorder, target_database: str
) -> None:
    slow = {"embedding": {"texts": 10}}
    async with opened(target_database, target=slow, clock=lambda: 4.0 * len(recorder.calls)) as s:
        s.table.create(note(0))
        await s.apply()
        for number in range(1, 36):
            s.table.create(note(number, f"n{number}"))
        starts = {p: c.next_offset for p, c in (await s.target.checkpoints(s.log.places(s.flows))).items()}
        batch = await s.log.batch(s.flows, starts)
        recorder.calls.clear()
        await s.target.prepare(batch)
        assert recorder.calls == [10, 10]  # two calls of four seconds
        await s.target.apply(batch)
        assert recorder.calls == [10, 10, 10, 5]
        assert len(await s.chunks()) == 36


# Whose fault it is


async def test_a_text_that_the_model_refuses_is_a_refused_row(
    recorder: Recorder, target_database: str
) -> None:
    async with opened(target_database) as s:
        for number in range(20):
            s.table.create(note(number, "poison" if number in (3, 11) else f"n{number}"))
        with pytest.raises(RowsRefused) as caught:
            await s.apply()
        assert {row.write.row["id"] for row in caught.value.rows} == {3, 11}
        assert {row.code for row in caught.value.rows} == {"embedding"}
        assert (
            "recorded:embed refuses the text: ValueError: I do not read that" in caught.value.rows[0].message
        )
        assert not any(row.transient for row in caught.value.rows)


async def test_a_model_that_is_away_is_waited_for(recorder: Recorder, target_database: str) -> None:
    async with opened(target_database) as s:
        s.table.create(note(1))
        for down in (ConnectionError("refused"), RuntimeError("whatever it is, for any text")):
            recorder.down = down
            with pytest.raises(TargetUnavailable, match=str(down)) as caught:
                await s.apply()
            assert "recorded:embed" in str(caught.value)
        recorder.down = None
        await s.apply()
        assert len(await s.chunks()) == 1


async def test_what_is_wrong_with_the_function_is_said(recorder: Recorder, target_database: str) -> None:
    async def error(flow: dict[str, Any]) -> str:
        async with opened(target_database, flow) as s:
            s.table.create(note(1))
            s.table.create(note(2, "other"))
            return await s.stops()

    assert "the module 'no_such_module' cannot be imported" in await error({"embed": "no_such_module:embed"})
    assert "did you mean recorded:embed?" in await error({"embed": "recorded:embd"})
    assert "'recorded:number' is an int, and not a function" in await error({"embed": "recorded:number"})
    found = await error({"text": "{titel}"})
    assert "`text` names 'titel'" in found
    assert "did you mean 'title'?" in found
    recorder.missing = 1
    assert "was given 2 texts and gave 1 vectors" in await error({})
    recorder.missing = 0
    recorder.dimensions = 4
    found = await error({})
    assert "a vector of 4 dimensions, and the flow says dimensions: 3" in found
    recorder.dimensions = 3
    async with opened(target_database) as s:
        s.table.create(note(1))
        await s.apply()
    assert "'embedding' is vector(3), and the flow makes vector(4)" in await error({"dimensions": 4})


async def test_the_extension_is_made_or_its_sql_is_said(target_database: str) -> None:
    await execute(target_database, "CREATE ROLE embedder LOGIN PASSWORD 'p'")
    try:
        conninfo = psycopg.conninfo.conninfo_to_dict(target_database)
        place = f"{conninfo['host']}:{conninfo['port']}/{conninfo['dbname']}"
        config = config_for(f"postgresql://embedder:p@{place}", {"embed": "json:loads"})
        settings = config.targets["vectors"]
        assert isinstance(settings, Settings)
        target = VectorTarget(settings, "acme.vectors", list(config.flows.values()))
        with pytest.raises(ConfigError, match="CREATE EXTENSION vector;"):
            await target.open()
        await target.close()
        async with opened(target_database):
            assert await rows(target_database, "SELECT 1 FROM pg_extension WHERE extname = 'vector'") == [
                (1,)
            ]
    finally:
        await execute(target_database, "DROP ROLE embedder")


async def test_the_index_is_made_when_the_first_copy_is_through(
    recorder: Recorder, target_database: str
) -> None:
    query = "SELECT indexdef LIKE '%USING hnsw (embedding vector_cosine_ops)' FROM pg_indexes"
    query += " WHERE tablename = 'notes' AND indexname LIKE '%hnsw%'"
    async with opened(target_database) as s:
        for number in range(100):
            s.table.read(note(number, f"n{number}"))
        await s.apply()
        await s.target.sweep(3600)  # rows of the first copy came since the last one
        await s.target.indexed()
        assert await rows(s.url, query) == []
        await s.target.sweep(3600)
        await s.target.indexed()
        assert await rows(s.url, query) == [(True,)]
        assert await s.target.findings() == []


# The doctor


async def test_the_doctor_tries_extension_function_and_columns(
    recorder: Recorder, database: str, target_database: str
) -> None:
    await execute(database, "CREATE TABLE notes (id int PRIMARY KEY, title text, body text, tag text)")

    async def found(flow: dict[str, Any]) -> dict[tuple[str, str], str]:
        """Of the target, without what every Postgres target is asked."""
        text = config_for(target_database, flow)
        sources = {"shop": text.sources["shop"].model_copy(update={"url": SecretStr(database)})}
        report = await examine(text.model_copy(update={"sources": sources}))
        return {
            (check.check, check.level.value): f"{check.what} {check.fix} {' '.join(check.sql)}"
            for check in report.checks
            if check.subject == "target vectors" and check.check in ("extension", "embed", "text", "columns")
        }

    checks = await found({})
    assert set(checks) == {("extension", "ok"), ("embed", "ok")}
    assert "can be made" in checks["extension", "ok"]
    assert "vectors of 3 dimensions" in checks["embed", "ok"]
    async with opened(target_database) as s:
        s.table.create(note(1))
        await s.apply()
    assert set(await found({"embed": "recorded:slowly"})) == {("extension", "ok"), ("embed", "ok")}
    checks = await found({"text": "{titel}", "dimensions": 4})
    assert "did you mean 'title'?" in checks["text", "fail"]
    assert "a vector of 3 dimensions, and the flow says dimensions: 4" in checks["embed", "fail"]
    assert "search.notes.embedding is vector(3)" in checks["columns", "fail"]
    recorder.down = RuntimeError("no key for the API")
    assert "no key for the API" in (await found({}))["embed", "fail"]


# Through Kafka, by the apply loop


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


SPECS = [
    ("id", "integer", "number"),
    ("title", "text", "text"),
    ("body", "text", "text"),
    ("tag", "text", "text"),
]


def fed(feeder: Feeder, url: str) -> Config:
    text = f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets:
  copy: {{kind: pgvector, url: "{url}"}}
flows:
  notes:
    from: "{feeder.source}.public.*"
    to: copy.search
    text: "{{title}} {{body}}"
    embed: "recorded:embed"
    dimensions: {DIMENSIONS}
"""
    return parse(text, Path("tailrace.yaml"), environ={})


async def test_the_loop_applies_parks_and_waits(
    recorder: Recorder, feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("notes", SPECS)
    for number in range(200):
        table.create(note(number, "poison" if number == 7 else f"n{number}"), 100, number)
    await feeder.flush()
    config = fed(feeder, target_database)
    count = "SELECT count(*) FROM search.notes"
    async with applying(config) as run:
        await run.rows(target_database, count, [(199,)])
        parked = "SELECT convert_from(key, 'UTF8'), code FROM _tailrace.parked"
        await run.rows(target_database, parked, [('{"id":7}', "embedding")])
        (letter,) = await letters(feeder)
        assert "I do not read that" in json.dumps(letter)
        table.update(note(7, "good"), 200)  # a whole row takes the queue's place
        await feeder.flush()
        await run.rows(target_database, "SELECT lsn FROM _tailrace.parked", [(200,)])
        await execute(target_database, "UPDATE _tailrace.parked SET asked = 'retry', asked_by = 'ann@host'")
        await run.rows(target_database, count, [(200,)])
        await run.rows(target_database, parked, [])
        embedded = len(recorder.texts)
        recorder.down = ConnectionError("the model rests")
        table.update(note(1, "changed"), 300)
        await feeder.flush()

        async def waits() -> bool:
            record = run.status.record
            return record.state == "waiting" and "the model rests" in record.reason

        await until(waits)
        recorder.down = None
        await run.rows(target_database, "SELECT text FROM search.notes WHERE id = 1", [("changed b",)])
        assert len(recorder.texts) == embedded + 1
    async with applying(config) as run:  # a restart embeds nothing
        table.update(note(2, "n2", "b", "new tag"), 400)
        await feeder.flush()
        await run.rows(target_database, "SELECT tag FROM search.notes WHERE id = 2", [("new tag",)])
        assert len(recorder.texts) == embedded + 1


# The example, with its real model

NOTES = {
    1: ("Trout with almonds", "Fry the fish in butter and serve it with potatoes and lemon."),
    2: ("Changing a tyre", "Loosen the wheel nuts before you jack the car up."),
    3: ("Quarterly results", "Revenue rose by five percent while costs went down."),
    4: ("A walk in the Alps", "Take the cable car up the mountain and hike down through the forest."),
}


async def test_the_example_finds_by_meaning(
    database: str, target_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"APP_URL": database, "VECTORS_URL": target_database, "KAFKA": "localhost:9092"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    path = EXAMPLE / "tailrace.yaml"
    config = load(path)
    settings = config.targets["vectors"]
    assert isinstance(settings, Settings)
    flows = list(config.flows.values())
    target = VectorTarget(settings, "search.vectors", flows)
    runner = CliRunner()

    async def found(words: str, *options: str) -> Any:
        result = await asyncio.to_thread(
            runner.invoke, app, ["search", "vectors", words, "-c", str(path), *options]
        )
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in options else result.stdout

    await target.open()
    try:
        log = Log("app")
        table = log.table("notes", COLUMNS)
        for number, (title, body) in NOTES.items():
            table.create(note(number, title, body))
        await log.apply(target, flows)
        for words, number in {
            "dinner with seafood": 1,
            "my vehicle has a flat": 2,
            "company profit": 3,
        }.items():
            hits = await found(words, "--json", "--limit", "2")
            assert len(hits) == 2
            assert hits[0]["key"] == {"id": number}
            assert hits[0]["distance"] < hits[1]["distance"]
            assert hits[0]["row"] == {"tag": "x"}
            assert hits[0]["table"] == "search.notes"
        for _ in range(2):
            await target.sweep(3600)
            await target.indexed()
        (hit,) = await found("hiking in nature", "--json", "--limit", "1", "--flow", "notes")
        assert hit["key"] == {"id": 4}
        text = await found("hiking in nature")
        assert text.splitlines()[1].split()[1:3] == ["id", "4"]
        table.delete(note(4))
        await log.apply(target, flows)
        assert 4 not in [hit["key"]["id"] for hit in await found("hiking in nature", "--json")]
    finally:
        await target.close()
