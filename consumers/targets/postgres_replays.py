"""Checkpoints that an operator has set back, in a Postgres target: `tailrace replay`.

    replays   (flow, topic, partition): up to where records come a second time, who asked for it, and when

What is read again was applied before, and some of it has gone from the table since: the rows' guard keeps
that so, and gates are told by `until_offset` that these deletes are no news.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.apply.checkpoint import Checkpoint, Place, Rewind
from consumers.targets import postgres_state as state

_DDL = (
    """CREATE TABLE IF NOT EXISTS _tailrace.replays (
        flow text, topic text, partition int, until_offset bigint NOT NULL, asked_by text NOT NULL,
        asked timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (flow, topic, partition))""",
)

_SET_BACK = """UPDATE _tailrace.checkpoints SET next_offset = $4, last_offset = $5, last_checksum = $6,
last_epoch = $7, last_lsn = $8, last_ordinal = $9, updated = now()
WHERE (flow, topic, partition) = ($1, $2, $3)"""

_NOTE = """INSERT INTO _tailrace.replays (flow, topic, partition, until_offset, asked_by)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT (flow, topic, partition) DO UPDATE
SET until_offset = excluded.until_offset, asked_by = excluded.asked_by, asked = now()"""


async def ensure(connection: state.Connection) -> None:
    """Make the table, also in a target that an earlier program has made."""
    await state.add(connection, "replays", _DDL)


async def rewind(
    connection: state.Connection, rewinds: Sequence[Rewind], who: str
) -> dict[Place, Checkpoint]:
    """As Target.rewind has it."""
    wanted = {rewind.place: rewind for rewind in rewinds}
    places = sorted(wanted)
    async with connection.transaction():
        await connection.execute(state.LOCK_CHECKPOINTS, state.columns_of(places))
        moved = {
            place: was
            for place, was in (await state.stands(connection, places)).items()
            if was.next_offset > wanted[place].next_offset
        }
        for place, was in moved.items():
            last = wanted[place].last
            parts: tuple[int | None, ...] = (None,) * 5
            if last is not None:
                parts = last.offset, last.checksum, last.epoch, last.commit_lsn, last.ordinal
            await connection.execute(_SET_BACK, (*place, wanted[place].next_offset, *parts))
            await connection.execute(_NOTE, (*place, was.replayed_to, who))
    return moved
