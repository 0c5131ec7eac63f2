"""The ledger of a source's backfills, kept by its capture: what was asked for, what is wanted, what was done.

Owns each run's progress and what people and time make of it; the reading of rows is the source's own.
Progress is written by this process alone, so what was given to the publisher is the truth, not what is
read back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from streamer.backfills import Follower
from streamer.changes.backfill import KEEP_DONE_US, Progress, Request, Run, Runs, State, Wanted
from streamer.publisher import Topic

Follow = Callable[[], AbstractAsyncContextManager[Follower]]

POLL_S = 0.1  # how soon a request or a wish is seen
SHOWN_US = 3600 * 1_000_000  # a run that is over is in `status` for an hour
SHOWN_LIMIT = 50
RESET = "a reset has copied everything again"


class Ledger:
    """All runs of one source. `runs` is what the topic says, once `open` has been called."""

    def __init__(
        self, records: Topic, *, now_us: Callable[[], int], wake: Callable[[], None], since_us: int
    ) -> None:
        """`records`: of the topic of backfills. `wake`: something waits to be flushed. `since_us`: when the
        last copy of everything was begun, which has made good what had failed before."""
        self._records = records
        self._now_us = now_us
        self._wake = wake
        self._since_us = since_us
        self._progress: dict[str, Progress] = {}
        self.runs = Runs()

    def open(self, runs: Runs) -> None:
        """What the topic held when this session began, and holds from now on."""
        self.runs = runs
        for run in runs.asked():
            if run.progress is not None:
                self._progress[run.run] = run.progress

    def of(self, run: Run) -> Progress:
        return self._progress.get(run.run) or Progress(State.WAITING)

    # ---- what is written, each in the flush of the rows that it tells of, or in a later one ----

    def ask(self, request: Request) -> None:
        self._records.append(request.key(), request.dump())
        self._wake()

    def write(self, run: Run, progress: Progress) -> None:
        progress = self._progress[run.run] = replace(progress, updated_us=self._now_us())
        self._records.append(progress.key(run.source, run.run), progress.dump())
        self._wake()

    def end(self, run: Run, state: State, reason: str = "") -> None:
        self.write(run, replace(self.of(run), state=state, reason=reason, ended_us=self._now_us()))

    def begin_again(self, run: Run) -> None:
        """With nothing of what it has done."""
        self.write(run, Progress(State.WAITING))

    def _forget(self, run: Run) -> None:
        for key in run.part_keys():
            self._records.append(key, None)
        self._wake()
        self._progress.pop(run.run, None)
        del self.runs.by_run[run.source, run.run]

    # ---- what is to be done ---------------------------------------------------------------------

    def is_due(self, run: Run) -> bool:
        """Whether a run that nobody works on is to be worked on; writes what people and time make of it."""
        progress, wanted = self.of(run), run.wanted
        if progress.state.over:
            self._look_back(run, progress)
        elif wanted is Wanted.CANCEL:
            self.end(run, State.CANCELLED, run.by)
        elif wanted is Wanted.PAUSE:
            self.pause(run)
        else:
            return run.whole
        return False

    def pause(self, run: Run) -> None:
        progress = self.of(run)
        if progress.state is not State.PAUSED:
            self.write(run, replace(progress, state=State.PAUSED, reason=run.by))

    def _look_back(self, run: Run, progress: Progress) -> None:
        ended_us = progress.ended_us or 0
        told = run.wanted if run.wish is not None and run.wish.us > ended_us else None
        if progress.state is State.FAILED and told is Wanted.RUN:
            self.write(run, replace(progress, state=State.WAITING, reason="", ended_us=None))
        elif progress.state is State.FAILED and ended_us < self._since_us:
            self.write(run, replace(progress, state=State.CANCELLED, reason=RESET))
        elif progress.state is State.FAILED and (told is Wanted.CANCEL or self._made_good(run)):
            self.write(run, replace(progress, state=State.CANCELLED))
        elif ended_us + KEEP_DONE_US < self._now_us():
            self._forget(run)

    def _made_good(self, failed: Run) -> bool:
        """Whether a later run has published all rows of its table or entity."""
        return any(
            later.request is not None
            and failed.request is not None
            and later.request.place == failed.request.place
            and later.request.asked_us > failed.request.asked_us
            and not later.request.keyed
            and later.request.where is None
            and self.of(later).state is State.DONE
            for later in self.runs.asked()
        )

    # ---- for status -----------------------------------------------------------------------------

    def detail(self, rows_per_s: Callable[[str], float]) -> list[dict[str, Any]]:
        """What is worked on and waits, and what was over within the hour. `rows_per_s`: of a run's id."""
        since_us = self._now_us() - SHOWN_US
        shown = []
        for run in self.runs.asked():
            progress = self.of(run)
            if not progress.state.over or (progress.ended_us or 0) >= since_us:
                shown.append(_shown(run, progress, rows_per_s(run.run)))
        return shown[-SHOWN_LIMIT:]


def _shown(run: Run, progress: Progress, rows_per_s: float) -> dict[str, Any]:
    left = None if progress.estimated_rows is None else max(0, progress.estimated_rows - progress.rows)
    return {
        "run": run.run,
        "table": run.request.place if run.request is not None else "",
        "state": progress.state,
        "reason": progress.reason,
        "rows": progress.rows,
        "estimated_rows": progress.estimated_rows,
        "rows_per_s": round(rows_per_s, 1),
        "left_s": round(left / rows_per_s, 1) if left is not None and rows_per_s > 0 else None,
        "chunks": progress.chunks,
        "reread": progress.reread,
    }
