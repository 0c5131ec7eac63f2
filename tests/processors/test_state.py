"""A task's state: the overlay over either store against a plain dictionary, and folders that do not fit."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.processors.forgetting import EVERY_S, LOOK_ROWS, Forgetting
from consumers.processors.memory import MemoryStore
from consumers.processors.parked import Item
from consumers.processors.rocks import open_store
from consumers.processors.rows import Rows
from consumers.processors.state import Mark, Overlay, StateTable, Store, after_prefix
from streamer.errors import BadRecordError


@pytest.fixture(params=["memory", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    found: Store = (
        MemoryStore()
        if request.param == "memory"
        else open_store(tmp_path / "0", cluster_id="cluster", topic="out.__state")
    )
    yield found
    found.close()


def in_order(model: dict[bytes, bytes], prefix: bytes, *, reverse: bool) -> list[tuple[bytes, bytes]]:
    return sorted(((k, v) for k, v in model.items() if k.startswith(prefix)), reverse=reverse)


def test_an_overlay_is_a_dictionary_whose_units_can_be_taken_back(store: Store) -> None:
    chance = random.Random(3)
    overlay, committed = Overlay(store), dict[bytes, bytes]()
    table, unit = StateTable(overlay, "t", 100), dict[bytes, bytes]()
    model: dict[bytes, bytes] = {}
    keys = [bytes([a, b]) for a in (0, 1, 255) for b in (0, 7, 255)] + [b"", b"\xff", b"\xff\xff"]
    for step in range(3000):
        action = chance.random()
        if action < 0.05:
            overlay.roll_back()
            unit = dict(model)
        elif action < 0.3:
            overlay.begin()
            model = dict(unit)
        elif action < 0.33:
            overlay.begin()
            model = committed = dict(unit)
            overlay.committed(Mark(step, f"commit {step}"))
        elif action < 0.5:
            key = chance.choice(keys)
            table.delete(key)
            unit.pop(key, None)
        else:
            key, value = chance.choice(keys), b"%d" % step
            table.put(key, value)
            unit[key] = value
        key = chance.choice(keys)
        assert table.get(key) == unit.get(key)
        prefix, reverse = chance.choice([b"", b"\x01", b"\xff", b"\x00\x07"]), chance.random() < 0.5
        assert list(table.scan(prefix, reverse=reverse)) == in_order(unit, prefix, reverse=reverse)
    other = StateTable(overlay, "u", 100)
    assert list(other.scan()) == []  # tables are apart
    stored = {key.removeprefix(b"t\0"): value for key, value in store.scan(b"t\0", reverse=False)}
    assert stored == committed  # only what was committed is in the store


def test_a_scan_does_not_see_what_is_written_meanwhile(store: Store) -> None:
    overlay = Overlay(store)
    table = StateTable(overlay, "t", 100)
    for number in range(4):
        table.put(b"%d" % number, b"old")
    overlay.committed(Mark(1, "a"))
    seen = []
    for key, value in table.scan():
        seen.append((key, value))
        table.put(b"9" + key, b"new")
        overlay.committed(Mark(2, "b"))
    assert seen == [(b"%d" % number, b"old") for number in range(4)]


def test_a_value_that_no_record_holds_is_refused(store: Store) -> None:
    with pytest.raises(BadRecordError, match="the limit is 100"):
        StateTable(Overlay(store), "big", 100).put(b"key", b"x" * 100)


def test_rows_keep_a_deleted_rows_version_and_floors(store: Store) -> None:
    overlay = Overlay(store)
    rows = Rows(overlay, "shop.public.orders")
    assert rows.is_newer(b"k", (1, 5, 0)) == (True, None)
    rows.put(b"k", (1, 5, 0), b"", 0)
    assert rows.is_newer(b"k", (1, 5, 1)) == (True, b"")
    assert rows.is_newer(b"k", (1, 5, 0)) == (False, b"")
    rows.put_deleted(b"k", (1, 6, 0), 0)
    assert rows.is_newer(b"k", (1, 5, 9)) == (False, None)
    rows.put(b"l", (1, 2, 0), b"note", 0)
    rows.put(b"m", (1, 9, 0), b"note", 0)
    assert rows.raise_floor((1, 7, 0))
    assert not rows.raise_floor((1, 7, 0))
    assert list(rows.covered()) == [(b"l", b"note")]
    rows.put_deleted(b"l", rows.floor, 0)
    assert [key[-1:] for key, _ in overlay.scan(b"_rows")] == [b"k", b"m"]  # the floor stands for l
    overlay.committed(Mark(1, "a"))
    again = Rows(overlay, "shop.public.orders")
    assert again.floor == (1, 7, 0)
    assert again.is_newer(b"n", (1, 7, 0)) == (False, None)


DAY_US = 86_400_000_000


def test_the_version_of_a_deleted_row_outlives_the_topics_events(store: Store) -> None:
    """By the input's time: a worker that was away has not read yet what may stand behind the delete."""
    overlay, now_s = Overlay(store), 0.0
    rows = {topic: Rows(overlay, topic) for topic in ("a", "b")}
    for number in range(LOOK_ROWS + 10):
        rows["a"].put_deleted(b"%05d" % number, (1, 5, 0), number % 2 * DAY_US)
    rows["a"].put(b"there", (1, 6, 0), None, DAY_US)
    rows["b"].put_deleted(b"k", (1, 5, 0), 0)
    overlay.committed(Mark(1, "a"))
    rows = {topic: Rows(overlay, topic) for topic in rows}  # read back
    forgetting = Forgetting(overlay, rows, 7 * 86_400.0, lambda: now_s)

    def steps(count: int, now_us: int) -> int:
        nonlocal now_s
        for _ in range(count):
            now_s += EVERY_S
            forgetting.step(now_us)
        return sum(1 for _ in overlay.scan(b"_rows"))

    rows["a"].put(b"new", (1, 7, 0), None, 11 * DAY_US)
    everything = LOOK_ROWS + 13
    assert steps(4, 10 * DAY_US) == everything  # 10.5 days are not over, whatever an event's clock says
    assert steps(4, 99 * DAY_US) == everything - (LOOK_ROWS + 10) // 2  # b stands still: its row stays
    assert rows["a"].is_newer(b"00001", (1, 4, 0)) == (False, None)
    rows["a"].raise_floor((1, 5, 0))
    assert steps(4, 0) == 3  # older events are held off by the floor


