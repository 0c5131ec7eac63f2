"""The list of parked keys: whole keys and reasons, on screens of any width and in files."""

from __future__ import annotations

from consumers.apply.checkpoint import Place
from consumers.apply.queues import Key
from consumers.commands.parked_screen import Queues, lines
from consumers.targets.base import Parked

UUID = "7f9c2ba4-e88f-4271-9bd9-6ad0c8f7a5a1"
MESSAGE = 'new row for relation "orders" violates check constraint "total_is_positive" of the target'


def parked(key: str, message: str, *, waiting: bool = False) -> Queues:
    place = Place("mirror", "shop.public.orders", 0)
    entry = Parked(
        place,
        key.encode(),
        1,
        5,
        (1, 2, 3),
        b"{}",
        True,
        "public",
        "orders",
        waiting,
        "23514",
        message,
        3,
        10**15,
    )
    return {Key(place, key.encode()): [entry]}


KEYS = {**parked(f'{{"id":"{UUID}"}}', MESSAGE), **parked('{"id":"7"}', "two\nlines\x1b[2J", waiting=True)}


def test_a_line_a_key_where_nobody_reads_on_a_screen() -> None:
    head, one, two = lines(KEYS, None)
    assert head.split() == ["key", "table", "flow", "changes", "since", "attempts", "reason"]
    assert (UUID in one, one.endswith(f"  23514: {MESSAGE}")) == (True, True)
    assert one.index("public.orders") == two.index("public.orders") == head.index("table")
    assert two.endswith("  waits for other partitions: 23514: two lines\\x1b[2J")


def test_a_screen_has_the_reason_below_where_there_is_no_room() -> None:
    assert lines(KEYS, 300) == lines(KEYS, None)
    for width in (80, 20):
        _, one, reason, two, other = lines(KEYS, width)
        assert UUID in one
        assert reason == f"  23514: {MESSAGE}"
        assert two.startswith('{"id":"7"}')
        assert "two lines" in other
