"""What `write`, `delete` and `truncate` of a flow make of its events."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.apply.fold import BOTTOM, Event
from consumers.apply.modes import event_key, floor_for, fold_for
from streamer.changes.envelope import FLOOR_PREFIX, Change, MessageContent
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow

KEY = b'{"id":1}'


def flow(**keys: Any) -> Flow:
    return Flow.model_validate({"__name__": "f", "from": "shop.public.people", "to": "copy", **keys})


def change(op: str, lsn: int, name: str | None = "a") -> Change:
    row = {"id": 1, "name": name}
    message = MessageContent(FLOOR_PREFIX, b"") if op == "m" else None
    epoch, lsn = (2, 0) if op == "m" else (1, lsn)
    before, after = (row, None) if op == "d" else (None, row if op in "cur" else None)
    return Change(op, before, after, epoch, lsn, 0, "s", 5, 6, message)


def event(op: str, lsn: int, name: str | None = "a", *, key: bytes | None = KEY) -> Event:
    return Event(key, change(op, lsn, name), lsn, name == UNAVAILABLE)


@pytest.mark.parametrize(
    ("keys", "floor"),
    [
        ({}, (2, 0, 0)),
        ({"truncate": "ignore"}, (2, 0, 0)),
        ({"delete": "ignore"}, (1, 30, 0)),  # a reset's floor is a delete
        ({"version": "none"}, (1, 30, 0)),  # and needs versions
        ({"delete": "ignore", "truncate": "ignore"}, BOTTOM),
        ({"write": "append"}, BOTTOM),
    ],
)
def test_floors_that_a_flow_follows(keys: dict[str, str], floor: tuple[int, int, int]) -> None:
    assert floor_for(flow(**keys), [change("t", 30), change("m", 0)]) == floor


def test_ignored_deletes_leave_what_came_before_and_after() -> None:
    events = [event("c", 10, "a"), event("d", 20), event("c", 30, "b")]
    result = fold_for(flow(delete="ignore"), events[:2], 0)
    assert (result.rows[KEY].row["name"], result.deletes) == ("a", {})
    assert fold_for(flow(delete="ignore"), events, 0).rows[KEY].row["name"] == "b"


def test_insert_only_hands_on_the_delete_before_a_row_that_comes_again() -> None:
    events = [
        event("c", 10, "a"),
        event("u", 15, "x"),
        event("d", 20),
        event("c", 30, "b"),
        event("u", 40, "y"),
    ]
    result = fold_for(flow(write="insert_only"), events, 0)
    assert result.rows[KEY].row["name"] == "b"
    assert result.deletes[KEY].change.commit_lsn == 20
    assert fold_for(flow(write="insert_only"), events, 0, (1, 20, 0)).deletes == {}
    first = fold_for(flow(write="insert_only", delete="ignore"), events, 0)
    assert (first.rows[KEY].row["name"], first.deletes) == ("a", {})
    after = fold_for(flow(write="insert_only", delete="ignore"), events, 0, (1, 25, 0))
    assert after.rows[KEY].row["name"] == "b"


def test_a_history_has_a_key_for_every_event() -> None:
    events = [
        event("r", 5, "copy"),
        event("u", 10, UNAVAILABLE),
        event("t", 12),
        event("d", 15),
        event("c", 20, key=None),
    ]
    result = fold_for(flow(write="append"), events, 0)
    assert [(key, write.row["name"]) for key, write in result.rows.items()] == [
        (KEY + b"@1.5.0", "copy"),
        (KEY + b"@1.10.0", None),
        (KEY + b"@1.15.0", "a"),
        (b"@1.20.0.20", "a"),
    ]
    assert result.events == 4
    kept = fold_for(flow(write="append", delete="ignore"), events, 0)
    assert KEY + b"@1.15.0" not in kept.rows


def test_a_key_of_an_event_stays_the_same_when_it_is_tried_again() -> None:
    of = change("u", 10)
    assert event_key(event_key(KEY, of, 3), of, 3) == event_key(KEY, of, 3)
