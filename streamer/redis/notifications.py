"""The subscription: which keys were touched, and since when.

Owns the server's setting `notify-keyspace-events`, the patterns subscribed to, and the one map of touched
keys. What a key holds is not looked at here: a notification is a hint (Redis manual, "Keyspace
notifications": at most once, nothing for FLUSHDB and SWAPDB).

Channel of an event: `__keyspace@<db>__:<key>`; the message is the event's name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from hiredis import ReplyError

from streamer.errors import ConfigError
from streamer.redis.connection import RedisConnection
from streamer.redis.gaps import Gaps, Reason

SETTING = "notify-keyspace-events"
# Keys that wait to be read again: 25 s of 20,000 different keys a second, about 75 MB. A full scan is the
# cheaper way to read more than that.
KEYS_LIMIT = 500_000
# Moments that are asked after and not reached yet: one a second, and those of fences.
MARKS_LIMIT = 1_000
_MARK = b"fence "  # before the moment, in the canary's channel
# A PSUBSCRIBE of many patterns blocks the server for each of them.
PATTERNS_LIMIT = 1000

# Always: K (by key), g (DEL, EXPIRE, RENAME, COPY, RESTORE), x and e (expired, evicted), and the classes of
# the commands that put their result over a key of any type: SET and BITOP ($), SORT (l), SUNIONSTORE (s),
# ZUNIONSTORE (z). A key that loses its type so is a changed key.
_ALWAYS = "Kgxe$lsz"
_OF_TYPE = {"hash": "h", "stream": "t"}
_ALL = "g$lshzxetd"  # what A stands for
# After one of these a key has another value; a stream's ids may begin anew.
_REMAKES = frozenset(b"rename_to rename_from copy_to restore move_to move_from del expired evicted".split())
_SETS_ID = b"xsetid"


def needed_classes(types: Iterable[str]) -> str:
    """The letters of `notify-keyspace-events` for keys of these types (string, hash, stream, ...)."""
    return _ALWAYS + "".join(sorted({_OF_TYPE[kind] for kind in types if kind in _OF_TYPE}))


def missing_classes(setting: str, needed: str) -> str:
    """The letters of `needed` that `setting` does not have."""
    has = setting.replace("A", _ALL)
    return "".join(letter for letter in needed if letter not in has)


async def read_setting(connection: RedisConnection) -> str | None:
    """The server's setting; None: this user may not read it, or the server has no CONFIG."""
    (reply,) = await connection.pipeline([("CONFIG", "GET", SETTING)], errors=True)
    return setting_of(reply)


def setting_of(reply: Any) -> str | None:
    """The setting in a reply to CONFIG GET; None when it was refused."""
    if isinstance(reply, ReplyError):
        return None
    pairs = reply if isinstance(reply, dict) else {}
    return bytes(pairs.get(SETTING.encode(), b"")).decode()


async def ensure_setting(
    connection: RedisConnection, needed: str, *, manage: bool
) -> tuple[str | None, bool]:
    """The setting as it is now, and whether it had to be changed (then events before were lost).

    Adds the letters that are missing and takes none away; the server's file is not rewritten, so the
    setting may be gone after a restart, and is then set again. Raises ConfigError when letters are missing
    and may not be added. None: it cannot be read, and `manage` is off.
    """
    (reply,) = await connection.pipeline([("CONFIG", "GET", SETTING)], errors=True)
    setting = setting_of(reply)
    if setting is None:
        if manage:
            error = connection.translate(reply, ("CONFIG", "GET", SETTING))
            raise ConfigError(
                f"{SETTING} cannot be read: {error.what}",
                where=connection.where,
                fix=f"{error.fix}; or set it on the server to {needed} and write `notifications: check`",
            )
        return None, False
    missing = missing_classes(setting, needed)
    if not missing:
        return setting, False
    wanted = setting + missing
    if not manage:
        raise ConfigError(
            f"{SETTING} is {setting!r}, which lacks {missing}",
            where=connection.where,
            fix=f"run CONFIG SET {SETTING} {wanted} (and CONFIG REWRITE), or write `notifications: manage`",
        )
    await connection.command("CONFIG", "SET", SETTING, wanted)
    return wanted, True


def canary_channel(name: str, source: str) -> bytes:
    """Where a source's capture sends its own messages; `name`: the config's."""
    return f"__tailrace__:{name}:{source}".encode()


def mark_message(server_us: int) -> bytes:
    """For the canary's channel: whoever sends it asks until when all that was notified is in Kafka.

    It stands in the subscription behind every change that was made before it was sent, so `server_us`, which
    the server's clock has shown by then, is reached once all before it is published.
    """
    return b"%b%d" % (_MARK, server_us)


def channel_pattern(db: int, glob: bytes) -> bytes:
    """What is subscribed to for the keys of a glob."""
    return b"__keyspace@%d__:%b" % (db, glob)


def _place_of(channel: bytes) -> tuple[int, bytes]:
    """(database, key) of an event's channel."""
    head, _, key = channel.partition(b"__:")
    return int(head[len(b"__keyspace@") :]), key


