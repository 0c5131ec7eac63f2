"""Rows and checkpoints: together or not at all, whoever dies or comes too late."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from consumers.apply.checkpoint import ANYWHERE, LastRecord, Move, Place, Rewind
from streamer.errors import TailraceError, TargetUnavailable
from tests.conformance.adapters import ADAPTERS
from tests.conformance.adapters.base import SOURCE, Adapter
from tests.conformance.sessions import people, person, session
from tests.conformance.victim import log_of_the_victim

REPO = Path(__file__).parents[2]


async def test_checkpoints_begin_at_zero_and_name_the_last_record(adapter: Adapter) -> None:
    async with session(adapter) as s:
        people(s.log).create(person(1))
        (place,) = s.log.places(s.flows)
        found = (await s.target.checkpoints([place]))[place]
        assert (found.next_offset, found.last) == (0, None)
        await s.apply()
        async with s.another() as other:
            found = (await other.target.checkpoints([place]))[place]
            assert found.next_offset == 1
            assert found.cluster_id == "in-memory"
            assert found.last is not None
            assert found.last.offset == 0


@pytest.mark.needs("durable")
async def test_kill_9_between_rows_and_checkpoint(adapter: Adapter) -> None:
    """A process really dies there; what it leaves is all of the batch or none, and the next one ends it."""
    assert adapter.killed_at is not None
    kind = next(kind for kind, made in ADAPTERS.items() if isinstance(adapter, made))
    log = log_of_the_victim()
    async with session(adapter, log=log) as s:
        first = dict.fromkeys(log.places(s.flows), 0)
        ends = {(place.topic, place.partition): 1 for place in first}
        await s.target.checkpoints(first)
        await s.target.apply(await log.batch(s.flows, first, ends))  # type: ignore[arg-type]
        before = await s.rows()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.conformance.victim",
            json.dumps({"kind": kind, "address": adapter.address}),
            cwd=REPO,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        stands = await s.stands()
        assert set(stands.values()) == {1}, "the checkpoint was moved before the rows were there"
        left = await s.rows()
        outcome = await s.apply()
        assert outcome.lost == []
        rows = await s.rows()
        assert rows == [person(number, f"v{number % 5}") for number in range(40) if number % 4]
        assert left in (before, rows), "a part of the batch was left behind"


async def test_a_stale_writer_writes_nothing(adapter: Adapter) -> None:
    """Two processes after a rebalance: the one that has lost the partition does not know it yet."""
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        for number in range(1, 9):
            table.create(person(number, "first"))
        stale = await s.batch()
        await other.apply()
        for number in range(1, 9):
            table.delete(person(number))
        await other.apply()
        outcome = await s.target.apply(stale)
        assert set(outcome.lost) == {move.place for move in stale.moves}
        assert not outcome.applied.get("mirror")
        assert await s.rows() == []
        ends = await s.stands()
        assert ends == {place: len(s.log.records[place[1:]]) for place in ends}  # type: ignore[index]


async def test_a_lost_partition_costs_its_own_rows_only(adapter: Adapter) -> None:
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        at = {number: table.create(person(number, "first")).partition for number in range(1, 9)}
        assert set(at.values()) == {0, 1}
        await s.apply()
        for number in at:
            table.update(person(number, "second"))
        table.truncate()  # in partition 0, which is lost
        mixed = await s.batch()
        topic = table.topic
        only = {Place("mirror", topic, 0): (await s.stands())[Place("mirror", topic, 0)]}
        await other.target.apply(await s.log.batch(s.flows, only))
        for number in at:
            table.create(person(number + 100, "third"))
        outcome = await s.target.apply(mixed)
        assert outcome.lost == [Place("mirror", topic, 0)]
        await s.apply()
        assert await s.rows() == [person(number + 100, "third") for number in sorted(at)]


async def test_a_line_that_is_cut_is_an_outage(adapter: Adapter) -> None:
    """All of it again, once the session is opened anew."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        table.create(person(2))
        batch = await s.batch()
        await adapter.cut()
        with pytest.raises(TargetUnavailable):
            await s.target.apply(batch)
        await s.target.open()
        await s.target.apply(batch)
        assert await s.rows() == [person(1), person(2)]


async def test_h30_a_target_is_bound_to_its_group(adapter: Adapter) -> None:
    async with session(adapter) as s:
        await s.apply()
        async with s.another() as other:
            assert s.target.id == other.target.id != ""
        stranger = adapter.target(adapter.config(), "acme.other")
        try:
            with pytest.raises(TailraceError, match=r"acme\.copy"):
                await stranger.open()
        finally:
            await stranger.close()


async def test_tombstones_are_kept_for_as_long_as_they_are_asked(adapter: Adapter) -> None:
    """While one is kept nothing older comes back; after that it may."""
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(5):
            table.create(person(number), 100, number)
            table.delete(person(number), 200, number)
        await s.apply()
        assert await adapter.tombstones() == 5
        await s.target.sweep(3600)
        assert await adapter.tombstones() == 5
        table.read(person(1, "older"), 150)
        await s.apply()
        assert await s.rows() == []
        for _ in range(adapter.sweeps):
            await s.target.sweep(0)
        assert await adapter.tombstones() == 0


async def test_a_topic_of_another_source_has_its_own_checkpoints(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"from": f"{SOURCE}.public.people"}}) as s:
        people(s.log).create(person(1))
        s.log.table("things", {"id": "integer"}).create({"id": 1})
        await s.apply()
        assert {place.topic for place in await s.stands()} == {f"{SOURCE}.public.people"}


LAST = LastRecord(2, 77, 1, 40, 0)


