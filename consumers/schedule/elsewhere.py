"""Runs that a scheduler has begun which is not the one any more: frozen, or killed a moment ago.

The scheduler that is elected sees to it that their processes end: at `max_runtime`, as their own would, and
when that is gone. It does so on its own machine alone. What their end means for the job is control.jobs'.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from consumers.control.database import is_gone, is_here
from consumers.control.jobs import UNSEEN_S, OpenRun
from consumers.schedule.plan import Planned
from consumers.schedule.warden import KILL_AFTER_S, signal_all
from streamer.logs import Log

LATE_S = UNSEEN_S  # beyond max_runtime: a scheduler that lives has ended it by then

log = Log("schedule")


class Elsewhere:
    def __init__(self, signal_group: Callable[[int, int], None] = signal_all) -> None:
        self._signal_group = signal_group
        self._ended_us: dict[int, int] = {}  # by run: since when it is to end

    def look(self, others: Iterable[OpenRun], plans: Mapping[str, Planned], now_us: int) -> None:
        """`others`: those that go on."""
        found = {other.run: other for other in others if other.process and is_here(other.process)}
        self._ended_us = {run: since_us for run, since_us in self._ended_us.items() if run in found}
        for run, other in found.items():
            if is_gone(other.process, other.seen_us, now_us):
                continue
            since_us = self._ended_us.get(run)
            if since_us is not None:
                if now_us - since_us > KILL_AFTER_S * 1e6:
                    self._signal(other, signal.SIGKILL)
            elif why := _why(other, plans.get(other.job), now_us):
                self._ended_us[run] = now_us
                log.warning("job of another scheduler is ended", job=other.job, run=run, why=why)
                self._signal(other, signal.SIGTERM)

    def _signal(self, other: OpenRun, number: int) -> None:
        """To its process and what that has started."""
        with suppress(ProcessLookupError, PermissionError):
            self._signal_group(int(other.process.rsplit(":", 2)[1]), number)


def _why(other: OpenRun, plan: Planned | None, now_us: int) -> str:
    """Why it is to end; empty: it is not."""
    if is_gone(other.owner, other.seen_us, now_us):
        return f"its scheduler, {other.owner}, is gone"
    limit_s = None if plan is None else plan.job.max_runtime_s
    if limit_s is None or now_us - other.seen_us <= UNSEEN_S * 1e6:
        return ""
    if now_us - other.began_us <= (limit_s + LATE_S) * 1e6:
        return ""
    return f"it ran longer than {limit_s:g} s, and its scheduler, {other.owner}, does not end it"