def test_topics_that_are_kept_for_ever_keep_the_versions_of_deleted_rows(store: Store) -> None:
    overlay, now_s = Overlay(store), 0.0
    rows = {"a": Rows(overlay, "a")}
    forgetting = Forgetting(overlay, rows, math.inf, lambda: now_s)
    rows["a"].put_deleted(b"k", (1, 5, 0), 0)
    rows["a"].put(b"new", (1, 7, 0), None, 10_000 * DAY_US)
    now_s += EVERY_S
    forgetting.step(10_000 * DAY_US)
    assert rows["a"].is_newer(b"k", (1, 4, 0)) == (False, None)


def test_parked_items_come_back_as_they_were() -> None:
    item = Item("a.b", b'{"id":1}', 3, 9, b'{"x":"\x00"}', (1, 2, 3), 5, 6, "ValueError", "why", 2)
    assert Item.load(item.dump_key(), item.dump()) == item
    made_up = Item("a.b", b"k", 0, -1, None, (1, 2, 3), 5, 6)
    assert Item.load(made_up.dump_key(), made_up.dump()) == made_up


@pytest.mark.parametrize(
    ("prefix", "after"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"", None)]
)
def test_after_prefix(prefix: bytes, after: bytes | None) -> None:
    assert after_prefix(prefix) == after