async def test_a_rewind_sets_checkpoints_back_and_says_how_far_it_is_a_replay(adapter: Adapter) -> None:
    """Only back, and only what is there; a second one before the first is done keeps the first one's end."""
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        for number in range(1, 13):
            table.create(person(number, "first"))
        await s.apply()
        before = await s.target.checkpoints(s.log.places(s.flows))
        place, beside = sorted(before, key=lambda p: before[p].next_offset, reverse=True)
        end = before[place].next_offset
        nowhere = Place("mirror", table.topic, 9)
        rewinds = [
            Rewind(place, 3, LAST),
            Rewind(beside, before[beside].next_offset, None),
            Rewind(nowhere, 0, None),
        ]
        assert await other.target.rewind(rewinds, "ann@desk") == {place: before[place]}
        found = await s.target.checkpoints([place, beside])
        assert (found[place].next_offset, found[place].last, found[place].replay_until) == (3, LAST, end)
        assert found[place].cluster_id == before[place].cluster_id
        assert found[beside] == before[beside]
        assert nowhere not in (await s.target.look([nowhere])).stands
        assert set(await s.target.rewind([Rewind(place, 0, None)], "bob@desk")) == {place}
        again = (await other.target.checkpoints([place]))[place]
        assert (again.next_offset, again.last, again.replay_until) == (0, None, end)
        assert await s.target.rewind([Rewind(place, 1, None)], "bob@desk") == {}
        await s.apply()
        assert (await s.stands())[place] == end
        assert await s.rows() == [person(number, "first") for number in range(1, 13)]


async def test_what_was_read_before_a_rewind_is_refused(adapter: Adapter) -> None:
    """A process that has a batch in hand writes nothing of it; from the new offset it all goes."""
    async with session(adapter) as s, s.another() as operator:
        table = people(s.log)
        for number in range(1, 9):
            table.create(person(number, "first"))
        await s.apply()
        for number in range(1, 9):
            table.update(person(number, "second"))
        batch = await s.batch()
        back = [Rewind(place, 0, None) for place in s.log.places(s.flows)]
        assert len(await operator.target.rewind(back, "ann")) == 2
        outcome = await s.target.apply(batch)
        assert set(outcome.lost) == {rewind.place for rewind in back}
        assert await s.rows() == [person(number, "first") for number in range(1, 9)]
        await s.apply()
        assert await s.rows() == [person(number, "second") for number in range(1, 9)]


async def test_a_replay_step_by_step_never_takes_a_row_back(adapter: Adapter) -> None:
    """Every event again, in batches as small as can be: newer rows stay, and what was deleted stays gone."""
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(1, 7):
            for name in ("first", "second", "third"):
                table.create(person(number, name))
        table.delete(person(1))
        table.delete(person(2))
        table.truncate()
        for number in range(2, 7):
            table.create(person(number, "last"))
        table.delete(person(6))
        await s.apply()
        rows = [person(number, "last") for number in range(2, 6)]
        assert await s.rows() == rows
        ends = await s.stands()
        await s.target.rewind([Rewind(place, 0, None) for place in ends], "ann")
        for place, end in ends.items():
            for offset in range(end):
                upto = {(place.topic, place.partition): offset + 1}
                await s.target.apply(await s.log.batch(s.flows, {place: offset}, upto))  # type: ignore[arg-type]
                assert await s.rows() == rows
        assert await s.stands() == ends


async def test_rows_that_are_written_anywhere_move_no_checkpoint(adapter: Adapter) -> None:
    """Beside the process that applies: older rows are put where they are missing, and nowhere else."""
    async with session(adapter) as s, s.another() as beside:
        table = people(s.log)
        for number in range(1, 9):
            table.create(person(number, "first"))
        places = s.log.places(s.flows)
        old = await s.log.batch(s.flows, dict.fromkeys(places, 0))
        await beside.target.checkpoints(places)  # what a session knows of tombstones is from here
        await s.apply()
        table.update(person(1, "second"))
        table.delete(person(2))
        await s.apply()
        ends = await s.stands()
        old.moves = [Move(place, ANYWHERE, ANYWHERE, None) for place in places]
        outcome = await beside.target.apply(old)
        assert outcome.lost == []
        assert await s.rows() == [
            person(1, "second"),
            *(person(number, "first") for number in range(3, 9)),
        ]
        assert await s.stands() == ends
        nowhere = Place("mirror", table.topic, 9)
        old.moves = [Move(nowhere, ANYWHERE, ANYWHERE, None)]
        old.tables.clear()
        assert (await beside.target.apply(old)).lost == [nowhere]


async def test_versions_of_keys_tell_what_a_replay_would_change(adapter: Adapter) -> None:
    """The row's, its delete's, a truncate's; nothing of a row that somebody has taken away. Reads only."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1), 10)
        table.truncate(20)
        for number in (2, 3, 4):
            table.create(person(number), 100 + number)
        table.update(person(3, "later"), 203)
        table.delete(person(4), 204)
        await s.apply()
        places = s.log.places(s.flows)
        everything = await s.log.batch(s.flows, dict.fromkeys(places, 0))
        found = await s.target.versions(everything)
        if found is None:
            assert not adapter.tells_versions
            return
        assert adapter.tells_versions
        by_key = {json.loads(key)["id"]: version for (_, key), version in found.items()}
        by_key.pop(1, None)  # dropped by the batch's own truncate where the fold has it
        assert by_key == {2: (1, 102, 0), 3: (1, 203, 0), 4: (1, 204, 0)}
        table.create(person(5), 300)
        unseen = await s.target.versions(await s.batch())
        assert unseen is not None
        assert set(unseen.values()) == {(1, 20, 0)}
