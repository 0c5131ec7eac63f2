"""Whatever is refused, parked, joined, replaced and retried: in the end the target has what it would have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.apply.assemble import Assembler
from consumers.apply.checkpoint import Place
from consumers.apply.dead_letters import DeadLetter
from consumers.apply.feed import Fetched, Standing
from consumers.apply.parking import Parking
from consumers.apply.queues import UNDECODABLE
from consumers.targets.base import AskedAnew, Batch, Outcome, RowsRefused
from consumers.targets.memory import MemoryStore, MemoryTarget
from consumers.testing import CLUSTER_ID, Log, LogTable
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.config import MemoryTarget as Settings

FLOW = Flow.model_validate({"__name__": "mirror", "from": "shop.public.*", "to": "copy.mirror"})
SETTINGS = Settings.model_validate({"__name__": "copy", "kind": "memory"})
TABLE = ("mirror", "people")
KEYS = 4

Row = dict[str, Any]
Step = tuple[str, int, bool, bool]  # what, key, bad, unchanged


class Kept:
    """The letters of a run."""

    target, topic = "copy", "copy.dead_letters"

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def publish(self, letters: Iterable[DeadLetter]) -> None:
        self.letters += letters


class Model:
    """The source's rows, and the log of what happened to them."""

    def __init__(self, log: Log, table: LogTable) -> None:
        self.rows: dict[int, Row] = {}
        self.poisoned: set[int] = set()
        self._log = log
        self._table = table
        self._count = 0
        self._epoch = 1

    def change(self, n: int, *, bad: bool, unchanged: bool) -> None:
        """Make the row, or update it; `unchanged`: with a placeholder for its note."""
        self._count += 1
        name = "bad" if bad else f"name {self._count}"
        known = self.rows.get(n)
        if known is None:
            self.rows[n] = {"id": n, "name": name, "note": f"note {self._count}"}
            self._table.create(self.rows[n], epoch=self._epoch)
        elif unchanged:
            self.rows[n] = {**known, "name": name}
            self._table.update({**self.rows[n], "note": UNAVAILABLE}, epoch=self._epoch)
            return
        else:
            self.rows[n] = {"id": n, "name": name, "note": f"note {self._count}"}
            self._table.update(self.rows[n], epoch=self._epoch)

    def delete(self, n: int) -> None:
        if self.rows.pop(n, None) is not None:
            self._table.delete({"id": n}, epoch=self._epoch)

    def truncate(self) -> None:
        self.rows.clear()
        self._table.truncate(epoch=self._epoch)

    def reset(self) -> None:
        """A copy of everything under the next epoch, and the floor at its end."""
        self._epoch += 1
        for row in self.rows.values():
            self._table.read(row, epoch=self._epoch)
        self._table.floor(self._epoch)

    def lose(self, n: int) -> None:
        """What nobody captures: a reset tells of it."""
        self.rows.pop(n, None)
        self.reset()

    def poison(self, n: int) -> None:
        self._log.append(self._table.topic, self._table.key_of({"id": n}), b"\xff not an event")
        self.poisoned.add(n)


class Between(MemoryTarget):
    """`wish`: what an operator asks for of everything, between what is read of a batch and its writing."""

    wish = ""

    async def apply(self, batch: Batch) -> Outcome:
        wish, self.wish = self.wish, ""
        if wish:
            await self.ask([(entry.place, entry.key) for entry in await self.parked()], wish, "ann@host")
        return await super().apply(batch)


