"""The target's session: opened by one at a time, whoever finds that it has to be."""

from __future__ import annotations

import asyncio
from pathlib import Path

from consumers.apply.session import Session
from consumers.targets.base import Target
from consumers.targets.memory import MemoryStore, MemoryTarget
from streamer.config import MemoryTarget as Settings
from streamer.config import parse
from tests.unit.test_apply_condition import made

GROUP = "acme.copy"
CONFIG = b"""
name: acme
sources: {shop: {kind: postgres, url: "postgresql://nobody@localhost/none", tables: {"public.*": {}}}}
targets: {copy: {kind: memory}}
flows: {mirror: {from: shop.public.*, to: copy.mirror}}
"""


class Slow(MemoryTarget):
    """Its opening takes until `answers`; how many were opening it at once, at most."""

    answers: asyncio.Event
    opening = most = 0

    async def open(self) -> None:
        self.opening += 1
        self.most = max(self.most, self.opening)
        await self.answers.wait()
        await super().open()
        self.opening -= 1


async def test_a_target_that_is_slow_to_open_is_opened_once_at_a_time() -> None:
    """The keeper begins before the target is open, and opens a session that it finds ended."""
    config = parse(CONFIG, Path("tailrace.yaml"), environ={})
    given = config.targets["copy"]
    assert isinstance(given, Settings)
    target = Slow(given, GROUP, list(config.flows.values()), store=MemoryStore(GROUP))
    target.answers = asyncio.Event()
    session = Session(target, made()[0])
    found: list[list[str]] = []

    async def keep(target: Target) -> None:
        found.append(list(await target.findings()))

    start = asyncio.create_task(session.open())
    keeper = asyncio.create_task(session.shortly(keep))
    for _ in range(10):  # turns of the loop, in which both would be there
        await asyncio.sleep(0)
    assert target.opening == 1
    target.answers.set()
    assert await start
    assert await keeper is None
    assert found == [[]]
    assert target.most == 1
