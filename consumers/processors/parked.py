"""Changes that wait behind one that the body refused, in a task's state, in order of arrival.

    key     length of the topic u16, topic, length of the key u32, the record's key, number u64 (big-endian)
    value   a JSON object (see Item), NUL, the record's value

The table is part of the changelog, so that `dead-letters list` reads it there.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from consumers.processors.context import Version
from consumers.processors.longs import NOT_IN_LOG
from consumers.processors.state import NUL, Overlay, table_prefix
from streamer.config import DeadLetterLimits
from streamer.errors import FatalError

TABLE = "_parked"
PREFIX = table_prefix(TABLE)
FORMAT = 1

SHARE_WINDOW_S = 60.0
REFUSED_MIN = 100  # fewer in a minute are never too many
MESSAGE_LIMIT = 4096  # characters of a reason

Key = tuple[str, bytes]  # topic, the record's key

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Item:
    """One parked change. `code`, `message`: why, of the first of its key; "" for those that wait behind it.

    `value` None: the delete that a truncate stands for, of `version`.
    """

    topic: str
    key: bytes
    number: int
    offset: int
    value: bytes | None
    version: Version
    commit_us: int
    at_us: int
    code: str = ""
    message: str = ""
    attempts: int = 1

    def dump_key(self) -> bytes:
        return key_prefix(self.topic, self.key) + _U64.pack(self.number)

    def dump(self) -> bytes:
        header = {
            "format": FORMAT,
            "offset": self.offset,
            "version": self.version,
            "commit_us": self.commit_us,
            "at_us": self.at_us,
            "code": self.code,
            "message": self.message[:MESSAGE_LIMIT],
            "attempts": self.attempts,
            "made_up": self.value is None,
        }
        return orjson.dumps(header) + NUL + (self.value or b"")

    @classmethod
    def load(cls, full_key: bytes, value: bytes) -> Item:
        topic, key, number = _parts(full_key)
        header, _, raw = value.partition(NUL)
        fields: dict[str, Any] = orjson.loads(header)
        if fields.pop("format") != FORMAT:
            raise FatalError(
                "parked changes are of another format", where=topic, fix="run the version that wrote them"
            )
        made_up = fields.pop("made_up")
        fields["version"] = tuple(fields["version"])
        return cls(topic, key, number, value=None if made_up else raw, **fields)


def key_prefix(topic: str, key: bytes) -> bytes:
    name = topic.encode()
    return PREFIX + _U16.pack(len(name)) + name + _U32.pack(len(key)) + key


def _parts(full_key: bytes) -> tuple[str, bytes, int]:
    at = len(PREFIX)
    (length,) = _U16.unpack_from(full_key, at)
    topic = full_key[at + 2 : at + 2 + length].decode()
    at += 2 + length
    (size,) = _U32.unpack_from(full_key, at)
    key = full_key[at + 4 : at + 4 + size]
    return topic, key, _U64.unpack_from(full_key, at + 4 + size)[0]


class Lot:
    """The parked keys of one task: what is looked up for every change is in memory."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._next: dict[Key, int] = {}
        self._counts: dict[Key, int] = {}
        self.lacking: dict[Key, Version] = {}
        """Keys that are parked for nothing but a value that is not in the log: the newest version of each."""
        for full_key, value in overlay.scan(PREFIX):
            self._count(Item.load(full_key, value))

    @property
    def keys(self) -> int:
        return len(self._counts)

    @property
    def stuck(self) -> int:
        """Keys that go on when a person has done something."""
        return len(self._counts) - len(self.lacking)

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def add(self, topic: str, key: bytes, **fields: Any) -> None:
        """Behind what is parked of its key."""
        number = self._next.get((topic, key), 0)
        item = Item(topic, key, number, **fields)
        self._overlay.put(item.dump_key(), item.dump())
        self._count(item)

    def _count(self, item: Item) -> None:
        """The last of its key."""
        key = item.topic, item.key
        self._next[key] = item.number + 1
        count = self._counts[key] = self._counts.get(key, 0) + 1
        is_lacking = item.code == NOT_IN_LOG if count == 1 else key in self.lacking and not item.code
        if is_lacking:
            self.lacking[key] = max(item.version, self.lacking.get(key, item.version))
        else:
            self.lacking.pop(key, None)

    def items(self, topic: str, key: bytes) -> Iterator[Item]:
        for full_key, value in self._overlay.scan(key_prefix(topic, key)):
            if len(full_key) == len(key_prefix(topic, key)) + _U64.size:
                yield Item.load(full_key, value)

    def refused_again(self, item: Item) -> None:
        key = item.topic, item.key
        self._overlay.put(item.dump_key(), item.dump())
        if item.code == NOT_IN_LOG:
            self.lacking[key] = max(one.version for one in self.items(*key))
        else:
            self.lacking.pop(key, None)

    def remove(self, item: Item) -> None:
        self._overlay.put(item.dump_key(), None)
        key = item.topic, item.key
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key], self._next[key]
            self.lacking.pop(key, None)

    def supersede(self, topic: str, key: bytes) -> None:
        """A newer row takes the place of all that is parked of its key."""
        for item in list(self.items(topic, key)):
            self.remove(item)


class Refusals:
    """Of one worker: when the body is at fault and not the changes, going on would park everything."""

    def __init__(self, limits: DeadLetterLimits, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock_s = clock_s
        self._recent: deque[tuple[float, int, int]] = deque()  # s, done, refused
        self.refused = 0
        self.parked: dict[int, int] = {}  # keys that wait for a person, by task

    def note(self, done: int, refused: int) -> None:
        now_s = self._clock_s()
        self.refused += refused
        self._recent.append((now_s, done, refused))
        while self._recent[0][0] < now_s - SHARE_WINDOW_S:
            self._recent.popleft()

    def check(self, processor: str, why: str) -> None:
        """Raises FatalError when too much is refused."""
        limits, parked = self._limits, sum(self.parked.values())
        if parked > limits.limit:
            what = f"{parked:,} keys are parked, the limit is {limits.limit:,}"
        else:
            done, refused = (sum(counts[i] for counts in self._recent) for i in (1, 2))
            if refused < REFUSED_MIN or refused <= limits.share * (done + refused):
                return
            what = f"{refused:,} of {done + refused:,} changes of the last minute were refused"
        raise FatalError(
            f"{what}: it is no single change's fault. The last: {why}",
            where=f"processor {processor}",
            fix=f"mend the agent and start it again; then tailrace dead-letters retry {processor}",
        )
