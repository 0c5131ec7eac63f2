"""Rows and checkpoints: together or not at all, whoever dies or comes too late."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from consumers.apply.checkpoint import Place
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
        await s.target.sweep(0)
        assert await adapter.tombstones() == 0


async def test_a_topic_of_another_source_has_its_own_checkpoints(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"from": f"{SOURCE}.public.people"}}) as s:
        people(s.log).create(person(1))
        s.log.table("things", {"id": "integer"}).create({"id": 1})
        await s.apply()
        assert {place.topic for place in await s.stands()} == {f"{SOURCE}.public.people"}
