"""Rows of a Redis target that is one server: a batch is one script, checkpoints and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consumers.targets import redis_batch_script as batch_script
from consumers.targets import redis_scripts as scripts
from consumers.targets.base import Batch, Outcome, TableChanges
from consumers.targets.redis_layout import ONE_SERVER, Arg, Names
from consumers.targets.redis_ops import Plans, ops_of
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_session import RedisSession
from consumers.targets.redis_write import Request, outcome_of, request_of

STEP_ROWS = 300  # of a truncate or a purge: the server does nothing else for some 2 ms

APPLY, TRUNCATE, FORGET = Script(batch_script.APPLY), Script(scripts.TRUNCATE), Script(scripts.FORGET_REREADS)
PURGE, COUNT, BELOW = Script(scripts.PURGE), Script(scripts.COUNT), Script(scripts.COUNT_BELOW)


class OneServer:
    def __init__(self, session: RedisSession) -> None:
        self._session = session

    async def make_ready(self, changes: TableChanges, plans: Plans) -> None:
        """Before the batch's turn."""
        changes.ready = [await ops_of(changes, fold, plans) for fold in changes.folds]

    async def request(self, batch: Batch, plans: Plans) -> Request:
        return await request_of(batch, plans, ONE_SERVER)

    async def write(self, batch: Batch, request: Request) -> Outcome:
        """Raises RowsRefused, and has written nothing then."""
        reply = await send(self._session, request)
        return outcome_of(batch, request, reply, self._session.place)

    async def clear(self, names: Names, layout: tuple[str, str], floor: bytes, behind: Sequence[Arg]) -> None:
        """Take away what is at or below the floor, in steps. `behind`: names of records that stay, and what
        marks a row instead of removing it."""
        session = self._session
        cursor: bytes | int = 0
        while True:
            args = *layout, names.rows, names.gone, names.rereads, floor, cursor, STEP_ROWS, *behind
            cursor = await session.script(TRUNCATE, args)
            if int(cursor) == 0:
                break
        while True:
            cursor = await session.script(FORGET, (names.rereads, floor, cursor, STEP_ROWS))
            if int(cursor) == 0:
                break

    async def count_below(
        self, names: Names, layout: tuple[str, str], floor: bytes, behind: Sequence[Arg], limit: int
    ) -> int:
        """Rows that `clear` would take, in steps, up to some `limit`."""
        found = 0
        cursor: bytes | int = 0
        while True:
            args = *layout, names.rows, names.gone, floor, cursor, STEP_ROWS, *behind
            cursor, step = await self._session.script(BELOW, args)
            found += int(step)
            if int(cursor) == 0 or found >= limit:
                return found

    async def count(self, names: Names) -> int:
        return int(await self._session.script(COUNT, (names.rows, names.gone)))

    async def purge(self, names: Names, layout: tuple[str, str], keep_us: int, limit: int) -> int:
        """Forget up to some `limit` records; how many it was."""
        done = 0
        while done < limit:
            args = *layout, names.rows, names.gone, keep_us, STEP_ROWS
            step = int(await self._session.script(PURGE, args))
            done += step
            if step < STEP_ROWS:
                break
        return done

    async def noted(self, tables: Sequence[Names]) -> Sequence[Names]:
        """Where rows of these tables are noted, if any are."""
        return tables

    async def waiting(self, tables: Sequence[Names]) -> list[tuple[Names, int, str]]:
        """(table, rows that wait for a re-read, where they are noted), without those that have none."""
        found = []
        for names in tables:
            if count := int(await self._session.command("HLEN", names.rereads)):
                found.append((names, count, names.rereads))
        return found


async def send(session: RedisSession, request: Request) -> list[Any]:
    """Rows, checkpoints and all: one command, which the server carries out whole or not at all."""
    return list(await session.script(APPLY, request.args, request.keys))
