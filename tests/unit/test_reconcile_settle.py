"""What is drift where no stream is between the two sides: a difference that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from consumers.reconcile.settle import LOOKS, PAUSE_S, SAME_LOOKS, Settling
from consumers.reconcile.sides.base import Key, Row, both
from streamer.errors import SourceUnavailable

A, B, C, D, E = (("a",), ("b",), ("c",), ("d",), ("e",))


class Looked:
    """Rows by look, the last one for ever; a row is its text, None where it is not there."""

    def __init__(self, **looks: Sequence[str | None]) -> None:
        self._looks = {(name,): texts for name, texts in looks.items()}
        self.asked: list[set[Key]] = []

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        look = len(self.asked)
        self.asked.append(set(keys))
        found = {}
        for key in keys:
            texts = self._looks.get(key, [None])
            text = texts[min(look, len(texts) - 1)]
            if text is not None:
                found[key] = Row((key[0], text), "")
        return found


async def test_only_what_stays_different_is_drift() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    moving = [str(n) for n in range(LOOKS)]
    source = Looked(a=["1"], b=["1", "2"], d=["1", "1", "2"], e=moving)
    target = Looked(a=["1", "0"], b=["1"], c=["1"], d=["0", "0", "0", "2"], e=["x"])
    judged = await Settling(source, target, pause=pause).judge([A, B, C, D, E])
    # a and b were equal at once, whatever comes later; d caught up in the fourth look.
    assert judged.settled == 3
    assert [(fault.kind, fault.key) for fault in judged.faults] == [("extra", C)]
    assert judged.in_flight == [E]
    assert judged.passed == []
    assert pauses == [PAUSE_S] * (LOOKS - 1)
    assert source.asked[1] == {C, D, E}
    assert C not in source.asked[SAME_LOOKS]


async def test_each_kind_of_drift_takes_as_many_looks() -> None:
    source, target = Looked(a=["1"], b=["1"]), Looked(b=["2"], c=["1"])

    async def pause(seconds: float) -> None:
        assert seconds == PAUSE_S

    judged = await Settling(source, target, pause=pause).judge([A, B, C])
    assert {(fault.kind, fault.key) for fault in judged.faults} == {
        ("missing", A),
        ("different", B),
        ("extra", C),
    }
    assert len(source.asked) == len(target.asked) == SAME_LOOKS


async def test_where_one_side_fails_the_other_is_waited_for() -> None:
    """Its session takes one statement at a time, and the next table's is to come."""
    failed, done = asyncio.Event(), False

    async def fails() -> None:
        failed.set()
        raise SourceUnavailable("gone")

    async def answers() -> None:
        nonlocal done
        await failed.wait()
        await asyncio.sleep(0)
        done = True

    with pytest.raises(SourceUnavailable):
        await both(fails(), answers())
    assert done
