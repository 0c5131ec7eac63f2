"""Any run of changes, batches, replays, stale writers and cut lines leaves what the source has.

The model is the source: rows by key. Changes follow it (nothing is updated that is not there), and after
all is applied the target's rows are the model's. Between them the target has, at any moment, what the
furthest offset of each partition says, however often parts of the log come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from aiokafka import TopicPartition
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM
from consumers.targets.base import Target
from consumers.testing import Log
from streamer.changes.envelope import decode_value
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.errors import TargetUnavailable
from tests.conformance.adapters.base import Adapter, Row, fresh_name
from tests.conformance.sessions import people, person

KEYS = st.integers(1, 4)
EXAMPLES, STEPS = 6, 12  # in the fast suite
THOROUGH_EXAMPLES, THOROUGH_STEPS = 30, 15
SLOW_EXAMPLES, SLOW_STEPS = 300, 30


class Machine(RuleBasedStateMachine):
    """Two sessions with one store; `adapter` and `runner` are set by the test."""

    adapter: Adapter
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.source = fresh_name()  # topics, tables and checkpoints of this run's own
        flow = {self.source: {"to": f"copy.{self.source}"}}
        self.config = self.adapter.config(flow, source=self.source)
        self.flows: list[Flow] = list(self.config.flows.values())
        self.log = Log(self.source)
        self.table = people(self.log)
        self.model: dict[int, Row] = {}
        self.count = 0
        self.reached: dict[TopicPartition, int] = {}  # the furthest that the target has been
        self.ahead: list[tuple[TopicPartition, int]] = []  # truncates that have taken rows already
        self.sessions: list[Target] = [self.adapter.target(self.config) for _ in range(2)]
        for target in self.sessions:
            self.wait(target.open())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            for target in self.sessions:
                self.wait(target.close())

    # The source

    def name(self) -> str:
        self.count += 1
        return f"n{self.count}"

    # Two rules, since hypothesis leaves out some of many in each run
    @rule(data=st.data(), actions=st.lists(st.sampled_from("wwwwppddmtr"), min_size=1, max_size=8))
    def change(self, data: st.DataObject, actions: list[str]) -> None:
        for action in actions:
            if action == "w":
                self.write(data.draw(KEYS), data.draw(st.sampled_from([None, "", "large"])))
            elif action == "t":
                self.truncate()
            elif self.model:
                key = data.draw(st.sampled_from(sorted(self.model)))
                if action == "m":
                    self.move(key, data.draw(KEYS))
                else:
                    {"p": self.patch, "d": self.delete, "r": self.read_again}[action](key)

    def write(self, key: int, note: str | None) -> None:
        row = person(key, self.name(), note)
        if key in self.model:
            self.table.update(row)
        else:
            self.table.create(row)
        self.model[key] = row

    def patch(self, key: int) -> None:
        """The large value is not in the event."""
        row = person(key, self.name(), UNAVAILABLE)
        self.table.update(row)
        self.model[key] = {**row, "note": self.model[key]["note"]}

    def delete(self, key: int) -> None:
        self.table.delete(person(key))
        del self.model[key]

    def move(self, key: int, new: int) -> None:
        """A key change: a delete and a create in one transaction."""
        if new in self.model:
            return
        row = {**self.model.pop(key), "id": new}
        lsn = self.log.commit_lsn + 8
        self.table.delete(person(key), lsn, 0)
        self.table.create(row, lsn, 1)
        self.model[new] = row

    def truncate(self) -> None:
        self.table.truncate()
        self.model.clear()

    def read_again(self, key: int) -> None:
        """A row of a backfill, with the version of its moment."""
        self.table.read(self.model[key])

    # The target

    def stands(self, writer: int = 0) -> dict[Place, int]:
        """Asked by whoever takes the partitions over, before it writes."""
        found = self.wait(self.sessions[writer].checkpoints(self.log.places(self.flows)))
        return {place: checkpoint.next_offset for place, checkpoint in found.items()}

    def write_part(self, writer: int, starts: dict[Place, int], data: st.DataObject) -> list[Place]:
        """Gives the places that were lost."""
        ends = {
            TopicPartition(place.topic, place.partition): data.draw(
                st.integers(start, len(self.log.records[TopicPartition(*place[1:])]))
            )
            for place, start in starts.items()
        }
        batch = self.wait(self.log.batch(self.flows, starts, ends))
        if not batch.moves:
            return []
        if data.draw(st.booleans()):
            self.wait(self.sessions[writer].prepare(batch))
        lost: list[Place] = self.wait(self.sessions[writer].apply(batch)).lost
        self.reach({move.place: move.next_offset for move in batch.moves if move.place not in lost})
        for place in lost:  # what is older than a truncate in the same batch was folded away in any case
            at = TopicPartition(place.topic, place.partition)
            self.ahead += [(at, n) for n in range(starts[place], ends[at]) if self.is_truncate(at, n)]
        return lost

    def is_truncate(self, at: TopicPartition, offset: int) -> bool:
        record = self.log.records[at][offset]
        return record.value is not None and decode_value(record.value, where="", offset=0).op == "t"

    def reach(self, ends: dict[Place, int]) -> None:
        for place, end in ends.items():
            at = TopicPartition(place.topic, place.partition)
            self.reached[at] = max(end, self.reached.get(at, 0))

    def expected(self) -> list[Row]:
        """One by one, each partition up to where the target has been."""
        changes = [
            (record.key, decode_value(record.value, where="", offset=0))
            for at, end in self.reached.items()
            for record in self.log.records[at][:end]
            if record.value is not None
        ]
        floor = max([change.version for _, change in changes if change.op == "t"], default=BOTTOM)
        rows: dict[bytes, Row] = {}
        for key, change in changes:
            if key is None or change.version <= floor:
                continue
            if change.after is None:
                rows.pop(key, None)
            else:
                known = rows.get(key, {})
                rows[key] = {n: known[n] if v == UNAVAILABLE else v for n, v in change.after.items()}
        return sorted(rows.values(), key=lambda row: row["id"])

    def found(self) -> list[Row]:
        rows = self.wait(self.adapter.read_rows("people", self.source))
        return sorted(rows, key=lambda row: row["id"])

    @rule(how=st.sampled_from("aaallrrrc"), writer=st.integers(0, 1), data=st.data())
    @precondition(lambda self: self.log.records)
    def deliver(self, how: str, writer: int, data: st.DataObject) -> None:
        if how == "c":
            self.cut()
        elif how == "r":
            self.replay(writer, data)
        else:
            {"a": self.apply, "l": self.apply_late}[how](writer, data)

    def apply(self, writer: int, data: st.DataObject) -> None:
        """A part of what is new, by whoever has the partitions."""
        assert self.write_part(writer, self.stands(writer), data) == []

    def apply_late(self, writer: int, data: st.DataObject) -> None:
        """By a process that has lost its partitions: it read them at other offsets."""
        stands = self.stands()
        stale = {place: data.draw(st.integers(0, at)) for place, at in stands.items()}
        wrong = {place for place, at in stale.items() if at != stands[place]}
        lost = set(self.write_part(writer, stale, data))
        assert lost <= wrong
        after = self.stands()
        assert {place: after[place] for place in wrong} == {place: stands[place] for place in wrong}

    def replay(self, writer: int, data: st.DataObject) -> None:
        """From anywhere to anywhere; the next batch goes on from there."""
        for place, at in self.stands().items():
            offset = data.draw(st.integers(0, at))
            self.wait(self.adapter.rewind([place], offset))
        assert self.write_part(writer, self.stands(writer), data) == []

    def cut(self) -> None:
        """Both sessions end, and are opened again."""
        self.wait(self.adapter.cut())
        for target in self.sessions:
            with pytest.raises(TargetUnavailable):
                self.wait(target.count_rows(self.source, self.source, "people"))
            self.wait(target.open())

    def settle(self) -> None:
        """All of it."""
        self.wait(self.log.apply(self.sessions[0], self.flows))
        self.reach(self.stands())
        assert self.found() == [row for _, row in sorted(self.model.items())]

    @invariant()
    def nothing_goes_back(self) -> None:
        if any(self.reached.get(at, 0) <= offset for at, offset in self.ahead):
            return  # their partition is another writer's, who has yet to apply them
        assert self.found() == self.expected()


def run(adapter: Adapter, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        made = type("Machine", (Machine,), {"adapter": adapter, "runner": runner})
        run_state_machine_as_test(
            made,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )


def test_any_run_leaves_what_the_source_has(adapter: Adapter) -> None:
    run(adapter, EXAMPLES, STEPS)


@pytest.mark.thorough
def test_any_of_many_runs_leaves_what_the_source_has(adapter: Adapter) -> None:
    run(adapter, THOROUGH_EXAMPLES // adapter.dearness, THOROUGH_STEPS)


@pytest.mark.slow
def test_any_long_run_leaves_what_the_source_has(adapter: Adapter) -> None:
    run(adapter, SLOW_EXAMPLES // adapter.dearness, SLOW_STEPS)
