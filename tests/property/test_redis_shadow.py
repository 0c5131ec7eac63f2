"""The shadow's copy gives what comparing dicts gives: over commits, rollbacks, restarts and rebuilds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamer.errors import FatalError
from streamer.redis.shadow import Changed, Pass, Shadow
from streamer.redis.shadow_records import Place, digest_of, dump_key, dump_value

Rows = dict[bytes, bytes]
Model = dict[Place, Rows]

SINGLES = [Place("one", 0, key, b'{"k":"%b"}' % key, True) for key in (b"a", b"b", b"c")]
SINGLES += [Place("one", 1, b"a", b'{"k":"a"}', True)]
EXPLODED = [Place("many", 0, key, b'{"k":"%b","m":' % key, False) for key in (b"x", b"y")]
MEMBERS = [b'"%d"' % number for number in range(6)]
row_bodies = st.sampled_from([b"1", b"2", b"3"])
exploded_rows = st.dictionaries(st.sampled_from(MEMBERS), row_bodies)


def place_of(entity: str, db: int, key: bytes) -> Place | None:
    return next((p for p in SINGLES + EXPLODED if p[:3] == (entity, db, key)), None)


def rows_at(place: Place, bodies: dict[bytes, bytes]) -> Rows:
    return {place.head + name + b"}": place.head + name + b"," + body for name, body in bodies.items()}


def plain(changes: list[Changed]) -> set[tuple[bytes, bytes | None, bool]]:
    assert len({(c.place, c.row_key) for c in changes}) == len(changes)
    for change in changes:
        assert change.digest == (0 if change.row is None else digest_of(change.row))
    return {(change.row_key, change.row, change.was_there) for change in changes}


def differences(before: Rows, after: Rows) -> set[tuple[bytes, bytes | None, bool]]:
    found: set[tuple[bytes, bytes | None, bool]] = {(key, None, True) for key in before if key not in after}
    return found | {(k, row, k in before) for k, row in after.items() if before.get(k) != row}


class ShadowMachine(RuleBasedStateMachine):
    """`committed`, then one model a cut, then `staged`: each holds the whole of what is known there."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.committed: Model = {}
        self.cuts: list[tuple[int, Model]] = []
        self.staged: Model = {}
        self.flush = 0
        self.topic: dict[bytes, bytes | None] = {}
        self.unwritten: list[Changed] = []
        self.written: list[tuple[int, list[Changed]]] = []
        self.walk: Pass | None = None
        self.met: set[Place] = set()
        self.shadow = self.opened()

    def opened(self, name: str = "s.db") -> Shadow:
        return Shadow(self.folder / name, cluster="c", fingerprint="f", place_of=place_of)

    def teardown(self) -> None:
        if hasattr(self, "shadow"):
            self.shadow.close()
            shutil.rmtree(self.folder)

    def changed(self, place: Place, after: Rows, changes: list[Changed]) -> None:
        assert plain(changes) == differences(self.staged.get(place, {}), after)
        self.staged = {**self.staged, place: after}
        self.unwritten += changes
        self.met.add(place)

    @rule(
        place=st.sampled_from(EXPLODED),
        bodies=exploded_rows,
        keep=st.sets(st.sampled_from(MEMBERS), max_size=2),
    )
    def a_small_key_is_read(self, place: Place, bodies: dict[bytes, bytes], keep: set[bytes]) -> None:
        rows = rows_at(place, {name: body for name, body in bodies.items() if name not in keep})
        kept = [place.head + name + b"}" for name in keep]
        was = self.staged.get(place, {})
        self.changed(place, rows | {k: was[k] for k in kept if k in was}, self.shadow.diff(place, rows, kept))

    @rule(states=st.lists(st.tuples(st.sampled_from(SINGLES), st.none() | row_bodies), max_size=4))
    def keys_are_read(self, states: list[tuple[Place, bytes | None]]) -> None:
        changes = self.shadow.diff_keys(states)
        last = dict(states)
        if len(last) < len(states):  # one read after the other, in one batch
            found = {change.place: change for change in changes}
            for place, row in last.items():
                assert place not in found or found[place].row == row
            self.unwritten += changes
        for place, row in last.items():
            rows = {} if row is None else {place.head: row}
            if len(last) == len(states):
                self.changed(place, rows, [change for change in changes if change.place == place])
            self.staged = {**self.staged, place: rows}
            self.met.add(place)

    @rule(place=st.sampled_from(EXPLODED), bodies=exploded_rows, chunk=st.integers(1, 4))
    def a_large_key_is_walked(self, place: Place, bodies: dict[bytes, bytes], chunk: int) -> None:
        rows = list(rows_at(place, bodies).items())
        marks = self.shadow.begin_members()
        changes: list[Changed] = []
        for start in range(0, len(rows), chunk):
            changes += self.shadow.diff_members(place, dict(rows[start : start + chunk]), marks)
        for candidates in self.shadow.members_not_seen(place, marks):
            assert not set(candidates) & {key for key, _ in rows}
            changes += self.shadow.gone(place, candidates)
        self.changed(place, dict(rows), changes)

    @rule(place=st.sampled_from(EXPLODED + SINGLES), names=st.sets(st.sampled_from(MEMBERS)))
    def rows_are_gone(self, place: Place, names: set[bytes]) -> None:
        was = self.staged.get(place, {})
        keys = {place.head} if place.single else {place.head + name + b"}" for name in names}
        met = set(self.met)
        self.changed(place, {k: r for k, r in was.items() if k not in keys}, self.shadow.gone(place, keys))
        self.met = met

    @rule()
    def a_flush_begins(self) -> None:
        self.flush += 1
        self.shadow.cut(self.flush)
        self.cuts.append((self.flush, self.staged))
        self.written.append((self.flush, self.unwritten))
        self.unwritten = []

    @precondition(lambda self: self.cuts)
    @rule(data=st.data())
    def a_flush_is_durable(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.cuts)))
        flush, self.committed = self.cuts[count - 1]
        for _, changes in self.written[:count]:
            self.publish(changes)
        self.cuts, self.written = self.cuts[count:], self.written[count:]
        self.shadow.committed(flush, flush * 10)
        assert self.shadow.stamp == (flush * 10, flush)

    @rule()
    def all_is_durable(self) -> None:
        self.flush += 1
        for _, changes in self.written:
            self.publish(changes)
        self.publish(self.unwritten)
        self.shadow.committed(self.flush, self.flush * 10)
        self.committed, self.cuts, self.written, self.unwritten = self.staged, [], [], []

    def publish(self, changes: list[Changed]) -> None:
        for change in changes:
            value = None if change.row is None else dump_value(1, change.digest)
            self.topic[dump_key(change.place, change.row_key)] = value

    def forget(self) -> None:
        self.staged, self.cuts, self.written, self.unwritten = self.committed, [], [], []
        self.walk, self.met = None, set()

    @rule()
    def a_flush_fails(self) -> None:
        walk, had = self.walk, [place for place, rows in self.committed.items() if rows]
        self.shadow.rollback()
        self.forget()
        if walk is not None and had:
            with pytest.raises(FatalError, match="after a rollback"):
                list(self.shadow.keys_not_seen(walk))

    @rule()
    def the_process_starts_again(self) -> None:
        stamp = self.shadow.stamp
        self.shadow.close()
        self.shadow = self.opened()
        assert self.shadow.stamp == stamp
        self.forget()

    @rule(chunk=st.integers(1, 5))
    def another_machine_reads_the_topic(self, chunk: int) -> None:
        """The copy is lost; the topic has all that was committed."""
        self.shadow.close()
        shutil.rmtree(self.folder)
        self.shadow = self.opened()
        assert self.shadow.stamp is None
        records = list(self.topic.items())
        for start in range(0, len(records), chunk):
            self.shadow.load(records[start : start + chunk], start + chunk, self.flush)
            if chunk % 2:
                self.shadow.loaded(start + chunk, self.flush)
        self.shadow.loaded(len(records), self.flush)
        self.forget()

    @rule()
    def a_pass_begins(self) -> None:
        if self.walk is not None:
            self.shadow.end_pass(self.walk)
        self.walk = self.shadow.begin_pass()
        self.met = set()

    @precondition(lambda self: self.walk is not None)
    @rule()
    def a_pass_ends(self) -> None:
        assert self.walk is not None
        found = [place for places in self.shadow.keys_not_seen(self.walk) for place in places]
        assert len(set(found)) == len(found)
        there = {place for place, rows in self.staged.items() if rows}
        committed = {place for place, rows in self.committed.items() if rows}
        assert (there - self.met) & committed <= set(found), "nothing that was not met is passed over"
        assert set(found) <= there - self.met
        self.shadow.end_pass(self.walk)
        self.walk = None

    @invariant()
    def nothing_else_differs(self) -> None:
        if hasattr(self, "shadow"):
            for place, rows in self.staged.items():
                marks = self.shadow.begin_members()
                kept = (
                    {key for keys in self.shadow.members_not_seen(place, marks) for key in keys}
                    if not place.single
                    else set(rows)
                )
                assert kept == set(rows)


ShadowMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestShadow = ShadowMachine.TestCase
