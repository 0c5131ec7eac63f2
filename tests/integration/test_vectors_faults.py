"""The pgvector target: whose fault a failure is, what it needs, and what the doctor says."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from consumers.targets.base import RowsRefused
from consumers.targets.vectors import VectorTarget
from consumers.targets.vectors_search import search
from streamer.config import VectorTarget as Settings
from streamer.doctor import examine
from streamer.errors import ConfigError, FatalError, TargetUnavailable
from tests.harness.given import execute, rows
from tests.harness.recorder import Recorder
from tests.harness.vectors import config_for, note, opened

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


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt(), CancelledError()])
async def test_a_text_at_which_the_function_exits_is_a_refused_row(
    recorder: Recorder, target_database: str, error: BaseException
) -> None:
    recorder.poison = error
    async with opened(target_database) as s:
        for number in range(4):
            s.table.create(note(number, "poison" if number == 2 else f"n{number}"))
        with pytest.raises(RowsRefused) as caught:
            await s.apply()
        (row,) = caught.value.rows
        assert row.write.row["id"] == 2
        assert f"refuses the text: {type(error).__name__}" in row.message


async def test_a_call_that_hangs_is_the_only_one_until_it_ends(
    recorder: Recorder, target_database: str
) -> None:
    """Or until the process does, as nothing else ends a thread."""
    recorder.goes_on = Event()
    now_s = [100.0]
    limits = {"embedding": {"timeout": "10ms"}}
    async with opened(target_database, target=limits, clock=lambda: now_s[0]) as s:
        s.table.create(note(1))
        for _ in range(40):  # more than a pool of threads has
            with pytest.raises(TargetUnavailable, match="has been running for 0 s"):
                await s.apply()
        assert recorder.calls == [1]
        now_s[0] += 61
        with pytest.raises(FatalError, match="has been running for 61 s and does not end"):
            await s.apply()
        recorder.goes_on.set()
        async with asyncio.timeout(20):
            while True:
                with suppress(FatalError):
                    await s.apply()
                    break
        assert recorder.calls == [1, 1]
        assert len(await s.chunks()) == 1


async def test_a_search_whose_function_fails_says_what_to_do_and_ends(recorder: Recorder) -> None:
    """Unlike apply it does not go on by itself, and nobody starts it again. It asks before it connects."""
    recorder.goes_on = Event()
    fixes = []
    for timeout, down in (("10ms", None), ("60s", ConnectionError("refused"))):
        recorder.down = down
        config = config_for("postgresql://nobody@localhost:1/none", None, {"embedding": {"timeout": timeout}})
        settings = config.targets["vectors"]
        assert isinstance(settings, Settings)
        with pytest.raises(TargetUnavailable) as caught:
            await search(settings, config.flows["notes"], "words", 5)
        fixes.append(caught.value.fix)
        recorder.goes_on.set()
    assert fixes == [
        "see what it waits for (a slow one needs a longer embedding.timeout), then again",
        "again when it does",
    ]


async def test_what_is_wrong_with_the_function_is_said(
    recorder: Recorder, target_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def error(flow: dict[str, Any]) -> str:
        async with opened(target_database, flow) as s:
            s.table.create(note(1))
            s.table.create(note(2, "other"))
            return await s.stops()

    assert "the module 'no_such_module' cannot be imported" in await error({"embed": "no_such_module:embed"})
    (tmp_path / "a_program.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    program = await error({"embed": "a_program:embed"})
    assert "a_program.py:1 raises SystemExit: 3" in program
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


async def test_a_search_is_not_cut_short_by_what_is_deleted(recorder: Recorder, target_database: str) -> None:
    """An index gives the nearest that it knows, and what is gone is taken out of those."""
    given = {"delete": "soft(gone_at)"}
    config = config_for(target_database, given)
    settings = config.targets["vectors"]
    assert isinstance(settings, Settings)
    async with opened(target_database, given) as s:
        for number in range(300):
            s.table.create(note(number))
        await s.apply()
        (name,) = (await rows(s.url, "SELECT current_database()"))[0]
        await execute(
            s.url,
            "UPDATE search.notes SET embedding = format('[300,%s,300]', id + 1)::vector",
            "CREATE INDEX ON search.notes USING hnsw (embedding vector_cosine_ops)",
            "UPDATE search.notes SET gone_at = now() WHERE id >= 100",  # the words are nearest to 299
            f"ALTER DATABASE {name} SET enable_seqscan = off",
        )
        hits = await search(settings, config.flows["notes"], "words", 5)
        assert [hit.key["id"] for hit in hits] == [99, 98, 97, 96, 95]
        assert len(await search(settings, config.flows["notes"], "words", 200)) == 100
        await execute(s.url, "UPDATE search.notes SET embedding = '[0,0,0]', gone_at = NULL WHERE id < 50")
        for index in ("with", "without"):  # which leaves them out
            found = {hit.key["id"] for hit in await search(settings, config.flows["notes"], "words", 200)}
            assert found == set(range(50, 100)), index
            await execute(s.url, "DROP INDEX IF EXISTS search.notes_embedding_idx")
        recorder.zero = True
        with pytest.raises(ConfigError, match="the words have no direction"):
            await search(settings, config.flows["notes"], "words", 5)


# The doctor


async def test_the_doctor_tries_extension_function_and_columns(
    recorder: Recorder, database: str, target_database: str
) -> None:
    await execute(database, "CREATE TABLE notes (id int PRIMARY KEY, title text, body text, tag text)")

    async def found(flow: dict[str, Any], target: dict[str, Any] | None = None) -> dict[tuple[str, str], str]:
        """Of the target, without what every Postgres target is asked."""
        text = config_for(target_database, flow, target)
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
    assert (
        "search.notes.embedding is vector(3), and the flow notes makes vector(4)" in checks["columns", "fail"]
    )
    assert "have all embedded anew" in checks["columns", "fail"]
    recorder.down = RuntimeError("no key for the API")
    assert "no key for the API" in (await found({}))["embed", "fail"]
    recorder.goes_on = Event()
    hangs = await found({}, {"embedding": {"timeout": "10ms"}})
    recorder.goes_on.set()
    assert "for one word it does not answer within 0.01 s" in hangs["embed", "fail"]
