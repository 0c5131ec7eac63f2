"""What keys hold now: the re-read script, and large keys in steps.

Owns the script and the limits on how long one step may block the server. The script decides what a key is;
notifications, scans and reverse passes only name candidates (H20, H21).

A batch of keys is read at one moment of the server. What does not fit into a step's budget is asked again
in the next step, with that step's time; keys above a limit come with type and size only.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, NamedTuple

from hiredis import ReplyError

from streamer.errors import RetryableError
from streamer.redis.connection import Asked, RedisConnection
from streamer.redis.replies import Arg, Command, code, denied

BATCH_KEYS = 500  # keys a call of the script
# What one call may read: 2 ms of the server; a key just below the next limits may come on top.
BATCH_ELEMENTS = 4_000
BATCH_BYTES = 1 * 2**20
BIG_ELEMENTS = 1_000  # a hash, list, set or zset above it is read by `scan_members`
BIG_BYTES = 256 * 1024  # a string above it is read alone, by `read_string`, which copies it once less
# Elements a step of a big key: 0.5 ms. HSCAN and SSCAN jump through memory, which costs six times what
# ZRANGE and LRANGE cost.
SCAN_COUNT = 500
RANGE_COUNT = 2_000
FIRST_COUNT = 100  # of the first step, whose elements' size is not known yet
STEP_BYTES = 1 * 2**20  # large elements: fewer of them a step
SIZE_SAMPLES = 16
RANGE_OVERLAP = 100  # ranks that are read twice, for members removed below between two steps
STREAM_STEP_COUNT = 500  # entries; each has fields of its own

# KEYS: the keys. ARGV: database, elements, bytes, big elements, big bytes. Reply: seconds, microseconds,
# then for each key 0 (gone), 1 (the budget is used up) or {type, expiry in ms or -1, size, value or none}.
# PEXPIRETIME is of Redis 7; before, the expiry is the time and PTTL, which may differ by a millisecond.
SCRIPT = b"""
local call = redis.call
call('SELECT', ARGV[1])
local elements, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local big, long = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = call('TIME')
local out = {time[1], time[2]}
local reads = {
  hash = {'HLEN', 'HGETALL'}, set = {'SCARD', 'SMEMBERS'},
  zset = {'ZCARD', 'ZRANGE', 0, -1, 'WITHSCORES'}, list = {'LLEN', 'LRANGE', 0, -1},
}
for i = 1, #KEYS do
  local key = KEYS[i]
  if elements <= 0 or bytes <= 0 then
    out[i + 2] = 1
  else
    local kind = call('TYPE', key).ok
    if kind == 'none' then
      out[i + 2] = 0
      elements = elements - 1
    else
      local expiry = call('PTTL', key)
      if expiry >= 0 then expiry = EXPIRY end
      local size, value = -1, nil
      local read = reads[kind]
      if kind == 'string' then
        size = call('STRLEN', key)
        if size <= long then
          value = call('GET', key)
          bytes = bytes - size
        end
        elements = elements - 1
      elseif read then
        size = call(read[1], key)
        if size <= big then
          value = call(read[2], key, unpack(read, 3))
          elements = elements - size
          local step = #value > 64 and 16 or 1
          for j = 1, #value, step do bytes = bytes - #value[j] * step end
        end
        elements = elements - 1
      elseif kind == 'stream' then
        size = call('XLEN', key)
        elements = elements - 1
      end
      out[i + 2] = {kind, expiry, size, value}
    end
  end
