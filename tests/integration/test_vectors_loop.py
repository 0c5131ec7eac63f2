"""The pgvector target under the apply loop, and the example with its real model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from consumers.cli import app
from consumers.targets.vectors import VectorTarget
from consumers.targets.vectors_search import search
from consumers.testing import Log
from streamer.config import Config, load, parse
from streamer.config import VectorTarget as Settings
from streamer.errors import ConfigError
from streamer.runner import reset_source
from tests.harness.capture import capturing, until
from tests.harness.feeder import Feeder, applying
from tests.harness.given import execute, rows
from tests.harness.parked import letters
from tests.harness.pipeline import STOP_S, Pipeline
from tests.harness.recorder import DIMENSIONS, Recorder
from tests.harness.vectors import COLUMNS, note

EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / "search"
SPECS = [
    ("id", "integer", "number"),
    ("title", "text", "text"),
    ("body", "text", "text"),
    ("tag", "text", "text"),
]


def fed(feeder: Feeder, url: str, embed: str = "recorded:embed") -> Config:
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
    embed: "{embed}"
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


STUCK = "import time\ndef embed(texts):\n    time.sleep(5000)\n"


@pytest.mark.thorough
async def test_a_call_that_hangs_does_not_hold_up_a_stop(pipeline: Pipeline) -> None:
    (pipeline.config_path.parent / "stuck.py").write_text(STUCK)
    config = pipeline.config
    embedding = {"timeout": "100ms"}
    config["targets"]["copy"] = {"kind": "pgvector", "url": pipeline.target_url, "embedding": embedding}
    texts = {"text": "{title}", "embed": "stuck:embed", "dimensions": DIMENSIONS}
    config["flows"] = {"notes": {"from": f"{pipeline.source}.public.notes", "to": "copy.search", **texts}}
    pipeline.write_config()
    await execute(
        pipeline.source_url,
        "CREATE TABLE notes (id int PRIMARY KEY, title text)",
        "INSERT INTO notes VALUES (1, 'a')",
    )
    pipeline.start("capture")
    apply = pipeline.start("apply")

    async def waits() -> bool:
        records = await pipeline.status("apply")
        return any("has been running for" in record.reason for record in records)

    await pipeline.until("the reason of the wait is told", waits)
    began_s = time.monotonic()
    assert await apply.stop() == 0
    assert time.monotonic() - began_s < STOP_S


def captured(path: Path, url: str, embed: str) -> Config:
    """The config of a real capture, with a target of its vectors."""
    document = orjson.loads(path.read_bytes())
    document["targets"] = {"copy": {"kind": "pgvector", "url": url}}
    flow = {"from": "shop.public.*", "to": "copy.search", "text": "{title} {body}"}
    document["flows"] = {"notes": flow | {"embed": embed, "dimensions": DIMENSIONS}}
    path.write_bytes(orjson.dumps(document))
    return load(path)


async def test_another_function_is_refused_until_all_is_embedded_again(
    recorder: Recorder,
    database: str,
    target_database: str,
    make_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    """Its vectors would stand beside those of the first one, and a search would compare them."""
    await execute(
        database,
        "CREATE TABLE notes (id int PRIMARY KEY, title text, body text, tag text)",
        "INSERT INTO notes SELECT n, 'ti', 'bo', 'x' FROM generate_series(1, 20) n",
    )
    make_config(database)
    path = tmp_path / "tailrace.yaml"
    config = captured(path, target_database, "recorded:embed")
    vectors = "SELECT embedding::text, count(*) FROM search.notes GROUP BY 1"
    async with capturing(config), applying(config) as run:
        await run.rows(target_database, vectors, [("[5,5,5]", 20)])
        await run.stop()
    other = captured(path, target_database, "recorded:doubled")

    def told() -> bool:
        findings = run.status.record.detail.get("findings", [])
        return any(
            "flow notes: search.notes: its vectors were not made by recorded:doubled" in f for f in findings
        )

    async with applying(other) as run:
        await run.until(told, "the finding, though no change comes")
        await run.stop()
    async with capturing(config) as capture:
        await execute(database, "UPDATE notes SET tag = 'only the tag' WHERE id = 15")
        await capture.caught_up()
    async with applying(other) as run:
        error = str(await run.fails())
    assert "its vectors were not made by recorded:doubled" in error
    assert 'DROP TABLE "search"."notes"; then stop `tailrace run`' in error
    assert await rows(target_database, vectors) == [("[5,5,5]", 20)]
    settings = other.targets["copy"]
    assert isinstance(settings, Settings)
    with pytest.raises(ConfigError, match="not made by recorded:doubled"):
        await search(settings, other.flows["notes"], "words", 3)
    await execute(target_database, "DROP TABLE search.notes")
    await reset_source(other, "shop", brokers=other.kafka.brokers)
    async with capturing(other), applying(other) as run:
        await run.rows(target_database, vectors, [("[10,10,10]", 20)])
    assert len(await search(settings, other.flows["notes"], "words", 3)) == 3


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
