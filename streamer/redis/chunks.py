"""Which members of a large key changed: it is walked by the server itself, which returns what differs.

A notification names the key only. So the script scans the key in small chunks and compares a digest of
each with the one that was kept; of a million members the few chunks that changed are sent. The chunks
kept here hold what was compared with the shadow last, packed; they are lost with the session.

Script: KEYS: the key. ARGV: database, command, cursor, COUNT, chunks, then pairs of cursor and digest.
Reply: seconds, microseconds, then for each chunk its cursor, the next cursor, its digest and content;
both are 0 where the digest is the known one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import islice
from typing import Any, NamedTuple

from msgspec import msgpack

from streamer.redis.replies import Arg
from streamer.redis.reread import KeyState, Reread

COUNT = 64  # members of a chunk: few more than the one that changed are sent with it
CHUNKS = 16  # of a call: one or two milliseconds of the server
KEPT_BYTES = 128 * 2**20  # of all keys together, about 3M members; larger keys are read as a whole
MOVED_LIMIT = 100_000  # members that left their chunk in one walk; at more the key is read as a whole
_ENTRY_BYTES = 250  # of a chunk beside its content
_NOWHERE = b""  # no cursor of a scan

SCRIPT = b"""
local call = redis.call
call('SELECT', ARGV[1])
local cursor, known = ARGV[3], {}
for i = 6, #ARGV, 2 do known[ARGV[i]] = ARGV[i + 1] end
local time = call('TIME')
local out = {time[1], time[2]}
for i = 1, tonumber(ARGV[5]) do
  local found = call(ARGV[2], KEYS[1], cursor, 'COUNT', ARGV[4])
  local digest = redis.sha1hex(cmsgpack.pack(found[2]))
  local at = #out
  out[at + 1], out[at + 2] = cursor, found[1]
  if known[cursor] == digest then
    out[at + 3], out[at + 4] = 0, 0
  else
    out[at + 3], out[at + 4] = digest, found[2]
  end
  cursor = found[1]
  if cursor == '0' then break end
end
return out
"""
_SHA = sha1(SCRIPT, usedforsecurity=False).hexdigest()
SCANS = {"zset": "ZSCAN", "hash": "HSCAN", "set": "SSCAN"}

_pack = msgpack.Encoder().encode
_unpack = msgpack.Decoder(list[bytes]).decode


class _Chunk(NamedTuple):
    digest: bytes
    after: bytes  # the next cursor
    packed: bytes


@dataclass(slots=True)
class Chunks:
    """Of one key; valid for the type and expiry that it was read with."""

    kind: str
    expires_us: int | None
    by_cursor: dict[bytes, _Chunk] = field(default_factory=dict)
    bytes: int = 0

    def fits(self, state: KeyState) -> bool:
        return self.kind == state.type and self.expires_us == state.expires_us


class Found(NamedTuple):
    """Of one call: members that are new or other (as Step.members has them), and the next cursor."""

    server_us: int
    changed: dict[Any, Any]
    after: bytes


class ChunkWalk:
    """One walk over a key whose chunks may be known. `missing`: members that left their chunk, for now."""

    def __init__(self, reread: Reread, chunks: Chunks, db: int, key: bytes) -> None:
        self._reread = reread
        self._chunks = chunks
        self._db = db
        self._key = key
        self._fresh: dict[bytes, _Chunk] = {}
        self._moved: set[bytes] = set()
        self.missing: set[bytes] = set()

    @property
    def too_many(self) -> bool:
        return len(self.missing) > MOVED_LIMIT

    async def step(self, cursor: bytes) -> Found:
        """The next chunks from `cursor` on. Raises KeyChanged."""
        known, kind = self._chunks.by_cursor, self._chunks.kind
        expected: list[bytes] = []
        at: bytes | None = cursor
        for _ in range(CHUNKS):
            chunk = known.get(at) if at is not None else None
            if chunk is None or at is None:
                break
            expected += (at, chunk.digest)
            at = chunk.after if chunk.after != b"0" else None
        scan = SCANS[kind]
        args: list[Arg] = [self._db, scan, cursor, COUNT, CHUNKS, *expected]
        reply = await self._reread.evaluate(SCRIPT, _SHA, [self._key], *args, runs=(scan,))
        changed: dict[Any, Any] = {}
        after = b"0"
        parts = islice(reply, 2, None)
        for start, after, digest, content in zip(parts, parts, parts, parts, strict=True):
            if digest == 0:
                self._fresh[start] = known[start]._replace(after=after)
            else:
                self._take(known.get(start), start, _Chunk(digest, after, _pack(content)), content, changed)
        if kind == "zset":
            changed = {member: float(score) for member, score in changed.items()}
        return Found(int(reply[0]) * 1_000_000 + int(reply[1]), changed, after)

    def _take(
        self, was: _Chunk | None, start: bytes, chunk: _Chunk, content: list[bytes], changed: dict[Any, Any]
    ) -> None:
        self._fresh[start] = chunk
        new = self._members(content)
        old = self._members(_unpack(was.packed)) if was is not None else {}
        fresh = {member: value for member, value in new.items() if old.get(member, 0) != value}
        changed.update(fresh)
        if self._chunks.by_cursor:
            self._moved.update(fresh)
            self.missing.update(old.keys() - new.keys())

    def end(self) -> list[bytes]:
        """All chunks were met: members that are in none of them any more, to be confirmed."""
        left = self._chunks.by_cursor
        for cursor in left.keys() - self._fresh.keys():
            self.missing.update(self._members(_unpack(left[cursor].packed)))
        self._chunks.by_cursor = self._fresh
        self._chunks.bytes = sum(_ENTRY_BYTES + len(chunk.packed) for chunk in self._fresh.values())
        return list(self.missing - self._moved)

    def returned(self, members: Collection[bytes]) -> None:
        """After `end`: members that are there, though this walk has met them in no chunk.

        They are published by now, and may leave again before the next walk. So a chunk that nobody scans
        keeps them: whichever the next walk does not meet is missing then.
        """
        if members:
            content = [part for member in members for part in (member, b"")]
            packed = _pack(list(members) if self._chunks.kind == "set" else content)
            self._chunks.by_cursor[_NOWHERE] = _Chunk(b"", b"0", packed)
            self._chunks.bytes += _ENTRY_BYTES + len(packed)

    def _members(self, content: list[bytes]) -> Mapping[bytes, bytes | None]:
        if self._chunks.kind == "set":
            return dict.fromkeys(content)
        return dict(zip(content[::2], content[1::2], strict=True))
