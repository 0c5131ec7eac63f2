"""A gap: changes may have been missed, so everything must be read again (H21).

Owns the reasons and the list of gaps that nobody has healed yet. The signs themselves are found by `signs`
(looks at the server) and `notifications` (overflow); the session publishes and heals.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why; the words are in events, status and metrics."""

    CONNECTION = "connection"  # a new subscription: what came before it was not seen
    RESTART = "restart"  # another run of the server
    FAILOVER = "failover"  # another role or another primary
    FLUSH = "flush"  # FLUSHDB, FLUSHALL, or a replica loaded everything anew
    SWAP = "swap"  # SWAPDB
    SETTING = "setting"  # notify-keyspace-events lacked what is needed
    CANARY = "canary"  # our own messages did not come through the subscription
    OVERFLOW = "overflow"  # more keys waited than the map holds
    DRIFT = "drift"  # more keys expired or were evicted than events came
    COUNTERS = "counters"  # the server's counters were reset: signs of that moment are lost


@dataclass(frozen=True, slots=True)
class Gap:
    """`detail` is a sentence with the numbers."""

    reason: Reason
    detail: str


class Gaps:
    """Gaps that wait to be healed, at most one a reason: one full scan heals them all."""

    def __init__(self) -> None:
        self.found = 0
        self._waiting: dict[Reason, Gap] = {}
        self._arrived = asyncio.Event()

    def report(self, reason: Reason, detail: str) -> None:
        self.found += 1
        self._waiting[reason] = Gap(reason, detail)
        self._arrived.set()

    @property
    def pending(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[Gap]:
        """Those that wait, first found first; a scan that starts after this heals them."""
        gaps = list(self._waiting.values())
        self._waiting.clear()
        self._arrived.clear()
        return gaps

    async def wait(self) -> None:
        """Until there is one."""
        await self._arrived.wait()