end
return out
"""
_EXPIRY = {True: b"call('PEXPIRETIME', key)", False: b"expiry + time[1] * 1000 + math.floor(time[2] / 1000)"}
_IN_SCRIPT = (
    *("TYPE", "PTTL", "PEXPIRETIME", "STRLEN", "GET", "HLEN", "HGETALL"),
    *("SCARD", "SMEMBERS", "ZCARD", "ZRANGE", "LLEN", "LRANGE", "XLEN"),
)
_MORE: dict[str, tuple[int, ...]] = {
    "ZRANGE": (0, 0),
    "LRANGE": (0, 0),
    "HSCAN": (0,),
    "SSCAN": (0,),
    "ZSCAN": (0,),
}
_SCAN = {"hash": "HSCAN", "set": "SSCAN"}
_CONFIRM = {"zset": "ZMSCORE", "hash": "HMGET", "set": "SMISMEMBER"}

Value = bytes | list[bytes] | dict[bytes, bytes] | dict[bytes, float]


class KeyState(NamedTuple):
    """What a key held at `server_us`, the server's clock.

    `type` None: there is no such key. `value` None beside a type: it is above a limit, or of a type that
    is not read here (stream, a module's). string: bytes; list, set: list; hash: dict; zset: dict of floats.
    `size`: bytes of a string, else elements; -1 for a module's type.
    """

    db: int
    key: bytes
    type: str | None
    expires_us: int | None
    value: Value | None
    size: int
    server_us: int


class Step(NamedTuple):
    """Some members of a large key, read at `server_us` or after it.

    zset: member -> float; hash: field -> value; set: member -> None; list: index -> value.
    """

    server_us: int
    members: dict[Any, Any]


class StreamStep(NamedTuple):
    """Entries of a stream in order: (id, [(field, value), ...])."""

    server_us: int
    entries: list[tuple[bytes, list[tuple[bytes, bytes]]]]


class StreamInfo(NamedTuple):
    """Of XINFO STREAM; what Redis before 7 does not say is None. An id: (milliseconds, sequence)."""

    last_id: tuple[int, int]  # the highest one it has given
    length: int
    first: tuple[int, int] | None  # None: it is empty
    added: int | None  # entries that it has ever had
    deleted: tuple[int, int] | None  # the highest id that XDEL has taken

    @property
    def lost(self) -> int | None:
        """How many entries were trimmed or deleted; entries that come meanwhile do not change it."""
        return None if self.added is None else self.added - self.length

    def bound(self, first: tuple[int, int] | None) -> tuple[int, int]:
        """An id above it whose entry is not there was never this stream's. `first`: entry that was there."""
        if self.deleted is None:
            return self.last_id
        return min(self.last_id, max(first or self.last_id, self.deleted))


class KeyChanged(RetryableError):
    """The key is of another type than when its steps began: read it again."""


class Reread:
    """Reads keys through one line of commands. Each step is a call of its own, so that the server can
    serve others between any two."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._is_7 = connection.major >= 7
        # The read-only forms are enough for a user who may not write.
        self._eval, self._evalsha = ("EVAL_RO", "EVALSHA_RO") if self._is_7 else ("EVAL", "EVALSHA")
        self._script = SCRIPT.replace(b"EXPIRY", _EXPIRY[self._is_7])
        self._sha = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    async def read(self, keys: Sequence[tuple[int, bytes]]) -> list[KeyState]:
        """The state of each (database, key), in their order; keys of one database are best side by side."""
        states: list[KeyState] = []
        at = 0
        while at < len(keys):
            db = keys[at][0]
            batch = []
            for other, key in islice(keys, at, at + BATCH_KEYS):
                if other != db:
                    break
                batch.append(key)
            read = await self._batch(db, batch)
            states += read
            at += len(read)
        return states

    async def _batch(self, db: int, keys: list[bytes]) -> list[KeyState]:
        """The states of as many of the first keys as one call's budget holds, one at least."""
        reply = await self._call(keys, db, BATCH_ELEMENTS, BATCH_BYTES, BIG_ELEMENTS, BIG_BYTES)
        server_us = int(reply[0]) * 1_000_000 + int(reply[1])
        states = []
        for key, found in zip(keys, islice(reply, 2, None), strict=True):
            if found == 1:
                break
            if found == 0:
                states.append(KeyState(db, key, None, None, None, 0, server_us))
                continue
            kind = found[0].decode()
            value = found[3] if len(found) > 3 else None
            if value is not None:
                if kind == "hash":
                    value = dict(zip(value[::2], value[1::2], strict=True))
                elif kind == "zset":
                    value = dict(zip(value[::2], map(float, value[1::2]), strict=True))
            expires_us = found[1] * 1000 if found[1] >= 0 else None
            states.append(KeyState(db, key, kind, expires_us, value, found[2], server_us))
        return states

    async def _call(self, keys: list[bytes], *args: Arg) -> list[Any]:
        return await self.evaluate(self._script, self._sha, keys, *args)

    async def evaluate(
        self, script: bytes, sha: str, keys: list[bytes], *args: Arg, runs: Sequence[str] = _IN_SCRIPT
    ) -> list[Any]:
        """A script's reply; `runs`: its commands. Raises KeyChanged when a key is of another type."""
        command: Command = (self._evalsha, sha, len(keys), *keys, *args)
        (reply,) = await self._connection.pipeline([command], errors=True)
        if isinstance(reply, ReplyError) and code(reply) == "NOSCRIPT":
            command = (self._eval, script, len(keys), *keys, *args)
            (reply,) = await self._connection.pipeline([command], errors=True)
        if isinstance(reply, ReplyError):
            if "WRONGTYPE" in str(reply):
                raise KeyChanged("a key is no longer what its script reads", where=self._connection.where)
            await self._check_rights(keys[0], runs)
            raise self._connection.translate(reply, command[:1])
        answer: list[Any] = reply
        return answer

    async def _check_rights(self, key: bytes, runs: Sequence[str]) -> None:
        """Name the commands that this user lacks: from inside of a script only some servers do."""
        names = [name for name in runs if self._is_7 or name != "PEXPIRETIME"]
        nowhere = key + b"\x00tailrace\x00nothing"  # may be read when `key` may, and costs nothing
        probes: list[Command] = [(name, nowhere, *_MORE.get(name, ())) for name in names]
        replies = await self._connection.pipeline(probes, errors=True)
        lacking = [
            name
            for name, reply in zip(names, replies, strict=True)
            if isinstance(reply, ReplyError) and code(reply) == "NOPERM" and "command" in str(reply)
        ]
        if lacking:
            line = self._connection
            raise denied(lacking, user=line.user, where=line.where, rule=line.rule)

    async def read_string(self, db: int, key: bytes) -> KeyState:
        """A string of any size, by itself. Raises KeyChanged."""
        expiry = "PEXPIRETIME" if self._is_7 else "PTTL"
        server_us, expires_ms, value = await self._finish(self._begin(db, (expiry, key), ("GET", key)))
        if value is None:
            return KeyState(db, key, None, None, None, 0, server_us)
        if not self._is_7 and expires_ms >= 0:
            expires_ms += server_us // 1000
        expires_us = expires_ms * 1000 if expires_ms >= 0 else None
        return KeyState(db, key, "string", expires_us, value, len(value), server_us)

    async def scan_members(
        self, db: int, key: bytes, kind: str, *, count: int | None = None
    ) -> AsyncIterator[Step]:
        """All members of a large zset, hash, set or list, in steps.

        Fields of a hash and members of a set that are there throughout come at least once. A zset is read
        by rank: a member may be missed when others are removed or moved below it on the way (and then the
        key is notified once more). So whoever finds one missing must ask `confirm_members`. A list's steps
        belong together only when nothing was notified meanwhile. Raises KeyChanged.
        """
        if kind in ("zset", "list"):
            async with aclosing(self._scan_ranks(db, key, kind, count or RANGE_COUNT)) as steps:
                async for step in steps:
                    yield step
        else:
            async with aclosing(self._scan_table(db, key, kind, count or SCAN_COUNT)) as steps:
                async for step in steps:
                    yield step

    async def _scan_table(self, db: int, key: bytes, kind: str, count: int) -> AsyncGenerator[Step, None]:
        cursor = b"0"
        steps = self._begin(db, (_SCAN[kind], key, cursor, "COUNT", min(count, FIRST_COUNT)))
        while True:
            server_us, (cursor, found) = await self._finish(steps)
            if cursor != b"0":  # the server reads on while these members are looked at
                steps = self._begin(db, (_SCAN[kind], key, cursor, "COUNT", _fitting(count, found)))
            if kind == "hash":
                yield Step(server_us, dict(zip(found[::2], found[1::2], strict=True)))
            else:
                yield Step(server_us, dict.fromkeys(found))
            if cursor == b"0":
                return

    async def _scan_ranks(self, db: int, key: bytes, kind: str, count: int) -> AsyncGenerator[Step, None]:
        name, *options = ("ZRANGE", "WITHSCORES") if kind == "zset" else ("LRANGE",)
        overlap = RANGE_OVERLAP if kind == "zset" else 0
        start, wanted = 0, min(count, FIRST_COUNT)
        steps = self._begin(db, (name, key, start, start + wanted - 1, *options))
        while True:
            server_us, found = await self._finish(steps)
            first, last = start, len(found) < wanted
            if not last:  # the server reads on while these members are looked at
                start += wanted - min(overlap, wanted // 2)
                wanted = _fitting(count, [pair[0] for pair in found[:SIZE_SAMPLES]] if options else found)
                steps = self._begin(db, (name, key, start, start + wanted - 1, *options))
            yield Step(server_us, dict(found if options else enumerate(found, first)))
            if last:
                return

    async def confirm_members(self, db: int, key: bytes, kind: str, members: Sequence[bytes]) -> Step:
        """What these members of a zset, hash or set hold now, None for each that is gone; a set's are True.

        Some hundreds at a time. Raises KeyChanged, which also means that they are gone.
        """
        server_us, found = await self._finish(self._begin(db, (_CONFIRM[kind], key, *members)))
        if kind == "set":
            found = [bool(there) or None for there in found]
        return Step(server_us, dict(zip(members, found, strict=True)))

    async def read_stream(
        self, db: int, key: bytes, after: bytes = b"-", *, count: int = STREAM_STEP_COUNT
    ) -> StreamStep:
        """The next entries behind the id `after`; from the start for b"-". Raises KeyChanged."""
        first = after if after == b"-" else b"(" + after
        server_us, found = await self._finish(self._begin(db, ("XRANGE", key, first, "+", "COUNT", count)))
        entries = [(at, list(zip(flat[::2], flat[1::2], strict=True))) for at, flat in found]
        return StreamStep(server_us, entries)

    async def confirm_entries(self, db: int, key: bytes, ids: Sequence[bytes]) -> tuple[int, set[bytes]]:
        """(the server's microseconds, those of a stream's ids that are there). Raises KeyChanged."""
        commands: list[Command] = [("XRANGE", key, one, one) for one in ids]
        server_us, *found = await self._finish(self._begin(db, *commands))
        return server_us, {one for one, entries in zip(ids, found, strict=True) if entries}

    async def stream_info(self, db: int, key: bytes) -> StreamInfo | None:
        """What this stream says of itself; None: there is none."""
        command: Command = ("XINFO", "STREAM", key)
        _, reply = await self._connection.pipeline([("SELECT", db), command], errors=True)
        if not isinstance(reply, ReplyError):
            return _stream_info(reply)
        if code(reply) == "NOPERM":
            raise self._connection.translate(reply, command)
        return None

    def _begin(self, db: int, *commands: Command) -> tuple[list[Command], Asked]:
        """Send commands behind TIME, so that what they read is not older than it."""
        whole: list[Command] = [("SELECT", db), ("TIME",), *commands]
        return whole, self._connection.begin(whole)

    async def _finish(self, step: tuple[list[Command], Asked]) -> list[Any]:
        """[server_us, reply, ...]"""
        commands, asked = step
        _, time, *replies = await self._connection.finish(asked, commands, errors=True)
        for command, reply in zip(commands[2:], replies, strict=True):
            if isinstance(reply, ReplyError):
                if code(reply) == "WRONGTYPE":
                    what = f"{command[0]!s} found a key of another type"
                    raise KeyChanged(what, where=self._connection.where, fix="nothing: it is read again")
                raise self._connection.translate(reply, command[:1])
        return [int(time[0]) * 1_000_000 + int(time[1]), *replies]


def _fitting(count: int, found: Sequence[bytes]) -> int:
    """How many elements the next step may read, by the size of some of the last."""
    sample = found[:SIZE_SAMPLES]
    if not sample:
        return count
    element_bytes = max(1, sum(map(len, sample)) // len(sample))
    return max(1, min(count, STEP_BYTES // element_bytes))


def _stream_info(reply: dict[bytes, Any]) -> StreamInfo:
    first, deleted = reply[b"first-entry"], reply.get(b"max-deleted-entry-id")
    return StreamInfo(
        id_of(reply[b"last-generated-id"]),
        reply[b"length"],
        None if first is None else id_of(first[0]),
        reply.get(b"entries-added"),
        None if deleted is None else id_of(deleted),
    )


def id_of(text: bytes) -> tuple[int, int]:
    """Of a stream's entry: its milliseconds and sequence."""
    milliseconds, _, sequence = text.partition(b"-")
    return int(milliseconds), int(sequence)