class Watch:
    """The touched keys of one subscription. `connection` is its own line: nothing else is asked on it."""

    def __init__(
        self,
        connection: RedisConnection,
        globs: Mapping[int, Sequence[bytes]],
        gaps: Gaps,
        *,
        canary: bytes,
        clock_s: Callable[[], float],
        limit: int = KEYS_LIMIT,
    ) -> None:
        """`globs`: database -> globs of keys. `canary`: the source's own channel, `__tailrace__:...`.
        `clock_s`: monotonic, as in `take`.
        """
        self.connection = connection
        self.canary_channel = canary
        self.events = 0  # notifications taken
        self.overflows = 0
        self.canary = 0  # number of the last canary that came
        self.whole = frozenset(db for db, wanted in globs.items() if b"*" in wanted)
        self.gone = 0  # expired and evicted events of the databases in `whole`
        self.gone_at_canary = 0
        # Of a stream that was set back, or (`remade`) a key that has another value.
        self.on_remade: Callable[[int, bytes, bool], None] | None = None
        self._patterns = [channel_pattern(db, glob) for db, wanted in globs.items() for glob in wanted]
        self._counted = {channel_pattern(db, b"*") for db in self.whole}
        self._ours = connection.server["id"].encode() + b" "  # another capture of the source is not heeded
        self._gaps = gaps
        self._clock_s = clock_s
        self._limit = limit
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_LIMIT)  # (came, server's microseconds)
        self.on_mark: Callable[[], None] | None = None  # somebody waits for a moment
        self._touched: dict[bytes, float] = {}  # channel -> first seen; a channel names database and key
        self._arrived = asyncio.Event()
        self._canary_came = asyncio.Event()
        connection.on_push = self._on_push

    async def start(self) -> None:
        """Subscribe; at the return every later change is seen. Raises ConfigError when the ACL forbids it."""
        await self.connection.subscribe("SUBSCRIBE", self.canary_channel)
        for at in range(0, len(self._patterns), PATTERNS_LIMIT):
            await self.connection.subscribe("PSUBSCRIBE", *self._patterns[at : at + PATTERNS_LIMIT])

    def _on_push(self, push: list[Any]) -> None:
        """In the reader, for each push: as little as can be."""
        if push[0] == b"pmessage":
            self.events += 1
            touched = self._touched
            channel = push[2]
            if channel not in touched:
                if len(touched) >= self._limit:
                    self._overflow()
                touched[channel] = self._clock_s()
                if len(touched) == 1:
                    self._arrived.set()
            if push[3] in _REMAKES:
                if push[1] in self._counted and push[3] in (b"expired", b"evicted"):
                    self.gone += 1
                if self.on_remade is not None:
                    self.on_remade(*_place_of(channel), True)
            elif push[3] == _SETS_ID and self.on_remade is not None:
                self.on_remade(*_place_of(channel), False)
        elif push[0] == b"message" and push[2].startswith(self._ours):
            self.canary = int(push[2][len(self._ours) :])
            self.gone_at_canary = self.gone
            self._canary_came.set()
        elif push[0] == b"message" and push[2].startswith(_MARK):
            self._marks.append((self._clock_s(), int(push[2][len(_MARK) :])))
            if self.on_mark is not None:
                self.on_mark()

    def _overflow(self) -> None:
        self._touched.clear()
        self.overflows += 1
        self._gaps.report(
            Reason.OVERFLOW, f"more than {self._limit} keys waited to be read again; they were let go"
        )

    # -- for the session

    @property
    def pending(self) -> int:
        """Keys that wait to be read again."""
        return len(self._touched)

    @property
    def oldest_s(self) -> float | None:
        """When the first of them was seen."""
        return next(iter(self._touched.values()), None)

    @property
    def first_mark_s(self) -> float | None:
        """When the first of the moments came that were asked after and are not reached yet."""
        return self._marks[0][0] if self._marks else None

    def reached(self, oldest_s: float | None) -> int:
        """The last moment asked after that came before `oldest_s`, since when the oldest key waits or is
        worked on; 0: there is none. It and those before it are asked after no more."""
        last = 0
        while self._marks and (oldest_s is None or self._marks[0][0] < oldest_s):
            last = max(last, self._marks.popleft()[1])
        return last

    def take(self, limit: int) -> list[tuple[int, bytes, float]]:
        """Up to `limit` (database, key, first seen in monotonic seconds), those first seen first; they are
        no longer pending."""
        touched = self._touched
        taken = []
        for channel in list(islice(touched, limit)):
            taken.append((*_place_of(channel), touched.pop(channel)))
        if not touched:
            self._arrived.clear()
        return taken

    def put_back(self, keys: Iterable[tuple[int, bytes, float]]) -> None:
        """Keys that were taken and not dealt with: they wait again, since when they were first seen."""
        touched = {b"__keyspace@%d__:%b" % (db, key): seen_s for db, key, seen_s in keys}
        for channel, seen_s in self._touched.items():
            touched.setdefault(channel, seen_s)
        self._touched = touched
        if touched:
            self._arrived.set()

    def clear(self) -> int:
        """Forget what waits, because a full scan that starts after this reads it all; how many there were."""
        count = len(self._touched)
        self._touched.clear()
        self._arrived.clear()
        return count

    def canary_message(self, number: int) -> bytes:
        """What to publish in the canary's channel; `canary` is the number once it came."""
        return b"%b%d" % (self._ours, number)

    async def passed(self, canary: int) -> None:
        """Until this canary came: all that was notified before it was sent is in the map, or was taken."""
        while self.canary < canary:
            self._canary_came.clear()
            await self._canary_came.wait()

    async def wait(self) -> None:
        """Until a key is pending."""
        await self._arrived.wait()
