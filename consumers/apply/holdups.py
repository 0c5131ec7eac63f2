"""Says who holds up the target: a session of its server has a lock that the work in hand waits for.

Owns when it is asked. It asks beside the target's session, which has an answer only when the wait is over.
"""

from __future__ import annotations

import asyncio
import time

from consumers.apply.condition import Condition
from consumers.apply.session import Session
from consumers.targets.base import Lockable

LOCK = "lock"  # what is waited for
LONG_S = 5.0  # work of the session that takes less is not looked into
ASK_S = 3.0  # between two looks, each of which is a connection and two queries


class Holdups:
    def __init__(self, session: Session, condition: Condition) -> None:
        self._session = session
        self._condition = condition

    async def watch(self) -> None:
        """Until cancelled."""
        target = self._session.target
        if not isinstance(target, Lockable):
            return
        while True:
            await asyncio.sleep(ASK_S)
            since_s = self._session.since_s
            by = ""
            if since_s is not None and time.monotonic() - since_s >= LONG_S:
                by = await target.held_up_by()
            if by and self._session.since_s == since_s:
                self._condition.wait_for(
                    LOCK, f"{target.place} waits for {by}; it goes on by itself when that has ended"
                )
            elif LOCK in self._condition.waiting:
                self._condition.have(LOCK)
