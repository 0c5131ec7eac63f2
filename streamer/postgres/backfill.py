"""The backfills of a Postgres source: which runs are worked on, and what is made of requests and wishes.

Owns the list of runs in the capture process: it follows the topic `<name>.__backfills`, starts what was asked
for, a few at a time, and forgets what is long over. One run's way is in backfill_run. Progress is written by
this process alone, so what it has given to the publisher is the truth, not what it reads back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from streamer.backfills import Follower
from streamer.changes.backfill import (
    KEEP_DONE_US,
    NEW_TABLE,
    Progress,
    Request,
    Run,
    Runs,
    State,
    Wanted,
    table_run,
)
from streamer.postgres.backfill_run import Context, TableRun
from streamer.postgres.catalog import Table

Follow = Callable[[], AbstractAsyncContextManager[Follower]]

RUNS_LIMIT = 4  # tables at once; more only queue at the source's disk
KEYED_LIMIT = 2  # beside them, so that a repair of some rows does not wait for large tables
POLL_S = 0.1  # how soon a request or a wish is seen
SHOWN_US = 3600 * 1_000_000  # a run that is over is in `status` for an hour
SHOWN_LIMIT = 50


class Backfill:
    """All runs of one source, while its stream runs."""

    def __init__(self, context: Context, follow: Follow, *, epoch: int) -> None:
        self._context = context
        self._follow = follow
        self._epoch = epoch
        self._runs = Runs()
        self._ready = False
        self._active: dict[str, TableRun] = {}
        self._progress: dict[str, Progress] = {}
        self._asked: set[str] = set()  # by this session

    async def run(self) -> None:
        """Until it is cancelled, or the first error that is not one run's own."""
        async with self._follow() as follower, asyncio.TaskGroup() as tasks:
            self._runs = follower.runs
            for run in self._runs.asked():
                if run.progress is not None:
                    self._progress[run.run] = run.progress
            self._ready = True
            while True:
                self._start_all(tasks)
                for run in await follower.next():
                    active = self._active.get(run.run)
                    if active is not None and run.wanted is not Wanted.RUN:
                        active.notice()
                await asyncio.sleep(POLL_S)

    def want(self, table: Table) -> tuple[bool, str]:
        """A table made later that has rows: (whether its backfill is durable, what is in the way of it).

        It is asked for before the table is published, so that no crash leaves it published and empty.
        """
        name = self._context.source.name
        run_id = table_run(name, table.schema, table.name, self._epoch)
        known = self._runs.by_run.get((name, run_id))
        if not self._ready:
            return False, ""
        if known is not None and known.request is not None:
            state = self._of(known).state
            if state.over:
                return (
                    False,
                    f"{table.qualified} is not captured: its backfill {run_id} is {state}; resume it",
                )
            return True, ""
        if run_id not in self._asked:
            self._asked.add(run_id)
            request = Request(
                run_id,
                name,
                schema=table.schema,
                table=table.name,
                by="capture",
                why=NEW_TABLE,
                asked_us=self._context.now_us(),
            )
            self._context.records.append(request.key(), request.dump())
            self._context.wake()
        return False, ""

    def detail(self) -> list[dict[str, Any]]:
        """For `status`: what is worked on and waits, and what was over within the hour."""
        since_us = self._context.now_us() - SHOWN_US
        shown = []
        for run in self._runs.asked():
            progress = self._of(run)
            if not progress.state.over or (progress.ended_us or 0) >= since_us:
                shown.append(self._shown(run, progress))
        return shown[-SHOWN_LIMIT:]

    def _shown(self, run: Run, progress: Progress) -> dict[str, Any]:
        active = self._active.get(run.run)
        rows_per_s = active.rows_per_s() if active is not None else 0.0
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

    # ---- what is to be done with each run ------------------------------------------------------

    def _of(self, run: Run) -> Progress:
        active = self._active.get(run.run)
        if active is not None:
            return active.progress
        return self._progress.get(run.run) or Progress(State.WAITING)

    def _start_all(self, tasks: asyncio.TaskGroup) -> None:
        for run in self._runs.asked():
            if run.run not in self._active:
                self._next_step(run, tasks)

    def _next_step(self, run: Run, tasks: asyncio.TaskGroup) -> None:
        progress, wanted = self._of(run), run.wanted
        now_us = self._context.now_us()
        if progress.state.over:
            ended_us = progress.ended_us or 0
            if progress.state is State.FAILED and _told(run, Wanted.RUN, ended_us):
                self._record(run, replace(progress, state=State.WAITING, reason="", ended_us=None))
            elif progress.state is State.FAILED and (
                _told(run, Wanted.CANCEL, ended_us) or self._made_good(run)
            ):
                self._record(run, replace(progress, state=State.CANCELLED))
            elif ended_us + KEEP_DONE_US < now_us:
                self._forget(run)
            return
        if wanted is Wanted.CANCEL:
            self._record(run, replace(progress, state=State.CANCELLED, ended_us=now_us))
        elif wanted is Wanted.PAUSE:
            if progress.state is not State.PAUSED:
                self._record(run, replace(progress, state=State.PAUSED))
        elif run.whole and self._room(run):
            active = self._active[run.run] = TableRun(self._context, run, progress)
            tasks.create_task(self._work(active), name=f"backfill {run.run}")

    def _made_good(self, failed: Run) -> bool:
        """Whether a later run has published the whole table."""
        return any(
            later.request is not None
            and failed.request is not None
            and later.request.place == failed.request.place
            and later.request.asked_us > failed.request.asked_us
            and not later.request.keyed
            and later.request.where is None
            and self._of(later).state is State.DONE
            for later in self._runs.asked()
        )

    def _room(self, run: Run) -> bool:
        keyed = run.request is not None and run.request.keyed
        running = sum(active.request.keyed == keyed for active in self._active.values())
        return running < (KEYED_LIMIT if keyed else RUNS_LIMIT)

    async def _work(self, active: TableRun) -> None:
        try:
            await active.work()
        finally:
            self._progress[active.run.run] = active.progress
            del self._active[active.run.run]

    def _record(self, run: Run, progress: Progress) -> None:
        progress = self._progress[run.run] = replace(progress, updated_us=self._context.now_us())
        self._context.records.append(progress.key(run.source, run.run), progress.dump())
        self._context.wake()

    def _forget(self, run: Run) -> None:
        for key in run.part_keys():
            self._context.records.append(key, None)
        self._context.wake()
        self._progress.pop(run.run, None)
        del self._runs.by_run[run.source, run.run]


def _told(run: Run, wanted: Wanted, ended_us: int) -> bool:
    """Whether a person has said so since the run was over."""
    return run.wish is not None and run.wish.wish is wanted and run.wish.us > ended_us
