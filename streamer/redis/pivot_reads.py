"""The values of pivots' rows, read at one moment of the server: one MULTI a batch of rows.

A value of another type than the column's is an error reply in its place, which the pivot judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from hiredis import ReplyError

from streamer.redis.connection import RedisConnection
from streamer.redis.pivot import HASH, ZSET, Answer, PivotRow, Read
from streamer.redis.replies import Command, code

_WRONG_TYPE = "WRONGTYPE"


async def read_rows(
    connection: RedisConnection, db: int, rows: Sequence[PivotRow]
) -> tuple[int, list[list[Answer]]]:
    """(the server's microseconds, the answers of each row); all rows are of database `db`."""
    reads = [read for row in rows for read in row.reads]
    commands: list[Command] = [("SELECT", db), ("MULTI",), ("TIME",), *map(_command, reads), ("EXEC",)]
    replies = await connection.pipeline(commands, errors=True)
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ReplyError):
            raise connection.translate(reply, command)
    time, *found = replies[-1]
    answers: list[Answer] = []
    for read, reply in zip(reads, found, strict=True):
        if isinstance(reply, ReplyError) and code(reply) != _WRONG_TYPE:
            raise connection.translate(reply, _command(read))
        answers.append(reply)
    split: list[list[Answer]] = []
    at = 0
    for row in rows:
        split.append(answers[at : at + len(row.reads)])
        at += len(row.reads)
    return int(time[0]) * 1_000_000 + int(time[1]), split


def _command(read: Read) -> Command:
    if read.kind == ZSET:
        assert read.field is not None
        return ("ZSCORE", read.key, read.field)
    if read.kind == HASH:
        assert read.field is not None
        return ("HGET", read.key, read.field)
    return ("GET", read.key)
