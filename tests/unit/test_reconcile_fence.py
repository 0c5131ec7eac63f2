"""The fence (H18), step by step, over stores in memory that change at exact moments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from orjson import loads

from consumers.apply.checkpoint import Place
from consumers.apply.pauses import Pause
from consumers.reconcile.fence import ROUNDS, Fence, Judged, NotPassed, Path
from consumers.reconcile.sides.base import Key, Row
from consumers.targets.base import Gate, Look, Parked, Unwhole

KEY: Key = ("1",)
A, B = Row(("a",), "100"), Row(("b",), "101")
PATH = Path("shop", "shop.public.item", "mirror", "copy")


class World:
    """A source, a log and a target of one row. `at(step, change)`: what happens right before the nth step.

    Steps: source, lsn, position, ends, stands, target. The log and the target follow at once unless told.
    """

    def __init__(self, source: Row | None, target: Row | None) -> None:
        self.source = source
        self.target = target
        self.lsn = 10
        self.captured = 1000
        self.applied = 1000
        self.end = 7
        self.hidden = False
        self.held = False
        self.paused = False
        self.unwhole: list[Unwhole] = []
        self.trace: list[str] = []
        self.now_s = 0.0
        self._changes: dict[tuple[str, int], Callable[[], None]] = {}

    def at(self, step: str, number: int, change: Callable[[], None]) -> None:
        self._changes[step, number] = change

    def set(self, **values: object) -> Callable[[], None]:
        return lambda: [setattr(self, name, value) for name, value in values.items()] and None

    def _step(self, name: str) -> None:
        self.trace.append(name)
        change = self._changes.get((name, self.trace.count(name)))
        if change is not None:
            change()

    # Source

    async def insert_lsn(self) -> int:
        self._step("lsn")
        return self.lsn

    async def holds_commits(self) -> bool:
        return self.hidden

    # Progress

    async def position(self) -> int:
        self._step("position")
        self.now_s += 1
        return self.captured

    async def ends(self, topic: str) -> dict[int, int]:
        assert topic == PATH.topic
        self._step("ends")
        return {0: self.end}

    # Standing

    async def look(self, places: Sequence[Place]) -> Look:
        self._step("stands")
        return Look("id", {Place("mirror", PATH.topic, 0): self.applied})

    async def parked(self, places: Sequence[Place]) -> list[Parked]:
        return []

    async def gates(self) -> list[Gate]:
        gates = [Gate("mirror", PATH.topic, "truncate", "held", 1, 1, 0)] if self.held else []
        return gates + ([Pause("mirror", True, "ann@host", "", 0).gate] if self.paused else [])

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        return [row for row in self.unwhole if row.topic in topics][:limit]

    async def pause(self, seconds: float) -> None:
        self.now_s += 1


class Reader:
    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        self._world._step(self._name)
        row = getattr(self._world, self._name)
        return {} if row is None else {KEY: row}


async def judge(world: World, **more: Any) -> Judged:
    fence = Fence(
        PATH,
        world,
        world,
        Reader(world, "source"),
        Reader(world, "target"),
        world,
        stall_s=5,
        clock_s=lambda: world.now_s,
        pause=world.pause,
        **{"key_of": lambda raw: None, **more},
    )
    return await fence.judge([KEY])


def kinds(judged: Judged) -> list[str]:
    return [fault.kind for fault in judged.faults]


@pytest.mark.parametrize(
    ("source", "target", "kind"), [(A, None, "missing"), (None, A, "extra"), (A, B, "different")]
)
async def test_h18_a_difference_that_two_rounds_show_is_drift(
    source: Row | None, target: Row | None, kind: str
) -> None:
    world = World(source, target)
    assert kinds(await judge(world)) == [kind]
    once = ["source", "lsn", "position", "ends", "stands", "target", "source", "ends"]
    assert world.trace == once * 2


async def test_h18_the_target_is_read_when_capture_and_apply_have_passed() -> None:
    """Both are behind at first, and the target has the row as soon as its checkpoint moves."""
    world = World(B, A)
    world.captured = world.applied = 0
    world.at("position", 3, world.set(captured=10))
    world.at("stands", 2, world.set(applied=6))
    world.at("stands", 4, world.set(applied=7, target=B))
    judged = await judge(world)
    assert (kinds(judged), judged.settled) == ([], 1)
    assert world.trace.index("target") > world.trace.index("stands") + 3
    assert judged.passed[0].offsets == {0: 7}


async def test_h18_the_end_is_that_of_after_the_position() -> None:
    """The last event of the row is in the topic only when the position has passed: its offset counts."""
    world = World(B, A)
    world.captured, world.applied, world.end = 0, 7, 7
    world.at("position", 2, world.set(captured=10, end=9))
    world.at("stands", 2, world.set(applied=9, target=B))
    assert kinds(await judge(world)) == []


async def test_h18_a_row_that_moves_is_read_again() -> None:
    """The source is changed behind the fence of the first round, and the target follows later."""
    world = World(A, A)
    world.at("target", 1, world.set(source=B))
    world.at("target", 2, world.set(target=B))
    judged = await judge(world)
    assert (kinds(judged), judged.settled, world.trace.count("lsn")) == ([], 1, 2)


async def test_h18_a_row_that_came_and_went_is_no_drift() -> None:
    """It was made and deleted between two looks at the source: no stamp tells, the target's does."""
    world = World(None, None)
    world.at("target", 1, world.set(target=A))
    world.at("stands", 2, world.set(target=None))
    assert kinds(await judge(world)) == []
    world = World(None, None)
    world.at("target", 1, world.set(target=A))
    world.at("target", 2, world.set(target=Row(A.texts, "102")))
    world.at("target", 3, world.set(target=None))
    assert kinds(await judge(world)) == []


