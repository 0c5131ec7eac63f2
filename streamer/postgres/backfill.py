"""The backfills of a Postgres source: which runs are worked on at once.

Owns the tasks of the runs in the capture process: it follows the topic `<name>.__backfills` and starts what
was asked for, a few at a time. One run's way is in backfill_run, what is known of each in backfill_ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from streamer.backfill_ledger import POLL_S, Follow
from streamer.changes.backfill import (
    NEW_TABLE,
    REPAIR,
    TABLE_GONE,
    Progress,
    Request,
    Run,
    State,
    Wanted,
    table_run,
)
from streamer.postgres.backfill_run import Context, TableRun
from streamer.postgres.catalog import Table

RUNS_LIMIT = 4  # tables at once; more only queue at the source's disk
KEYED_LIMIT = 2  # beside them, so that a repair of some rows does not wait for large tables


class Backfill:
    """All runs of one source, while its stream runs."""

    def __init__(self, context: Context, follow: Follow, *, epoch: int) -> None:
        self._context = context
        self._ledger = context.ledger
        self._follow = follow
        self._epoch = epoch
        self._ready = False
        self._active: dict[str, TableRun] = {}
        self._asked: set[str] = set()  # by this session

    async def run(self) -> None:
        """Until it is cancelled, or the first error that is not one run's own."""
        async with self._follow() as follower, asyncio.TaskGroup() as tasks:
            self._ledger.open(follower.runs)
            self._ready = True
            while True:
                for run in follower.runs.asked():
                    if run.run not in self._active and self._ledger.is_due(run) and self._room(run):
                        active = self._active[run.run] = TableRun(self._context, run)
                        tasks.create_task(self._work(active), name=f"backfill {run.run}")
                for run in await follower.next():
                    running = self._active.get(run.run)
                    if running is not None and run.wanted is not Wanted.RUN:
                        running.notice()
                await asyncio.sleep(POLL_S)

    def want(self, table: Table, published: bool) -> tuple[bool, str]:
        """A table made later that has rows: (whether its backfill is durable, what is in the way of it).

        It is asked for before the table is published, so that no crash leaves it published and empty.
        """
        name = self._context.source.name
        run_id = table_run(name, table.schema, table.name, self._epoch)
        known = self._ledger.runs.by_run.get((name, run_id))
        if not self._ready:
            return False, ""
        if known is not None and known.request is not None:
            progress = self._ledger.of(known)
            state = progress.state
            if state is State.CANCELLED and progress.reason == TABLE_GONE:
                self._ledger.begin_again(known)  # another table has its name
                return False, ""
            if state.over and not (published and state is State.DONE):
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
            self._ledger.ask(request)
        return False, ""

    def repaired(self, table: str, lsn: int) -> bool:
        """See Cures."""
        return any(
            request.deletes and request.why.startswith(REPAIR) and request.compared_lsn >= lsn
            for request, _ in self._done(table)
        )

    def refilled(self, table: str, since_us: int) -> bool:
        """See Cures."""
        return any(
            not request.keyed and request.where is None and progress.began_us > since_us
            for request, progress in self._done(table)
        )

    def _done(self, table: str) -> Iterator[tuple[Request, Progress]]:
        for run in self._ledger.runs.asked():
            request, progress = run.request, self._ledger.of(run)
            if request is not None and request.place == table and progress.state is State.DONE:
                yield request, progress

    def detail(self) -> list[dict[str, Any]]:
        """For `status`."""
        active = self._active
        return self._ledger.detail(lambda run: active[run].rows_per_s() if run in active else 0.0)

    def _room(self, run: Run) -> bool:
        keyed = run.request is not None and run.request.keyed
        running = sum(active.request.keyed == keyed for active in self._active.values())
        return running < (KEYED_LIMIT if keyed else RUNS_LIMIT)

    async def _work(self, active: TableRun) -> None:
        try:
            await active.work()
        finally:
            del self._active[active.run.run]
