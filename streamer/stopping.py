"""What a stop ends: waits, early, and the tasks that run beside others."""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_AGAIN_S = 2.0  # between two; a task that closes its connections takes less


async def stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long; True at once when `stop` is set meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel, and wait until all are done; what they raised stays in them.

    A cancellation that meets the end of a library's own wait is swallowed by it (aiokafka's does, and
    whatever uses `asyncio.wait_for` of Python 3.11): it is said until it is heard.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
