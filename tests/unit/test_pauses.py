"""What is said of paused flows, and when retention comes near."""

from __future__ import annotations

import pytest

from consumers.apply.lot import Lot
from consumers.apply.pauses import Pause, Pauses, pauses_of
from consumers.targets.base import Target
from consumers.targets.memory import forget_memory, memory_store
from consumers.targets.registry import make_target
from streamer.config import parse

CONFIG = """
name: pauses
sources: {shop: {kind: postgres, url: "postgresql://u@localhost/none", tables: {"public.*": {}}}}
targets: {copy: {kind: memory}}
flows: {people: {from: shop.public.people, to: copy.crm}}
"""
HOUR_S = 3600.0
PAUSED = Pause("people", True, "ann@host", "closing: the month", 0)


async def opened() -> Target:
    config = parse(CONFIG, environ={})
    forget_memory("pauses", "copy")
    target = make_target(config.targets["copy"], "pauses.copy", list(config.flows.values()))
    await target.open()
    return target


def test_who_and_why_come_back() -> None:
    for pause in (PAUSED, Pause("people", False, "eve@host", "", 7)):
        assert pauses_of([pause.gate]) == {"people": pause}
    assert PAUSED.text == "by ann@host at 1970-01-01 00:00:00 UTC (closing: the month)"


@pytest.mark.parametrize(
    ("paused_h", "waiting", "gone", "words"),
    [
        (1, 5, 0, ""),
        (13, 0, 0, ""),
        (13, 5, 0, "is paused for 13.0 h, 5 records wait: its topics keep them for 24.0 h"),
        (1, 5, 3, "retention has removed 3 records that it has not applied"),
    ],
)
async def test_retention_that_comes_near_is_a_finding(
    paused_h: float, waiting: int, gone: int, words: str
) -> None:
    target = await opened()
    await target.hold(PAUSED.gate)
    pauses = Pauses(["people", "things"], target)
    await pauses.poll()
    now_us = int(paused_h * HOUR_S * 1e6)
    found = pauses.findings({"people": waiting, "things": 9}, {"people": gone}, 24 * HOUR_S, lambda: now_us)
    assert len(found) == bool(words)
    assert words in "".join(found)
    assert all("`tailrace resume people`" in text for text in found)


async def test_a_store_that_was_emptied_is_told_again() -> None:
    target = await opened()
    await target.hold(PAUSED.gate)
    lot, pauses = Lot(), Pauses(["people"], target)
    lot.still = pauses.out
    await pauses.poll()
    assert lot.still == {"people"}
    memory_store("pauses", "copy").gates.clear()
    await pauses.poll()
    assert pauses_of(await target.gates()) == {"people": PAUSED}
    await target.hold(Pause("people", False, "eve@host", "", 7).gate)
    await pauses.poll()
    assert pauses.resumed() == {"people"}
    assert lot.still == {"people"}, "until it is placed again"
    pauses.go_on("people")
    assert not lot.still