async def test_h07_a_row_that_waits_to_be_read_again_is_in_flight() -> None:
    """An event did not have all of it; the row comes by itself, and then it is judged."""
    world = World(B, A)

    def key_of(raw: bytes) -> Key:
        return (str(loads(raw)["id"]),)

    world.unwhole = [Unwhole("mirror", PATH.topic, "public", "item", b'{"id":1}', (1, 2, 3))]
    judged = await judge(world, key_of=key_of)
    assert (kinds(judged), judged.in_flight) == ([], [KEY])
    world.at("target", ROUNDS + 2, world.set(target=B, unwhole=[]))
    judged = await judge(world, key_of=key_of)
    assert (kinds(judged), judged.settled) == ([], 1)
    world.unwhole = [Unwhole("other", PATH.topic, "public", "item", b'{"id":1}', (1, 2, 3))]
    world.target = A
    assert kinds(await judge(world, key_of=key_of)) == ["different"]


async def test_h18_a_commit_that_nobody_sees_yet_is_no_drift() -> None:
    """It waits for a standby: the log has it, and so has the target, and no session does."""
    world = World(A, B)
    world.hidden = True
    world.at("target", 3, world.set(hidden=False, source=B))
    judged = await judge(world)
    assert (kinds(judged), judged.settled) == ([], 1)


async def test_h18_what_always_moves_is_in_flight() -> None:
    world = World(A, B)
    for n in range(ROUNDS):
        world.at("target", n + 1, world.set(source=Row(("a",), str(n))))
    judged = await judge(world)
    assert (kinds(judged), judged.in_flight) == ([], [KEY])


async def test_h19_without_stamps_more_rounds_must_show_the_same() -> None:
    world = World(A, B)
    assert kinds(await judge(world, certain=4)) == ["different"]
    assert world.trace.count("lsn") == 4
    world = World(A, B)  # it was the other way round for a moment: counted anew
    world.at("target", 3, world.set(target=Row(B.texts, "102")))
    assert kinds(await judge(world, certain=4)) == ["different"]
    assert world.trace.count("lsn") == 6


async def test_h19_what_the_source_says_has_moved_is_read_again() -> None:
    """To another value and back, so that nothing shows it."""
    world, looks = World(A, B), []

    async def moved(keys: Sequence[Key]) -> Sequence[Key]:
        looks.append(keys)
        return keys if len(looks) < ROUNDS else ()

    judged = await judge(world, moved=moved)
    assert (kinds(judged), judged.in_flight) == ([], [KEY])


async def test_h19_a_value_that_is_passed_over_is_no_drift() -> None:
    assert kinds(await judge(World(None, A), unusable=lambda: {KEY})) == ["unusable"]
    world = World(None, A)
    world.held = True
    assert kinds(await judge(world, unusable=lambda: {KEY})) == ["unusable"], "no decision would change it"


async def test_h18_what_does_not_move_is_not_passed() -> None:
    world = World(A, B)
    world.captured = 9
    with pytest.raises(NotPassed, match="tailrace capture shop"):
        await judge(world)
    world = World(A, B)
    world.applied = 6
    with pytest.raises(NotPassed, match="tailrace apply copy"):
        await judge(world)


async def test_a_paused_flow_is_not_waited_for() -> None:
    world = World(A, B)
    world.paused, world.applied = True, 6
    with pytest.raises(NotPassed, match=r"was paused by ann@host at .*\n.*`tailrace resume mirror`"):
        await judge(world)
    assert world.now_s < 5
    world.applied = 7  # nothing waits: it is compared
    assert kinds(await judge(world)) == ["different"]


async def test_behind_a_gate_nothing_is_waited_for() -> None:
    world = World(A, B)
    world.held, world.applied = True, 0
    assert kinds(await judge(world)) == ["held"]
