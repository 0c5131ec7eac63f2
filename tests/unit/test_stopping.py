"""How tasks beside others are ended."""

from __future__ import annotations

import asyncio

import pytest

from streamer import stopping


async def test_a_task_that_swallows_its_cancellation_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "CANCEL_AGAIN_S", 0.01)
    begun = asyncio.Event()
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while True:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(deaf())
    await begun.wait()
    async with asyncio.timeout(60):
        await stopping.end_tasks(task)
    assert task.cancelled()
    assert swallowed == 2


async def test_what_a_task_raises_on_its_way_out_stays_in_it() -> None:
    begun = asyncio.Event()

    async def breaks() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("on the way out")

    async def done() -> int:
        return 1

    breaking, over = asyncio.create_task(breaks()), asyncio.create_task(done())
    await begun.wait()
    await stopping.end_tasks(breaking, over)
    assert isinstance(breaking.exception(), ValueError)
    assert over.result() == 1
