"""Applying a folded batch leaves what applying its events one by one leaves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from consumers.apply.fold import BOTTOM, Event, PartitionFold, floor_of, fold
from streamer.changes.envelope import Change
from streamer.changes.kinds import UNAVAILABLE

State = tuple[dict[bytes, dict[str, Any]], set[bytes]]


def event(offset: int, op: str, key: int, row: dict[str, Any] | None) -> Event:
    before = {"id": key} if op == "d" else None
    change = Change(op, before, row, 1, offset + 1, 0, "s", 0, 0, None)
    placeholders = row is not None and UNAVAILABLE in row.values()
    name = None if op == "t" else orjson.dumps({"id": key})
    return Event(name, change, offset, placeholders)


def one_by_one(events: list[Event], start: dict[bytes, dict[str, Any]]) -> State:
    """The model: rows and the keys that wait for a re-read, each event in its own transaction."""
    rows, rereads = {key: dict(row) for key, row in start.items()}, set()
    for key, change, _, _ in events:
        if change.op == "t":
            rows.clear()
            rereads.clear()
            continue
        assert key is not None
        if change.op == "d":
            rows.pop(key, None)
            rereads.discard(key)
            continue
        row = dict(change.after or {})
        missing = [name for name, value in row.items() if value == UNAVAILABLE]
        if not missing:
            rows[key] = row
            rereads.discard(key)
        elif change.op != "u":
            rows[key] = {**row, **dict.fromkeys(missing)}
            rereads.add(key)
        elif key in rows:
            rows[key] = {**row, **{name: rows[key][name] for name in missing}}
        else:
            rereads.add(key)
    return rows, rereads


def folded(batches: list[list[Event]], start: dict[bytes, dict[str, Any]]) -> State:
    """What the Postgres target does with folds: floor, deletes, patches, rows."""
    rows, rereads = {key: dict(row) for key, row in start.items()}, set()
    for events in batches:
        floor = floor_of([e.change for e in events])
        part: PartitionFold = fold(events, 0, floor)
        if floor > BOTTOM:
            rows.clear()
            rereads.clear()
        for key in part.deletes:
            rows.pop(key, None)
            rereads.discard(key)
        for key, write in part.patches.items():
            if key in rows:
                rows[key].update({n: v for n, v in write.row.items() if v != UNAVAILABLE})
            else:
                rereads.add(key)
        for key, write in part.creates.items():
            rows[key] = {n: None if v == UNAVAILABLE else v for n, v in write.row.items()}
        for key, write in part.rows.items():
            rows[key] = dict(write.row)
            rereads.discard(key)
        rereads.update(part.rereads)
        keys = [set(p) for p in (part.rows, part.creates, part.patches, part.deletes)]
        assert sum(map(len, keys)) == len(set().union(*keys))
    return rows, rereads


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[int], dict[bytes, dict[str, Any]]]:
    """A valid stream: nothing is updated that is not there, save what the start had and lost."""
    there = draw(st.sets(st.integers(0, 3)))
    start = {orjson.dumps({"id": k}): {"id": k, "a": -1, "big": f"old{k}"} for k in there}
    events: list[Event] = []
    for offset in range(draw(st.integers(0, 25))):
        key = draw(st.integers(0, 3))
        op = draw(st.sampled_from("ud" if key in there else "c") | st.sampled_from("cut"))
        if op == "u" and key not in there and draw(st.booleans()):
            op = "c"
        big = draw(st.sampled_from([UNAVAILABLE, None, f"big{offset}"]))
        row = {"id": key, "a": offset, "big": big}
        events.append(event(offset, op, key, None if op in "dt" else row))
        if op == "t":
            there.clear()
        elif op == "d":
            there.discard(key)
        else:
            there.add(key)
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=3)))
    return events, cuts, start


@given(streams())
def test_a_folded_batch_leaves_what_its_events_leave(
    stream: tuple[list[Event], list[int], dict[bytes, dict[str, Any]]],
) -> None:
    events, cuts, start = stream
    edges = [0, *cuts, len(events)]
    batches = [events[a:b] for a, b in pairwise(edges)]
    rows, rereads = folded(batches, start)
    expected, expected_rereads = one_by_one(events, start)
    assert rows == expected
    assert rereads == expected_rereads


@given(st.lists(st.tuples(st.sampled_from("cdu"), st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_a_table_without_a_key_is_a_multiset(steps: list[tuple[str, int, int]]) -> None:
    events, expected = [], []
    for offset, (op, one, two) in enumerate(steps):
        if op == "c":
            expected.append(one)
        elif one in expected:
            expected.remove(one)
            if op == "u":
                expected.append(two)
        else:
            continue
        after = {"v": two if op == "u" else one} if op in "cu" else None
        before = {"v": one} if op in "ud" else None
        change = Change(op, before, after, 1, offset + 1, 0, "s", 0, 0, None)
        events.append(Event(None, change, offset, False))
    half = len(events) // 2
    found: list[int] = []
    for part in (fold(events[:half], 0), fold(events[half:], 0)):
        found += [write.row["v"] for write in part.added]
        for write in part.removed:
            found.remove(write.row["v"])
    assert sorted(found) == sorted(expected)
