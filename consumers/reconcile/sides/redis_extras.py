"""Rows of streams that the target alone has: trimmed entries, or of a stream that is no more.

Owns the proof of the latter, by what XINFO STREAM says; streamer.redis.streams has the rule. Entries are
looked for before XINFO is asked: one that is trimmed in between is in front of the first by then. So what is
proved stays so, whatever is written meanwhile. Redis before 7 tells the last id only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from consumers.reconcile.compare import SUSPECTS_LIMIT
from consumers.reconcile.sides.base import Key
from streamer.redis.entities import Match
from streamer.redis.reread import KeyChanged, Reread, StreamInfo, id_of
from streamer.redis.streams import CONFIRM_ENTRIES

Id = tuple[int, int]


class Reader(Protocol):
    def entry_of(self, key: Key) -> tuple[Match, bytes] | None:
        """(the stream, the entry's id) of a row; None: it is no stream's."""


class StreamExtras:
    """See mapping.Extras. Of the first rows only, should there be more than suspects are kept."""

    def __init__(self, reread: Reread, reader: Reader) -> None:
        self._reread = reread
        self._reader = reader
        self._streams: dict[tuple[int, bytes], dict[bytes, Key]] = {}
        self._kept = 0

    def add(self, keys: Collection[Key]) -> None:
        for key in keys:
            found = self._reader.entry_of(key) if self._kept < SUSPECTS_LIMIT else None
            if found is not None:
                match, entry = found
                self._streams.setdefault((match.db, match.key), {})[entry] = key
                self._kept += 1

    async def strangers(self) -> Collection[Key]:
        streams, self._streams, self._kept = self._streams, {}, 0
        found: list[Key] = []
        for (db, key), entries in streams.items():
            found += [entries[entry] for entry in await self._of_stream(db, key, entries)]
        return found

    async def _of_stream(self, db: int, key: bytes, entries: Mapping[bytes, Key]) -> list[bytes]:
        info = await self._reread.stream_info(db, key)
        if info is not None and not _strangers(entries, info):
            return []  # all of them may be trimmed
        absent: list[bytes] = []
        ids = list(entries)
        try:
            for at in range(0, len(ids), CONFIRM_ENTRIES):
                some = ids[at : at + CONFIRM_ENTRIES]
                _, there = await self._reread.confirm_entries(db, key, some)
                absent += [entry for entry in some if entry not in there]
        except KeyChanged:
            return ids
        info = await self._reread.stream_info(db, key)
        return absent if info is None else _strangers(absent, info)


def _strangers(absent: Collection[bytes], info: StreamInfo) -> list[bytes]:
    """Of entries that are not there, those that cannot be this stream's; at the least as many."""
    bound = info.bound(info.first)
    above = [entry for entry in absent if id_of(entry) > bound]
    spare = 0 if info.lost is None else len(absent) - len(above) - info.lost
    below = sorted((entry for entry in absent if id_of(entry) <= bound), key=id_of)
    return above + below[: max(0, spare)]
