"""How fast backfills are, how long they take yet, and what is said of them. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any

from consumers.views.amounts import duration
from streamer.changes.backfill import Progress, Run, State

RATE_US = 10_000_000  # a chunk is some thousand rows: over less time the rate jumps


class Pace:
    """Rows a second of one run, by the times of its own progress records."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque()

    def rows_per_s(self, progress: Progress) -> float | None:
        """None: not known yet, or nothing is read now."""
        if progress.state is not State.RUNNING:
            self._looks.clear()
            return None
        looks, now_us = self._looks, progress.updated_us
        if not looks or looks[-1] != (now_us, progress.rows):
            looks.append((now_us, progress.rows))
        while len(looks) > 2 and looks[1][0] <= now_us - RATE_US:
            looks.popleft()
        seconds = (now_us - looks[0][0]) / 1e6
        return (progress.rows - looks[0][1]) / seconds if seconds > 0 else None


def left_s(progress: Progress, rows_per_s: float | None) -> float | None:
    """Seconds until it is done, when that can be told."""
    if not rows_per_s or progress.estimated_rows is None or progress.state is not State.RUNNING:
        return None
    seen = progress.rows + progress.dropped + progress.deletes
    return max(0, progress.estimated_rows - seen) / rows_per_s


def run_view(run: Run, rows_per_s: float | None = None) -> dict[str, Any]:
    """One run as plain values; documented in docs/backfill.md."""
    request, progress = run.request, run.progress or Progress(State.WAITING)
    left = left_s(progress, rows_per_s)
    return {
        "run": run.run,
        "source": run.source,
        "table": request.place if request is not None else "",
        "state": progress.state,
        "reason": progress.reason,
        "wanted": run.wanted,
        "rows": progress.rows,
        "estimated_rows": progress.estimated_rows,
        "rows_per_s": None if rows_per_s is None else round(rows_per_s, 1),
        "left_s": None if left is None else round(left, 1),
        "chunks": progress.chunks,
        "reread": progress.reread,
        "dropped": progress.dropped,
        "deletes": progress.deletes,
        "why": request.why if request is not None else "",
        "by": request.by if request is not None else "",
        "asked_us": request.asked_us if request is not None else None,
        "began_us": progress.began_us or None,
        "ended_us": progress.ended_us,
    }


def sentence(view: dict[str, Any]) -> str:
    """Of one that runs or waits: "40% of 3,000,000 rows, 40,000/s, 45s left"; of one that is over its end."""
    rows, estimated, state = view["rows"], view["estimated_rows"], view["state"]
    words = []
    if state == State.DONE:
        words = [f"{rows:,} rows"]
        words += [f"{view['deletes']:,} deletes"] if view.get("deletes") else []
        if view.get("began_us") and view.get("ended_us"):
            took_s = (view["ended_us"] - view["began_us"]) / 1e6
            words[-1] += f" in {took_s:.1f} s" if took_s < 60 else f" in {duration(took_s)}"
    elif estimated and rows <= estimated:
        words = [f"{rows:,} of about {estimated:,} rows"]
    elif rows or state == State.RUNNING:
        words = [f"{rows:,} rows"]
    if view["rows_per_s"]:
        words.append(f"{view['rows_per_s']:,.0f}/s")
    if view["left_s"] is not None:
        words.append(f"{duration(view['left_s'])} left")
    if view["reason"]:
        words.append(view["reason"])
    return f"{state}: {', '.join(words)}" if words else str(state)
