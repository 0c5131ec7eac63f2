"""How apply ends its tasks."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from consumers.apply import loop


async def test_a_cancellation_that_was_swallowed_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CANCEL_AGAIN_S", 0.01)
    waits = 0

    async def deaf() -> None:
        nonlocal waits
        while waits < 3:
            waits += 1
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(3600))]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await loop._end(*tasks)
    assert [task.cancelled() for task in tasks] == [True, True]
    assert waits == 3
