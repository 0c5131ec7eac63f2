"""The end of what is kept of deleted rows: their versions, a few at a time, so that no commit waits for it.

An older event of a row stands behind its delete only where the capture wrote it late, as a backfill's chunk
does: minutes, where the limit is longer than the topic keeps events. Time is that of the input's events, not
the clock's: a worker that was away for weeks finds what it has not read as it was. Owns when, and how much at
once; where topics are kept for ever nothing is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from consumers.processors.rows import Rows
from consumers.processors.state import Overlay

KEEP = 1.5  # of the topics' retention: their segments outlive it; as targets keep tombstones
EVERY_S = 10.0
LOOK_ROWS = 5_000  # some 10 ms; ten million rows of a task are looked at within six hours


class Forgetting:
    """Of one task; `step` between units."""

    def __init__(
        self, overlay: Overlay, rows: Mapping[str, Rows], retention_s: float, clock_s: Callable[[], float]
    ) -> None:
        self._overlay = overlay
        self._rows = list(rows.values())
        self._keep_s = retention_s * KEEP
        self._clock_s = clock_s
        self._looked_s = clock_s()
        self._at = 0  # the input that is looked at
        self._behind = b""

    def step(self, now_us: int) -> None:
        """`now_us`: an event whose time is in the future hastens nothing."""
        if math.isinf(self._keep_s) or self._clock_s() - self._looked_s < EVERY_S:
            return
        self._looked_s = self._clock_s()
        rows = self._rows[self._at]
        before_s = int(min(rows.newest_us, now_us) / 1e6 - self._keep_s)
        self._overlay.begin()
        self._behind = rows.forget(before_s, self._behind, LOOK_ROWS)
        if not self._behind:
            self._at = (self._at + 1) % len(self._rows)