class Process:
    """What the loop does with one batch after the other."""

    def __init__(self, log: Log, store: MemoryStore, letters: Kept) -> None:
        self._log = log
        self._letters = letters
        self._assembler = Assembler(log)
        self.target = Between(SETTINGS, store.group, [FLOW], store=store)
        self.parking = Parking(self.target, letters, [FLOW], log, SETTINGS.dead_letters, queue_changes=3)
        self._known: set[Place] = set()

    async def batch(self, wish: str = "") -> bool:
        """`wish`: what an operator asks for of everything while it is written; whether that was so."""
        self.target.wish = wish
        places = self._log.places([FLOW])
        checkpoints = await self.target.checkpoints(places)
        added = {place: at for place, at in checkpoints.items() if place not in self._known}
        self.parking.lot.load(added, await self.target.parked(added), CLUSTER_ID)
        self._known |= set(added)
        standings, records, ends = {}, {}, {}
        for place, checkpoint in checkpoints.items():
            at = TopicPartition(place.topic, place.partition)
            ends[at] = len(self._log.records[at])
            standings[at] = Standing({FLOW.name: checkpoint.next_offset})
            if checkpoint.next_offset < ends[at]:
                records[at] = self._log.records[at][checkpoint.next_offset :]
        flows = {at.topic: [FLOW] for at in standings}
        prepared = await self._assembler.assemble(Fetched(records, ends, 0), standings, flows, CLUSTER_ID)
        while prepared.batch.moves:
            await self.parking.stage(prepared)
            try:
                outcome = await self.target.apply(prepared.batch)
            except AskedAnew:
                continue
            except RowsRefused as error:
                await self.parking.refuse(prepared, error.rows)
                continue
            assert not outcome.lost
            self.parking.committed(prepared, outcome)
            break
        asked = self.target.wish != wish
        self.target.wish = ""
        await self.attend()
        return asked

    async def mark(self, action: str = "retry") -> None:
        """An operator asks, and a batch may come before the owner looks."""
        await self.target.ask([(e.place, e.key) for e in await self.target.parked()], action, "ann@host")

    async def retry(self) -> None:
        await self.mark()
        await self.attend()

    async def attend(self) -> None:
        await self.parking.retrying.attend({(place.topic, place.partition) for place in self._known})


def rule(row: Row) -> str | None:
    return "bad names do not fit" if row["name"] == "bad" else None


def by_id(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: int(row["id"]))


async def drive(steps: list[Step]) -> None:
    store, letters, log = MemoryStore("acme.copy"), Kept(), Log("shop")
    store.rules[TABLE] = rule
    table = log.table("people", {"id": "integer", "name": "text", "note": "text"})
    model = Model(log, table)
    process = Process(log, store, letters)
    await process.target.open()
    for what, n, bad, unchanged in steps:
        if what == "change":
            model.change(n, bad=bad, unchanged=unchanged)
        elif what == "delete":
            model.delete(n)
        elif what == "truncate":
            model.truncate()
        elif what == "reset":
            model.reset()
        elif what == "lose":
            model.lose(n)
        elif what == "poison":
            model.poison(n)
        elif what == "rules":
            store.rules = {} if store.rules else {TABLE: rule}
        elif what == "restart":
            await process.target.close()
            process = Process(log, store, letters)
            await process.target.open()
        elif what == "mark":
            await process.mark()
        elif what == "retry":
            await process.retry()
        elif what == "batch":
            parked = {entry.key for entry in await process.target.parked()}
            marked = {entry.key for entry in await process.target.parked(asked=True)}
            marked |= parked if await process.batch("retry" if unchanged else "") else set()
            left = {e.key for e in await process.target.parked() if e.code != UNDECODABLE}
            assert store.rules or not left & marked  # carried out, whatever came in between
            await others_flow(process, store, model, letters, table)
    for n in model.poisoned:  # nobody knows what it said: a whole row ends that
        model.change(n, bad=False, unchanged=False)
    await process.batch()
    store.rules.clear()
    await process.retry()
    assert await process.target.parked() == []
    assert not process.parking.lot.has_any
    assert by_id(store.rows(*TABLE)) == by_id(model.rows.values())


