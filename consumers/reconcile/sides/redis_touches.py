"""Which keys of a Redis source are written while a fence is waited for, by their notifications.

A state has no stamp: a key that is set to another value and back looks as if nothing had been. So the keys of
suspects are subscribed to, one by one. Where notifications are off nothing comes, and values alone tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from streamer.redis.connection import RedisConnection

CHANNELS_AT_ONCE = 500  # of a SUBSCRIBE: below a millisecond of the server

Place = tuple[int, bytes]  # database and key


class Touches:
    """`connection` is its own line: nothing else is asked on it."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._counts: Counter[bytes] = Counter()
        self._watched: set[bytes] = set()
        connection.on_push = self._on_push

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"message":
            self._counts[push[1]] += 1

    async def watch(self, places: Collection[Place]) -> None:
        """From the return on every write of these keys is counted, and those before are."""
        channels = [channel for channel in map(_channel, places) if channel not in self._watched]
        for at in range(0, len(channels), CHANNELS_AT_ONCE):
            await self._connection.subscribe("SUBSCRIBE", *channels[at : at + CHANNELS_AT_ONCE])
        self._watched.update(channels)
        await self.settled()

    async def settled(self) -> None:
        """Until what was written before is counted: a reply stands behind it."""
        await self._connection.command("PING")

    def count(self, place: Place) -> int:
        return self._counts[_channel(place)]


def _channel(place: Place) -> bytes:
    return b"__keyspace@%d__:%b" % place
