"""The pgvector target: what is embedded, and when."""

from __future__ import annotations

import asyncio

import psycopg

from streamer.changes.kinds import UNAVAILABLE
from tests.harness.capture import until
from tests.harness.given import execute, rows
from tests.harness.recorder import Recorder
from tests.harness.vectors import note, opened


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
