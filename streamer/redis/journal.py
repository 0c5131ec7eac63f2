"""What a capture remembers of its gaps beyond one session: for `status`, and for the event that tells of one.

Held by the runner, since a lost connection ends a session and the next one must say why it reads everything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

GAPS_KEPT = 20  # in a heartbeat; the message topic has all of them


@dataclass(slots=True)
class Noted:
    """`since_us`: the last moment at which nothing is known to be missed; all by our clock."""

    reason: str
    detail: str
    since_us: int
    seen_us: int
    healed_us: int | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "detail": self.detail,
            "since_us": self.since_us,
            "seen_us": self.seen_us,
            "healed_us": self.healed_us,
        }


class Journal:
    """Gaps, the latest last."""

    def __init__(self) -> None:
        self.gaps: deque[Noted] = deque(maxlen=GAPS_KEPT)
        self.seen = 0
        self.sound_us = 0  # the last moment at which the capture was well
        self.server = ""  # where the last session was; empty: there was none
        self.ended = ""  # why the last session ended; empty: there was none

    def note(self, reason: str, detail: str, now_us: int) -> Noted:
        """A gap from the last sound moment until now."""
        noted = Noted(reason, detail, self.sound_us or now_us, now_us)
        self.gaps.append(noted)
        self.seen += 1
        return noted

    def healed(self, now_us: int) -> None:
        """A full scan and its reverse pass that began after the last gap have ended."""
        for gap in self.gaps:
            if gap.healed_us is None:
                gap.healed_us = now_us

    @property
    def open(self) -> list[Noted]:
        return [gap for gap in self.gaps if gap.healed_us is None]

    @property
    def unhealed_since_us(self) -> int | None:
        return min((gap.since_us for gap in self.open), default=None)