async def others_flow(
    process: Process, store: MemoryStore, model: Model, letters: Kept, table: LogTable
) -> None:
    """All has been read: keys that are not parked are as in the source; the others have a letter each."""
    parked = {entry.key for entry in await process.target.parked()}
    found = {table.key_of(row): row for row in store.rows(*TABLE)}
    wanted = {table.key_of(row): row for row in model.rows.values()}
    for key in (found.keys() | wanted.keys()) - parked:
        assert found.get(key) == wanted.get(key)
    assert parked <= {letter.key for letter in letters.letters}


WHATS = ["change"] * 6 + ["delete", "batch", "batch", "mark", "retry", "rules", "restart", "poison"]
WHATS += ["truncate", "reset", "lose"]
STEPS = st.tuples(st.sampled_from(WHATS), st.integers(1, KEYS), st.booleans(), st.booleans())


def step(what: str, *, bad: bool = False, unchanged: bool = False) -> Step:
    return what, 1, bad, unchanged


# An operator asks for a retry, and a change that needs what waits, or takes its place, comes first.
MARKED = [step("change", bad=True), step("batch"), step("rules"), step("mark")]


@example([*MARKED, step("change", unchanged=True), step("batch")])
@example([*MARKED, step("change"), step("batch")])
@example([*MARKED[:3], step("change"), step("batch", unchanged=True)])
@example([*MARKED[:3], step("change", unchanged=True), step("batch", unchanged=True)])
@given(st.lists(STEPS, max_size=40))
def test_h24_after_a_retry_the_target_has_what_a_fold_of_everything_gives(steps: list[Step]) -> None:
    asyncio.run(drive(steps))


async def test_h24_a_discard_takes_no_newer_row_with_it() -> None:
    """The operator meant what was there; the row that comes before the owner looks is applied as usual."""
    store, letters, log = MemoryStore("acme.copy"), Kept(), Log("shop")
    store.rules[TABLE] = rule
    table = log.table("people", {"id": "integer", "name": "text", "note": "text"})
    process = Process(log, store, letters)
    await process.target.open()
    for n in (1, 2):
        table.create({"id": n, "name": "bad", "note": ""})
    await process.batch()
    await process.mark("discard")
    table.update({"id": 1, "name": "mended", "note": ""})
    await process.batch()
    assert store.rows(*TABLE) == [{"id": 1, "name": "mended", "note": ""}]
    assert await process.target.parked() == []
    assert [(letter.key, letter.action) for letter in letters.letters[2:]] == [(b'{"id":2}', "discarded")]


async def test_h24_a_row_that_comes_after_a_truncate_waits_behind_nothing() -> None:
    """What was parked is at or below the floor: it is over, and the key flows again in the same batch."""
    store, letters, log = MemoryStore("acme.copy"), Kept(), Log("shop")
    store.rules[TABLE] = rule
    table = log.table("people", {"id": "integer", "name": "text", "note": "text"})
    process = Process(log, store, letters)
    await process.target.open()
    table.create({"id": 1, "name": "bad", "note": ""})
    await process.batch()
    table.truncate()
    table.create({"id": 1, "name": "good", "note": ""})
    await process.batch()
    assert store.rows(*TABLE) == [{"id": 1, "name": "good", "note": ""}]
    assert await process.target.parked() == []


async def test_h24_a_discard_between_the_reading_of_a_mark_and_its_writing_wins() -> None:
    """A retry is being carried out when the operator changes their mind: nothing of it is written."""
    store, letters, log = MemoryStore("acme.copy"), Kept(), Log("shop")
    store.rules[TABLE] = rule
    table = log.table("people", {"id": "integer", "name": "text", "note": "text"})
    process = Process(log, store, letters)
    await process.target.open()
    table.create({"id": 1, "name": "bad", "note": ""})
    await process.batch()
    store.rules.clear()
    await process.mark("retry")
    process.target.wish = "discard"
    await process.attend()
    assert store.rows(*TABLE) == []
    assert [entry.asked for entry in await process.target.parked()] == ["discard"]
    await process.attend()
    assert await process.target.parked() == []
    assert [letter.action for letter in letters.letters] == ["parked", "discarded"]
    assert store.rows(*TABLE) == []
