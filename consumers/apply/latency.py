"""Commit-to-target latency over the last minute: p50 and p99, total and in its three parts.

One record's way: commit in the source -> captured -> received here -> committed in the target. Times
are by this process's clock, those of other machines as `consumers.apply.clocks` corrects them; what is
left of a difference may be negative, and counts as zero.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

WINDOW_S = 60.0
SLICE_S = 5.0  # the window moves in such steps
GROWTH = 1.1  # a bucket's width: percentiles are right to 10%

_BOUNDS_MS: list[float] = []
_bound = 0.05
while _bound < 3.6e6:  # an hour; above it everything is late
    _BOUNDS_MS.append(_bound)
    _bound *= GROWTH

PARTS = ("", "capture_", "kafka_", "apply_")


class Latency:
    """A histogram a part and slice of time. `now_s` is a monotonic clock's."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, list[list[int]]]] = deque()

    def add(
        self,
        samples: Iterable[tuple[int, int, int]],
        *,
        received_us: int,
        committed_us: int,
        now_s: float,
    ) -> None:
        """`samples`: (commit_us, capture_us, weight) of applied records."""
        self._trim(now_s)
        if not self._slices or now_s - self._slices[-1][0] >= SLICE_S:
            self._slices.append((now_s, [[0] * (len(_BOUNDS_MS) + 1) for _ in PARTS]))
        total, capture, kafka, apply = self._slices[-1][1]
        apply_index = bisect_left(_BOUNDS_MS, (committed_us - received_us) / 1000)
        for commit_us, capture_us, weight in samples:
            total[bisect_left(_BOUNDS_MS, (committed_us - commit_us) / 1000)] += weight
            capture[bisect_left(_BOUNDS_MS, (capture_us - commit_us) / 1000)] += weight
            kafka[bisect_left(_BOUNDS_MS, (received_us - capture_us) / 1000)] += weight
            apply[apply_index] += weight

    def snapshot(self, now_s: float) -> dict[str, float] | None:
        """{p50, p99, capture_p50, ...} in milliseconds; None when nothing was applied in the window."""
        self._trim(now_s)
        if not self._slices:
            return None
        found: dict[str, float] = {}
        for index, part in enumerate(PARTS):
            counts = [sum(column) for column in zip(*(s[1][index] for s in self._slices), strict=True)]
            found[f"{part}p50"] = _percentile(counts, 0.50)
            found[f"{part}p99"] = _percentile(counts, 0.99)
        return found

    def _trim(self, now_s: float) -> None:
        while self._slices and now_s - self._slices[0][0] >= WINDOW_S:
            self._slices.popleft()


def _percentile(counts: list[int], share: float) -> float:
    wanted, seen = sum(counts) * share, 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= wanted and count:
            return round(_BOUNDS_MS[min(index, len(_BOUNDS_MS) - 1)], 3)
    return 0.0
